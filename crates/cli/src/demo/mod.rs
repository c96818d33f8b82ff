//! `mainstay demo`: the guided first run.
//!
//! A small shop starts on this machine and takes live traffic while the daemon protects it. Then somebody drops a table and flushes
//! Redis, and the group is brought back to the second before, checked and proven. Every step is the command that a user would type, run
//! for real by this same binary; nothing is shown that was not measured.

pub mod client;
mod story;
pub mod traffic;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::failure::{Failure, Result};
use crate::printer::Printer;
pub use story::run;

/// The shop's fleet file.
const FLEET: &str = r#"fleet: shop
environments: { local: { hosts: local } }
vaults: { main: { url: "file:vault" } }
clusters:
  orders: { engine: postgres, nodes: 2, backup: { follow: true } }
  stock: { engine: redis, nodes: 6, cluster: { replicas: 1 }, backup: { follow: true } }
recovery_groups:
  shop: { members: [orders, stock], every: 5s, exact: { every: 10s, stall: 20ms } }
"#;

/// The shop on this machine: its folder, this binary, and the daemon while it runs.
struct Shop {
    dir: PathBuf,
    exe: PathBuf,
    daemon: Option<Child>,
    printer: Printer,
}

impl Shop {
    fn open(dir: &Path, printer: Printer) -> Result<Self> {
        let exe = std::env::current_exe().map_err(|e| Failure::of("io", &e, None))?;
        std::fs::create_dir_all(dir)
            .map_err(|e| Failure::of("io", &e, Some(format!("make {} writable", dir.display()))))?;
        let file = dir.join("fleet.yaml");
        std::fs::write(&file, FLEET).map_err(|e| Failure::of("io", &e, None))?;
        Ok(Self { dir: dir.to_owned(), exe, daemon: None, printer })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.exe);
        command
            .current_dir(&self.dir)
            .env("MAINSTAY_HOME", self.dir.join("home"))
            .args(args)
            .stdin(Stdio::null());
        command
    }

    /// Shows a command, runs it, and gives its JSON; its progress goes to the terminal.
    fn step(&self, args: &[&str]) -> Result<Value> {
        self.printer.say(format!("\n$ mainstay {}", args.join(" ")));
        self.quietly(args)
    }

    fn quietly(&self, args: &[&str]) -> Result<Value> {
        let mut command = self.command(args);
        let out = command
            .args(["--output", "json"])
            .stderr(Stdio::inherit())
            .output()
            .map_err(|e| Failure::of("io", &e, None))?;
        let json: Value = serde_json::from_slice(&out.stdout).unwrap_or(Value::Null);
        if out.status.success() {
            return Ok(json);
        }
        let said = json["error"]["message"].as_str().unwrap_or("it said no more");
        Err(Failure::failed(
            "demo-step",
            format!("mainstay {} failed: {said}", args.join(" ")),
            json["error"]["hint"].as_str().unwrap_or("see above"),
        ))
    }

    /// Starts the daemon, its talk in a file.
    fn serve(&mut self) -> Result {
        let log =
            std::fs::File::create(self.dir.join("serve.log")).map_err(|e| Failure::of("io", &e, None))?;
        self.printer.say("\n$ mainstay serve &        # snapshots, followers, fleet points, from now on");
        let child = self
            .command(&["serve"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|e| Failure::of("io", &e, None))?;
        self.daemon = Some(child);
        Ok(())
    }

    /// Ends the daemon as a service manager would.
    fn stop_serving(&mut self) {
        let Some(mut child) = self.daemon.take() else { return };
        let Ok(pid) = i32::try_from(child.id()) else { return };
        // It may have ended by itself; then there is nothing to end.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
        let until = Instant::now() + Duration::from_secs(30);
        while Instant::now() < until {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = child.kill();
        let _ = child.wait();
    }

    fn uris(&self, cluster: &str) -> Result<Vec<String>> {
        let found = self.quietly(&["connect", cluster, "--uri"])?;
        Ok(strings(&found["uris"]))
    }

    /// Stops and erases all that the demo started.
    fn clear(&mut self) {
        self.stop_serving();
        for args in [&["recover", "drop", "--all"][..], &["down", "--erase", "--yes"][..]] {
            // What is not there cannot be dropped; `down` says by itself what it could not do.
            let _ = self.command(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
        // Left-overs in a folder of our own are harmless.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// The strings of a JSON array.
fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}
