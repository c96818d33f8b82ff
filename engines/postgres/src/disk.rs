//! Files on this machine that servers will read: written whole, private, and owned by the user that runs the server.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mainstay_engine::{Error, Result, RunAs};

/// How long what a killed program had started may go on writing.
const LAST_WRITES: Duration = Duration::from_secs(5);

fn failed(verb: &str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let what = format!("{verb} {}", path.display());
    move |error| Error::io(what, error)
}

/// Gives a path to the user that servers run as.
///
/// # Errors
/// `Io`.
pub fn give(path: &Path, owner: Option<RunAs>) -> Result<()> {
    match owner {
        Some(RunAs { uid, gid }) => chown(path, Some(uid), Some(gid)).map_err(failed("give away", path)),
        None => Ok(()),
    }
}

/// Makes a folder, 0700; one that is there is left as it is.
///
/// # Errors
/// `Io`.
pub fn folder(path: &Path, owner: Option<RunAs>) -> Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(failed("make", path)(error)),
        Ok(()) => give(path, owner),
    }
}

/// Writes a file whole or not at all: beside it first, then renamed.
///
/// # Errors
/// `Io`.
pub fn write(path: &Path, content: &[u8], mode: u32, owner: Option<RunAs>) -> Result<()> {
    put(path, content, mode, owner, true)
}

/// As [`write()`], without waiting for the disk: for files that nobody needs after a crash.
///
/// # Errors
/// `Io`.
pub fn write_passing(path: &Path, content: &[u8], owner: Option<RunAs>) -> Result<()> {
    put(path, content, 0o600, owner, false)
}

fn put(path: &Path, content: &[u8], mode: u32, owner: Option<RunAs>, durable: bool) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let beside = PathBuf::from(name);
    let write = || -> std::io::Result<()> {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        if let Some(RunAs { uid, gid }) = owner {
            chown(&beside, Some(uid), Some(gid))?;
        }
        file.write_all(content)?;
        if durable {
            file.sync_all()?;
        }
        fs::rename(&beside, path)
    };
    write().map_err(failed("write", path))
}

/// Removes a file if it is there.
///
/// # Errors
/// `Io`.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Removes a folder and all in it, if it is there.
///
/// # Errors
/// `Io`.
pub fn remove_all(path: &Path) -> Result<()> {
    use std::io::ErrorKind::{DirectoryNotEmpty, NotFound};
    let begun = Instant::now();
    loop {
        match fs::remove_dir_all(path) {
            // What a program that was killed had started may be at it for a moment yet.
            Err(error) if error.kind() == DirectoryNotEmpty && begun.elapsed() < LAST_WRITES => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(error) if error.kind() != NotFound => return Err(failed("remove", path)(error)),
            _ => return Ok(()),
        }
    }
}

/// The last lines of a log from `from` on, for a message: at most 20.
pub fn log_tail(path: &Path, from: u64) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let read = || -> std::io::Result<String> {
        let mut file = fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(from.max(length.saturating_sub(16 << 10))))?;
        let mut bytes = Vec::new();
        file.take(16 << 10).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// How long a file is now; 0 when there is none.
pub fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |data| data.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_still_written_to_is_removed_when_that_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.partial");
        fs::create_dir(&path).unwrap();
        let writing = path.clone();
        let writer = std::thread::spawn(move || {
            let begun = Instant::now();
            let mut n = 0;
            while begun.elapsed() < Duration::from_millis(300) && writing.is_dir() {
                n += 1;
                let _ = fs::write(writing.join(n.to_string()), b"");
            }
        });
        let removed = remove_all(&path);
        writer.join().unwrap();
        removed.unwrap();
        remove_all(&path).unwrap();
        assert!(!path.exists());
    }
}
