//! Locks between processes: files that the system unlocks when their holder ends, however it ends.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::{Error, Result, files};

/// Held until dropped.
#[derive(Debug)]
#[must_use = "the lock ends when this is dropped"]
pub struct Lock {
    _file: Flock<File>,
}

impl Lock {
    /// Waits at most `wait` for the lock `path`, which stands for `what`; `doing` is what others read who wait for us.
    pub(crate) async fn acquire(path: &Path, what: &str, doing: &str, wait: Duration) -> Result<Self> {
        let since = Instant::now();
        let mut file = open(path)?;
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(locked) => return Self::sign(locked, path, doing),
                Err((_, errno)) if errno != Errno::EWOULDBLOCK => {
                    return Err(Error::at("lock", path)(errno.into()));
                }
                Err((back, _)) => file = back,
            }
            if since.elapsed() >= wait {
                let (pid, doing) = holder(&mut file);
                return Err(Error::Busy { what: what.to_owned(), pid, doing });
            }
            tokio::time::sleep(Duration::from_millis(50).min(wait)).await;
        }
    }

    /// As [`Self::acquire`], for what is never held for long: blocks the thread.
    pub(crate) fn brief(path: &Path) -> Result<Self> {
        match Flock::lock(open(path)?, FlockArg::LockExclusive) {
            Ok(locked) => Self::sign(locked, path, "for a moment"),
            Err((_, errno)) => Err(Error::at("lock", path)(errno.into())),
        }
    }

    fn sign(mut file: Flock<File>, path: &Path, doing: &str) -> Result<Self> {
        let mut write = || {
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
            write!(file, "{} {doing}", std::process::id())
        };
        write().map_err(Error::at("write", path))?;
        Ok(Self { _file: file })
    }
}

fn open(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.open(path).map_err(Error::at("open", path))
}

fn holder(file: &mut File) -> (u32, String) {
    let mut text = String::new();
    let read = file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_string(&mut text));
    let parsed = read
        .ok()
        .and_then(|_| text.split_once(' '))
        .and_then(|(pid, doing)| Some((pid.parse().ok()?, doing.to_owned())));
    parsed.unwrap_or((0, "unknown".to_owned()))
}

/// Makes the folder of a lock, then takes it.
pub(crate) fn brief_in(folder: &Path, name: &str) -> Result<Lock> {
    files::private_dir(folder)?;
    Lock::brief(&folder.join(name))
}
