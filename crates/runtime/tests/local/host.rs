//! Processes: started, found again, stopped, whoever was killed meanwhile.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mainstay_engine::{Host, Kind, NodeCommand};
use mainstay_runtime::Local;
use tempfile::TempDir;

const GRACE: Duration = Duration::from_secs(60);

fn sh(dir: &Path, node: &str, script: &str) -> NodeCommand {
    NodeCommand {
        node: node.to_owned(),
        program: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        env: vec![("MARK".into(), dir.display().to_string())],
        cwd: dir.to_owned(),
        log: dir.join("server.log"),
        owner: None,
    }
}

/// Kills what a panicking test leaves.
struct Stop(Local);

impl Drop for Stop {
    fn drop(&mut self) {
        let local = self.0.clone();
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        std::thread::spawn(move || runtime().block_on(local.stop_all(Duration::ZERO)))
            .join()
            .unwrap()
            .unwrap();
    }
}

async fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let since = Instant::now();
    while !reached() {
        assert!(since.elapsed() < Duration::from_secs(60), "waited for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The processes that were started by a test of that folder, and live.
fn marked(dir: &Path) -> Vec<u32> {
    let mark = format!("MARK={}", dir.display());
    let has = |pid: &u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes())
    };
    let pids = fs::read_dir("/proc").unwrap();
    pids.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).filter(has).collect()
}

#[tokio::test]
async fn a_server_runs_until_it_is_stopped() {
    let dir = TempDir::new().unwrap();
    let local = Local::new(dir.path().join("run"));
    let _stop = Stop(local.clone());
    let command = sh(dir.path(), "a-1", "echo hello $LANG $HOME; exec sleep 3600");
    let pid = local.start(&command).await.unwrap();
    assert_eq!(local.running("a-1"), Some(pid));
    assert_eq!(Local::new(dir.path().join("run")).running("a-1"), Some(pid), "by another process too");
    assert_eq!(local.start(&command).await.unwrap_err().kind, Kind::Invalid);
    let hello = format!("hello C.UTF-8 {}\n", dir.path().display());
    until("its output", || fs::read_to_string(dir.path().join("server.log")).unwrap() == hello).await;
    // In a session of its own, so that no terminal's end reaches it.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().collect();
    assert_eq!((fields[2], fields[3]), (pid.to_string().as_str(), pid.to_string().as_str()));

    local.stop("a-1", "TERM", GRACE).await.unwrap();
    assert_eq!(local.running("a-1"), None);
    local.stop("a-1", "TERM", GRACE).await.unwrap();
    local.stop("never-was", "TERM", GRACE).await.unwrap();
    assert!(local.start(&sh(dir.path(), "../x", "true")).await.is_err());
}

#[tokio::test]
async fn what_does_not_want_to_stop_is_killed_with_its_children() {
    let dir = TempDir::new().unwrap();
    let local = Local::new(dir.path().join("run"));
    let _stop = Stop(local.clone());
    // One child in the same group, one in a group of its own.
    let script = "trap '' TERM; sleep 3600 & setsid sleep 3600 & echo up; while :; do sleep 1; done";
    local.start(&sh(dir.path(), "a-1", script)).await.unwrap();
    until("its children", || marked(dir.path()).len() >= 3).await;
    local.stop("a-1", "TERM", Duration::from_millis(50)).await.unwrap();
    until("the end of all", || marked(dir.path()).is_empty()).await;
}

#[tokio::test]
async fn a_server_holds_nothing_that_we_have_open() {
    let dir = TempDir::new().unwrap();
    let local = Local::new(dir.path().join("run"));
    let _stop = Stop(local.clone());
    // As a shell's or a test runner's pipe would be: open, and not to be closed at exec.
    let open = fs::File::open("/dev/null").unwrap();
    nix::fcntl::fcntl(&open, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    let script = "ls -l /proc/$$/fd > fds.tmp; mv fds.tmp fds; exec sleep 3600";
    local.start(&sh(dir.path(), "a-1", script)).await.unwrap();
    until("its list", || dir.path().join("fds").exists()).await;
    let list = fs::read_to_string(dir.path().join("fds")).unwrap();
    let open: Vec<&str> = list.lines().filter_map(|line| line.split_once(" -> ")).map(|(_, to)| to).collect();
    let log = dir.path().join("server.log");
    let known = |to: &&str| !["/dev/null", log.to_str().unwrap()].contains(to) && !to.ends_with("fds.tmp");
    assert_eq!(open.iter().copied().filter(known).collect::<Vec<_>>(), Vec::<&str>::new());
    assert_eq!(open.iter().filter(|to| **to == "/dev/null").count(), 1, "{list}");
}

#[tokio::test]
async fn programs_are_run_to_their_end() {
    let dir = TempDir::new().unwrap();
    let local = Local::new(dir.path().join("run"));
    let run = async |script: &str, limit| local.run(&sh(dir.path(), "a-1", script), limit).await;
    assert_eq!(run("echo out; echo err >&2", GRACE).await.unwrap(), "out\nerr\n");
    let failed = run("echo no such table; exit 3", GRACE).await.unwrap_err();
    assert_eq!(failed.kind, Kind::Server);
    assert!(failed.to_string().contains("no such table"), "{failed}");
    let late = run("sleep 3600", Duration::from_millis(50)).await.unwrap_err();
    assert_eq!(late.kind, Kind::Deadline);
    // What it leaves in the background does not keep us waiting.
    assert_eq!(run("sleep 3600 & echo $!", GRACE).await.unwrap().lines().count(), 1);
    let mut missing = sh(dir.path(), "a-1", "");
    missing.program = "/no/such/program".into();
    assert_eq!(local.run(&missing, GRACE).await.unwrap_err().kind, Kind::NotInstalled);
    assert_eq!(local.start(&missing).await.unwrap_err().kind, Kind::NotInstalled);
    assert_eq!(local.running("a-1"), None);

    // Dropped, it is killed.
    let dropped = run("sleep 3601", GRACE);
    assert!(tokio::time::timeout(Duration::from_millis(300), dropped).await.is_err());
    for pid in marked(dir.path()) {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if line.contains("3600") {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::Signal::SIGKILL)
                .unwrap();
        }
    }
    until("its end", || marked(dir.path()).is_empty()).await;
}

/// Not a test by itself: what the next one kills.
#[tokio::test]
async fn helper_that_starts_a_server() {
    let Some(dir) = std::env::var_os("MAINSTAY_TEST_START") else { return };
    let dir = Path::new(&dir);
    let local = Local::new(dir.join("run"));
    let command = sh(dir, "a-1", "exec sleep 3600");
    let say = |what: &str| writeln!(std::io::stdout(), "{what}").unwrap();
    say("starting");
    local.start(&command).await.unwrap();
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn killed_at_any_moment_we_leave_no_server_that_is_not_on_record() {
    let dir = TempDir::new().unwrap();
    let local = Local::new(dir.path().join("run"));
    let _stop = Stop(local.clone());
    for round in 0..60_u64 {
        let mut helper = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "host::helper_that_starts_a_server", "--nocapture"])
            .env("MAINSTAY_TEST_START", dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Until shortly before it starts, then a little further each time.
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(helper.stdout.take().unwrap()));
        assert!(lines.any(|line| line.unwrap().contains("starting")));
        std::thread::sleep(Duration::from_micros(round * 50));
        helper.kill().unwrap();
        helper.wait().unwrap();
        local.stop("a-1", "TERM", GRACE).await.unwrap();
        assert_eq!(marked(dir.path()), Vec::<u32>::new(), "round {round}");
    }
}
