//! Files and folders of our own: private, and written whole or not at all.
//!
//! Whatever is written by [`write_atomic`] is, after a crash at any moment, either what was there before or all of the new.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// Makes a folder, and those above it that are missing, for us alone.
pub(crate) fn private_dir(path: &Path) -> Result<()> {
    dir(path, 0o700)
}

/// Makes a folder, and those above it that are missing, with `mode`. One that exists stays as it is.
pub(crate) fn dir(path: &Path, mode: u32) -> Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(path).map_err(Error::at("create folder", path))
}

/// Replaces `path` by `bytes` (0600), durably.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", random_hex(4)?));
    let temporary = path.with_file_name(name);
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_parent(path)
    };
    write().map_err(|e| {
        // What is left of a failed attempt is of no use to anybody.
        let _ = fs::remove_file(&temporary);
        Error::at("write", path)(e)
    })
}

/// Removes what [`write_atomic`] left half-written in `folder` when it was killed, an hour ago or more.
pub(crate) fn sweep(folder: &Path) -> Result<()> {
    for name in names(folder)?.iter().filter(|name| name.ends_with(".tmp")) {
        let path = folder.join(name);
        let age =
            fs::metadata(&path).and_then(|meta| meta.modified()).map(|at| at.elapsed().unwrap_or_default());
        if age.is_ok_and(|age| age > Duration::from_secs(3600)) {
            remove(&path)?;
        }
    }
    Ok(())
}

/// Makes what happened to the names beside `path` durable.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

/// Writes a value as JSON, durably.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let json = serde_json::to_vec_pretty(value)
        .map_err(|e| Error::Damaged { path: path.to_owned(), reason: e.to_string() })?;
    write_atomic(path, &json)
}

/// Reads what [`write_json`] wrote; `None` if there is no such file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::at("read", path)(e)),
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| Error::Damaged { path: path.to_owned(), reason: e.to_string() })
}

/// Removes a folder and all in it, or a file. Nothing there is fine.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let gone = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => Err(e),
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    match gone {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::at("remove", path)(e)),
        _ => Ok(()),
    }
}

/// As [`remove`], on a thread of its own: a database may be large.
pub(crate) async fn remove_large(path: &Path) -> Result<()> {
    let path = path.to_owned();
    match tokio::task::spawn_blocking(move || remove(&path)).await {
        Ok(result) => result,
        Err(e) => Err(Error::io("remove a folder")(io::Error::other(e))),
    }
}

/// The names in a folder, sorted; none if there is no such folder.
pub(crate) fn names(path: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::at("list", path)(e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::at("list", path))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Random bytes from the system, in hexadecimal.
pub(crate) fn random_hex(bytes: usize) -> Result<String> {
    let mut buffer = vec![0; bytes];
    let source = Path::new("/dev/urandom");
    File::open(source).and_then(|mut f| f.read_exact(&mut buffer)).map_err(Error::at("read", source))?;
    Ok(buffer.iter().map(|b| format!("{b:02x}")).collect())
}

/// A number for a text: the same on every machine and for ever (FNV-1a).
pub(crate) fn fingerprint(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
