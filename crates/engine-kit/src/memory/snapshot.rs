//! A snapshot in memory.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Cursor, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use mainstay_engine::{
    Error, FileKind, FileSpec, Kind, Progress, Result, RunAs, SnapshotSink, SnapshotSource, Stored, Taken,
};

type Files = BTreeMap<String, (FileSpec, Bytes)>;

/// Takes the files of a snapshot.
#[derive(Debug, Default)]
pub struct MemorySnapshot {
    files: Mutex<Files>,
}

impl MemorySnapshot {
    /// One without files yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// The paths that it has so far.
    pub fn paths(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// The content of a file that it has so far.
    pub fn content(&self, path: &str) -> Option<Bytes> {
        self.lock().get(path).map(|(_, content)| content.clone())
    }

    /// The finished snapshot, to be read.
    pub fn finish(&self, taken: Taken) -> MemorySnapshotSource {
        MemorySnapshotSource { taken, files: self.lock().clone(), damaged: None }
    }

    fn lock(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SnapshotSink for MemorySnapshot {
    fn put(&self, file: &FileSpec, content: &mut dyn Read) -> Result<Stored> {
        check_path(&file.path)?;
        let mut bytes = Vec::new();
        if file.kind == FileKind::Regular {
            content.read_to_end(&mut bytes).map_err(|e| Error::io(format!("read {}", file.path), e))?;
        }
        let size = bytes.len() as u64;
        let before = self.lock().insert(file.path.clone(), (file.clone(), bytes.into()));
        match before {
            Some(_) => Err(Error::new(Kind::Invalid, format!("{} was given twice", file.path))),
            None => Ok(Stored { bytes_read: size, bytes_new: size }),
        }
    }
}

fn check_path(path: &str) -> Result<()> {
    let bad = path.is_empty() || path.split('/').any(|part| matches!(part, "" | "." | ".."));
    match bad {
        true => Err(Error::new(Kind::Invalid, format!("`{path}` is not a path within a snapshot"))),
        false => Ok(()),
    }
}

/// A finished snapshot.
#[derive(Clone, Debug)]
pub struct MemorySnapshotSource {
    taken: Taken,
    files: Files,
    damaged: Option<String>,
}

impl MemorySnapshotSource {
    /// The same, but reading that file fails as one whose bytes were changed in the vault does: with `Damaged`.
    #[must_use]
    pub fn with_damage(mut self, path: &str) -> Self {
        self.damaged = Some(path.to_owned());
        self
    }

    fn content(&self, path: &str) -> Result<(&FileSpec, &Bytes)> {
        if self.damaged.as_deref() == Some(path) {
            return Err(Error::new(Kind::Damaged, format!("{path}: its hash is another")));
        }
        match self.files.get(path) {
            Some((spec, content)) => Ok((spec, content)),
            None => Err(Error::new(Kind::Invalid, format!("the snapshot has no {path}"))),
        }
    }
}

impl SnapshotSource for MemorySnapshotSource {
    fn taken(&self) -> &Taken {
        &self.taken
    }

    fn files(&self) -> Result<Vec<(FileSpec, u64)>> {
        Ok(self.files.values().map(|(spec, content)| (spec.clone(), content.len() as u64)).collect())
    }

    fn open(&self, path: &str) -> Result<Box<dyn Read + Send>> {
        let (_, content) = self.content(path)?;
        Ok(Box::new(Cursor::new(content.clone())))
    }

    fn place(
        &self,
        files: &[(String, PathBuf)],
        owner: Option<RunAs>,
        _jobs: usize,
        progress: &dyn Progress,
    ) -> Result<u64> {
        let mut total = 0;
        for (path, target) in files {
            progress.check()?;
            let (spec, content) = self.content(path)?;
            put_down(spec, content, target, owner)
                .map_err(|e| Error::io(format!("write {}", target.display()), e))?;
            total += content.len() as u64;
            progress.advance(content.len() as u64);
        }
        Ok(total)
    }
}

fn put_down(spec: &FileSpec, content: &[u8], target: &Path, owner: Option<RunAs>) -> io::Result<()> {
    if let Some(parent) = target.parent() {
        make_folders(parent, owner)?;
    }
    match &spec.kind {
        FileKind::Directory => {
            make_folders(target, owner)?;
            return fs::set_permissions(target, fs::Permissions::from_mode(spec.mode));
        }
        FileKind::Symlink { target: to } => symlink(to, target)?,
        FileKind::Regular => {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(target)?;
            for (index, piece) in content.chunks(64 << 10).enumerate() {
                if piece.iter().any(|byte| *byte != 0) {
                    file.seek(SeekFrom::Start((index as u64) * (64 << 10)))?;
                    file.write_all(piece)?;
                }
            }
            file.set_len(content.len() as u64)?;
            file.set_permissions(fs::Permissions::from_mode(spec.mode))?;
        }
    }
    own(target, owner)
}

fn make_folders(path: &Path, owner: Option<RunAs>) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_folders(parent, owner)?;
    }
    fs::create_dir(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    own(path, owner)
}

fn own(path: &Path, owner: Option<RunAs>) -> io::Result<()> {
    match owner {
        Some(RunAs { uid, gid }) => std::os::unix::fs::lchown(path, Some(uid), Some(gid)),
        None => Ok(()),
    }
}
