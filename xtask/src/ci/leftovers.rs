//! Whether the tests cleaned up: servers that still run, folders that still lie there.
//!
//! The tests' temporary folder is one of our own, so that whatever works in it or was started on it is theirs, however
//! many other servers run on this machine. A server left behind is a failure of the test that started it: on a user's
//! machine it would hold ports and memory until the next boot.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How long a server may take to go after the last test ended.
const GRACE: Duration = Duration::from_secs(20);

/// A temporary folder that everything under test is told to use. It is taken away at the end.
pub struct Playground {
    folder: PathBuf,
}

impl Playground {
    /// Makes the folder. Its name is short, since paths of sockets may have 107 bytes only, and all may use it, since
    /// servers that refuse root run as somebody else.
    pub fn make() -> Result<Self> {
        let folder = Path::new("/tmp").join(format!("ci{}", std::process::id()));
        std::fs::create_dir(&folder).with_context(|| format!("make {}", folder.display()))?;
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o1777))
            .context("open it to all")?;
        Ok(Self { folder })
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Fails if anything still runs in it a while after the tests ended.
    pub fn check(&self) -> Result<()> {
        let started = Instant::now();
        let mut running = self.running();
        while !running.is_empty() && started.elapsed() < GRACE {
            std::thread::sleep(Duration::from_millis(200));
            running = self.running();
        }
        let names = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let names: Vec<String> =
            names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        if !names.is_empty() {
            println!("left in the temporary folder: {}", names.join(" "));
        }
        if !running.is_empty() {
            for (pid, line) in &running {
                println!("left running: {pid} {line}");
                let _ = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status();
            }
            bail!("the tests left {} processes running", running.len());
        }
        Ok(())
    }

    /// Processes whose working directory, or command line, is in the folder.
    fn running(&self) -> Vec<(u32, String)> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            let works_in =
                std::fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(&self.folder));
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ").trim().to_owned();
            let names_it = line.contains(&format!("{}/", self.folder.display()));
            if pid != std::process::id() && (works_in || names_it) {
                found.push((pid, line));
            }
        }
        found
    }
}

impl Drop for Playground {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_left_behind_is_found() {
        let playground = Playground::make().expect("makes it");
        assert!(playground.running().is_empty());
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .current_dir(playground.folder())
            .spawn()
            .expect("starts");
        let found = playground.running();
        child.kill().expect("is ours");
        child.wait().expect("ends");
        assert_eq!(found.len(), 1, "{found:?}");
        playground.check().expect("nothing is left");
    }
}
