//! A fleet on this machine, driven from outside: the built binary, its JSON, and the engines' own clients.
//!
//! Everything lies in one temporary folder. Dropping the fleet stops whatever it started, also after a panic.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use mainstay_cli::demo::client::Client;
use serde_json::Value;

/// The longest that any condition is waited for; CI's machine is slow and busy.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The file that every user begins with.
pub const SHOP: &str = r#"fleet: shop
environments: { local: { hosts: local } }
vaults: { main: { url: "file:vault" } }
clusters:
  orders: { engine: postgres, nodes: 2, backup: { follow: true } }
  stock: { engine: redis, nodes: 6, cluster: { replicas: 1 }, backup: { follow: true } }
recovery_groups:
  shop: { members: [orders, stock], every: 1m, exact: { every: 5m, stall: 20ms } }
"#;

/// One of each, without replicas: starts in two seconds.
pub const SMALL: &str = r#"fleet: small
environments: { local: { hosts: local } }
vaults: { main: { url: "file:vault" } }
clusters:
  orders: { engine: postgres, backup: { follow: true } }
  stock: { engine: redis, backup: { follow: true } }
recovery_groups:
  shop: { members: [orders, stock], every: 1m, exact: { every: 5m, stall: 20ms } }
"#;

pub struct Fleet {
    dir: tempfile::TempDir,
    servers: Vec<Child>,
}

/// How a command ended.
pub struct Ended {
    pub code: i32,
    pub json: Value,
    pub stdout: String,
    pub stderr: String,
}

impl Fleet {
    pub fn new(text: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("mainstay-test-").tempdir().expect("a temporary folder");
        std::fs::write(dir.path().join("fleet.yaml"), text).expect("write the fleet file");
        Self { dir, servers: Vec::new() }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn vault(&self) -> PathBuf {
        self.dir.path().join("vault")
    }

    pub fn command(&self, args: &[&str]) -> Command {
        self.command_in("home", args)
    }

    /// The binary with another home beside the first.
    pub fn command_in(&self, home: &str, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
        command
            .current_dir(self.path())
            .env("MAINSTAY_HOME", self.path().join(home))
            .args(args)
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Ended {
        let mut all = vec!["--output", "json"];
        all.extend(args);
        ended(self.command(&all).output().expect("run mainstay"))
    }

    /// Runs a command that must end with 0, and gives its JSON.
    pub fn ok(&self, args: &[&str]) -> Value {
        self.exits(0, args).json
    }

    pub fn exits(&self, code: i32, args: &[&str]) -> Ended {
        let ended = self.run(args);
        assert_eq!(ended.code, code, "mainstay {}\n{}\n{}", args.join(" "), ended.stdout, ended.stderr);
        ended
    }

    /// Starts `serve` (or `follow`) in the background; killed when the fleet is dropped.
    pub fn serve(&mut self, args: &[&str]) -> u32 {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.path().join("serve.log"))
            .expect("serve.log");
        let child = self
            .command(args)
            .stdout(log.try_clone().expect("serve.log"))
            .stderr(log)
            .spawn()
            .expect("start serve");
        let pid = child.id();
        self.servers.push(child);
        pid
    }

    /// SIGKILL, the hard way.
    pub fn kill_servers(&mut self) {
        for mut child in self.servers.drain(..) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM, and the exit code.
    pub fn stop_servers(&mut self) -> Vec<i32> {
        let mut codes = Vec::new();
        for mut child in self.servers.drain(..) {
            let _ = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
            let until = Instant::now() + PATIENCE;
            loop {
                match child.try_wait() {
                    Ok(Some(status)) => break codes.push(status.code().unwrap_or(-1)),
                    _ if Instant::now() > until => {
                        let _ = child.kill();
                        let _ = child.wait();
                        break codes.push(-9);
                    }
                    _ => std::thread::sleep(Duration::from_millis(50)),
                }
            }
        }
        codes
    }

    pub fn serve_log(&self) -> String {
        std::fs::read_to_string(self.path().join("serve.log")).unwrap_or_default()
    }

    /// The cluster's URIs, primaries first.
    pub fn uris(&self, cluster: &str) -> Vec<String> {
        let out = self.command(&["connect", cluster, "--uri"]).output().expect("run mainstay");
        assert!(out.status.success(), "connect {cluster}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect()
    }

    /// Asks one statement of the cluster's primary.
    pub fn ask(&self, cluster: &str, statement: &str) -> Vec<String> {
        ask(&self.uris(cluster)[0], statement)
    }

    /// The instant that the window of `cluster` ends at, or the epoch.
    pub fn window_to(&self, cluster: &str) -> String {
        let windows = self.ok(&["recover", "window", cluster]);
        windows
            .as_array()
            .and_then(|rows| rows.last())
            .and_then(|w| w["to"].as_str())
            .unwrap_or("1970")
            .to_owned()
    }

    /// Waits until the windows of all of `clusters` reach past `instant` (RFC 3339, as Mainstay writes it).
    pub fn wait_window(&self, clusters: &[&str], instant: &str) {
        eventually(&format!("the windows reach {instant}"), || {
            clusters.iter().all(|c| self.window_to(c).as_str() > instant)
        });
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.kill_servers();
        if std::thread::panicking() {
            let log = self.serve_log();
            let tail = log.char_indices().rev().nth(6000).map_or(0, |(at, _)| at);
            eprintln!("--- serve.log ---\n{}", &log[tail..]);
        }
        for args in [&["recover", "drop", "--all"][..], &["down", "--erase", "--yes"][..]] {
            let _ = self.command(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
    }
}

fn ended(out: Output) -> Ended {
    let stdout = String::from_utf8_lossy(&out.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
    let json = if stdout.trim().is_empty() {
        Value::Null
    } else {
        serde_json::from_str(&stdout)
            .unwrap_or_else(|e| panic!("stdout is not one JSON value: {e}\n{stdout}\n{stderr}"))
    };
    Ended { code: out.status.code().unwrap_or(-1), json, stdout, stderr }
}

/// Asks one statement of the server behind `uri`.
pub fn ask(uri: &str, statement: &str) -> Vec<String> {
    Client::open(uri).and_then(|mut c| c.ask(statement)).unwrap_or_else(|e| panic!("{statement}: {e}"))
}

/// Waits for a condition, with a limit.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "waited {PATIENCE:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The URIs of one cluster of a sandbox, from `recover run`'s JSON.
pub fn sandbox_uris(restored: &Value, cluster: &str) -> Vec<String> {
    let clusters = restored["clusters"].as_array().expect("clusters");
    let found = clusters.iter().find(|c| c["cluster"] == cluster).expect("the cluster");
    found["uris"].as_array().expect("uris").iter().map(|u| u.as_str().expect("a URI").to_owned()).collect()
}

/// This machine's clock, as Mainstay writes instants.
pub fn now() -> String {
    mainstay_model::Instant::now().to_string()
}
