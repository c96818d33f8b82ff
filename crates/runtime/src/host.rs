//! This machine's processes.
//!
//! [`Local`] starts servers that outlive Mainstay and finds them again. Each node has a record in the run folder: the boot, and the
//! server's own line of `/proc` (process id, start time), which the server's process writes by itself before it becomes the
//! server. So at whatever moment Mainstay is killed, no server runs that is not on record. While one is being started its record is
//! locked, by the starter and by the child up to its `exec`: who gets the lock sees either a server or none, nothing in between.
//!
//! Refuses to start a node twice. Programs that are run to their end ([`Host::run`]) do not outlive us.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use mainstay_engine::{Error, Host, Kind, NodeCommand, Result};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, killpg};
use tokio::time::sleep;

use crate::files;
use crate::process::{Identity, Stat, boot_id, family, pid};
use crate::spawn::{self, Life};

/// How long a killed process may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(20);
/// How long somebody else may be at the same node.
const LOCK_LIMIT: Duration = Duration::from_secs(60);
/// A server's log is begun anew at a start when it is larger; the one before is kept.
const LOG_LIMIT_BYTES: u64 = 64 << 20;
/// How much of a program's output is kept.
const OUTPUT_LIMIT_BYTES: u64 = 64 << 20;
/// How many of its last lines stand in an error.
const TAIL_LINES: usize = 20;

/// The servers of one cluster on this machine, remembered in a folder.
#[derive(Clone, Debug)]
pub struct Local {
    run: PathBuf,
}

impl Local {
    /// Servers that are remembered in the folder `run`, which is made when the first is started.
    pub fn new(run: impl Into<PathBuf>) -> Self {
        Self { run: run.into() }
    }

    /// The nodes that were ever started, whether or not they run now.
    ///
    /// # Errors
    /// `Io`.
    pub fn nodes(&self) -> crate::Result<Vec<String>> {
        files::names(&self.run)
    }

    /// Stops all that runs, whatever its engine: an interrupt, and after `grace` the end of the whole group.
    ///
    /// # Errors
    /// `Deadline` when one would not even be killed.
    pub async fn stop_all(&self, grace: Duration) -> crate::Result<()> {
        let nodes = self.nodes()?;
        for stopped in futures::future::join_all(nodes.iter().map(|node| self.stop(node, "INT", grace))).await
        {
            stopped?;
        }
        Ok(())
    }

    fn record(&self, node: &str) -> PathBuf {
        self.run.join(node)
    }

    fn identity(&self, node: &str) -> Option<Identity> {
        let text = fs::read_to_string(self.record(node)).ok()?;
        let (boot, stat) = text.split_once('\n')?;
        let stat = Stat::parse(stat)?;
        Some(Identity { pid: stat.pid, start: stat.start, boot: boot.to_owned() })
    }

    /// Opens a node's record for us alone.
    async fn lock(&self, node: &str) -> Result<Flock<File>> {
        let path = self.record(node);
        let failed = |e| Error::io(format!("open the record {}", path.display()), e);
        files::private_dir(&self.run).map_err(|e| Error::new(Kind::Io, e.to_string()))?;
        let open = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path);
        let mut file = open.map_err(failed)?;
        let since = Instant::now();
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(locked) => return Ok(locked),
                Err((_, errno)) if errno != nix::errno::Errno::EWOULDBLOCK => {
                    return Err(failed(errno.into()));
                }
                Err(_) if since.elapsed() > LOCK_LIMIT => {
                    return Err(Error::new(
                        Kind::Deadline,
                        format!("node {node}: another mainstay is at it"),
                    )
                    .hint("wait until it has finished"));
                }
                Err((back, _)) => file = back,
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}

#[async_trait]
impl Host for Local {
    async fn start(&self, command: &NodeCommand) -> Result<u32> {
        let node = &command.node;
        check_name(node)?;
        let mut record = self.lock(node).await?;
        if let Some(pid) = self.running(node) {
            return Err(Error::new(Kind::Invalid, format!("start node {node}: it runs (pid {pid})")));
        }
        let failed = |e| Error::io(format!("start node {node}: {}", command.program.display()), e);
        record.set_len(0).map_err(failed)?;
        writeln!(record, "{}", boot_id()).map_err(failed)?;
        let log = open_log(command).map_err(|e| Error::io(format!("open {}", command.log.display()), e))?;
        let errors = log.try_clone().map_err(failed)?;
        let spawned = spawn::command(command, Life::Own(&record))
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(e) => {
                record.set_len(0).map_err(failed)?;
                return Err(not_started(command, e));
            }
        };
        let pid = child.id();
        tracing::debug!(node, pid, program = %command.program.display(), "started");
        // While we live, the dead are ours to bury.
        let bury = std::thread::Builder::new().name(format!("wait-{pid}")).stack_size(64 << 10);
        if let Err(error) = bury.spawn(move || child.wait()) {
            tracing::warn!(node, %error, "nobody waits for this server");
        }
        Ok(pid)
    }

    fn running(&self, node: &str) -> Option<u32> {
        self.identity(node).filter(Identity::alive).map(|identity| identity.pid)
    }

    async fn stop(&self, node: &str, signal: &str, grace: Duration) -> Result<()> {
        check_name(node)?;
        let signal = parse_signal(signal)?;
        if !self.record(node).exists() {
            return Ok(());
        }
        let record = self.lock(node).await?;
        let failed = |e: nix::Error| Error::io(format!("stop node {node}"), e.into());
        if let Some(server) = self.identity(node).filter(Identity::alive) {
            server.signal(signal).map_err(failed)?;
            if !gone(&server, grace).await {
                tracing::warn!(node, pid = server.pid, "did not stop in time: killed");
                let family = family(server.pid);
                server.signal(Signal::SIGKILL).map_err(failed)?;
                for member in &family {
                    member.signal(Signal::SIGKILL).map_err(failed)?;
                }
                for member in std::iter::once(&server).chain(&family) {
                    if !gone(member, KILL_LIMIT).await {
                        let what = format!("stop node {node}: pid {} would not even be killed", member.pid);
                        return Err(
                            Error::new(Kind::Deadline, what).hint("look for a disk that does not answer")
                        );
                    }
                }
            }
        }
        record.set_len(0).map_err(|e| Error::io(format!("stop node {node}"), e))
    }

    async fn run(&self, command: &NodeCommand, deadline: Duration) -> Result<String> {
        files::private_dir(&self.run).map_err(|e| Error::new(Kind::Io, e.to_string()))?;
        let output = scratch(&self.run).map_err(|e| Error::io("make a file for a program's output", e))?;
        let (done, finished) = tokio::sync::oneshot::channel();
        let guard = Cancel(Arc::new(AtomicBool::new(false)));
        let cancelled = Arc::clone(&guard.0);
        let command = command.clone();
        let thread = std::thread::Builder::new().name("run".into());
        thread
            .spawn(move || {
                // Nobody waits for the answer when the future was dropped.
                let _ = done.send(run_to_end(&command, output, deadline, &cancelled));
            })
            .map_err(|e| Error::io("start a thread", e))?;
        finished.await.map_err(|e| Error::new(Kind::Io, "a program's thread ended").source(e))?
    }
}

/// Tells the thread of a program to end it, when dropped.
struct Cancel(Arc<AtomicBool>);

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs a program on this thread, which must live until it ends ([`Life::Ours`]). Its output goes to a file, not a pipe: what it
/// leaves running in the background cannot keep us waiting.
fn run_to_end(
    command: &NodeCommand,
    mut output: File,
    deadline: Duration,
    cancelled: &AtomicBool,
) -> Result<String> {
    let name = command.program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let failed = |e| Error::io(format!("run {name} for {}", command.node), e);
    let stdout = output.try_clone().map_err(failed)?;
    let stderr = output.try_clone().map_err(failed)?;
    let mut child = spawn::command(command, Life::Ours)
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr)
        .spawn()
        .map_err(|e| not_started(command, e))?;
    let since = Instant::now();
    let mut pause = Duration::from_millis(1);
    let ended = loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            break Some(status);
        }
        if cancelled.load(Ordering::Relaxed) || since.elapsed() > deadline {
            // Not waited for yet, so the number is still its own.
            let _ = killpg(pid(child.id()), Signal::SIGKILL);
            child.wait().map_err(failed)?;
            break None;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    };
    let mut text = Vec::new();
    output.seek(SeekFrom::Start(0)).map_err(failed)?;
    output.take(OUTPUT_LIMIT_BYTES).read_to_end(&mut text).map_err(failed)?;
    let text = String::from_utf8_lossy(&text).into_owned();
    match ended {
        Some(status) if status.success() => Ok(text),
        Some(status) => Err(Error::new(
            Kind::Server,
            format!("run {name} for {}: it ended with {status}{}", command.node, tail(&text)),
        )),
        None => {
            let limit = format!("{:.0} s", deadline.as_secs_f64());
            Err(Error::new(
                Kind::Deadline,
                format!("run {name} for {}: not done within {limit}{}", command.node, tail(&text)),
            ))
        }
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    let last = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    if last.is_empty() { String::new() } else { format!(":\n  {}", last.join("\n  ")) }
}

/// Waits until a process is gone; `false` if it is not within `limit`.
async fn gone(process: &Identity, limit: Duration) -> bool {
    let since = Instant::now();
    let mut pause = Duration::from_millis(2);
    while process.alive() {
        if since.elapsed() >= limit {
            return false;
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    true
}

/// The log lies in a folder of the server's user, who must not be able to have us write elsewhere: links are not followed.
fn open_log(command: &NodeCommand) -> io::Result<File> {
    let path = &command.log;
    if fs::symlink_metadata(path).is_ok_and(|meta| meta.len() > LOG_LIMIT_BYTES) {
        fs::rename(path, path.with_extension("log.1"))?;
    }
    let mut options = OpenOptions::new();
    let file = options.append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path)?;
    if let Some(owner) = command.owner {
        std::os::unix::fs::fchown(&file, Some(owner.uid), Some(owner.gid))?;
    }
    Ok(file)
}

/// A file that has no name and is gone when it is closed.
fn scratch(folder: &Path) -> io::Result<File> {
    let options = || {
        let mut options = OpenOptions::new();
        options.read(true).append(true).mode(0o600);
        options
    };
    match options().custom_flags(libc::O_TMPFILE).open(folder) {
        Ok(file) => Ok(file),
        Err(_) => {
            // Not every file system can.
            let name = files::random_hex(8).map_err(io::Error::other)?;
            let path = std::env::temp_dir().join(format!("mainstay-{name}"));
            let file = options().create_new(true).open(&path)?;
            fs::remove_file(&path)?;
            Ok(file)
        }
    }
}

fn not_started(command: &NodeCommand, error: io::Error) -> Error {
    let program = command.program.display();
    let what = format!("start {program} for {}: {error}", command.node);
    match error.kind() {
        io::ErrorKind::NotFound if !command.program.exists() => Error::new(Kind::NotInstalled, what),
        io::ErrorKind::PermissionDenied if command.owner.is_some() => Error::io(what, error).hint(format!(
            "the user that it runs as must be able to execute {program} and to enter {}",
            command.cwd.display()
        )),
        _ => Error::io(what, error),
    }
}

fn check_name(node: &str) -> Result<()> {
    let ok = !node.is_empty() && !node.starts_with('.') && !node.contains('/');
    if ok { Ok(()) } else { Err(Error::new(Kind::Invalid, format!("`{node}` is not a node's name"))) }
}

fn parse_signal(name: &str) -> Result<Signal> {
    let full = if name.starts_with("SIG") { name.to_owned() } else { format!("SIG{name}") };
    full.parse().map_err(|_| Error::new(Kind::Invalid, format!("`{name}` is not a signal")))
}
