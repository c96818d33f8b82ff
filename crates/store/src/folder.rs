//! A folder as a store.
//!
//! An object is written to `.tmp/`, fsynced, and moved into place; then the folder is fsynced. So a key names a whole object or none, also
//! after the power failed. Creating links the file into place, which the kernel does for one only. Files are 0600, folders 0700.
//! Temporary files carry their process in their names, and are swept when it is gone.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;

use crate::runtime::spawn_blocking;
use crate::{Backend, Error, Kind, Listing, Object, Result};

/// A store in a folder of this machine. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Folder {
    root: Arc<PathBuf>,
}

const TEMPORARY: &str = ".tmp";
/// How much is written at once. Linux gives larger writes larger pieces of memory, and those come fresh from a virtual machine's host, page by page:
/// 16 MiB at once took ten times as long.
const WRITE_BYTES: usize = 512 << 10;
/// How often a write is begun again because somebody removed its folder, empty at that moment.
const FOLDER_RACES_MAX: usize = 16;

static COUNTER: AtomicU64 = AtomicU64::new(0);

impl Folder {
    /// Opens a folder, and makes it where there is none.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(root: PathBuf) -> Result<Self> {
        let name = root.display().to_string();
        make_folders(&root.join(TEMPORARY)).map_err(|e| Error::io("open", &name, e))?;
        Ok(Self { root: Arc::new(root) })
    }

    fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    /// Writes and fsyncs a file under a name of its own.
    fn write_temporary(&self, bytes: &[u8]) -> std::io::Result<Temporary> {
        let n = COUNTER.fetch_add(1, Ordering::Relaxed);
        let folder = self.root.join(TEMPORARY);
        let path = folder.join(format!("{}-{}-{n}", std::process::id(), process_start(std::process::id())));
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let file = match options.open(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                make_folders(&folder)?;
                options.open(&path)
            }
            other => other,
        };
        let temporary = Temporary { path, gone: false };
        let mut file = file?;
        for piece in bytes.chunks(WRITE_BYTES) {
            file.write_all(piece)?;
        }
        file.sync_all()?;
        Ok(temporary)
    }

    fn write(&self, key: &str, bytes: &[u8], create: bool) -> std::io::Result<()> {
        let target = self.path(key);
        let parent = target.parent().unwrap_or(&self.root);
        let mut temporary = self.write_temporary(bytes)?;
        for _ in 0..FOLDER_RACES_MAX {
            make_folders(parent)?;
            let moved = match create {
                true => fs::hard_link(&temporary.path, &target),
                false => fs::rename(&temporary.path, &target).inspect(|()| temporary.gone = true),
            };
            match moved {
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(e),
                Ok(()) => return File::open(parent)?.sync_all(),
            }
        }
        Err(ErrorKind::NotFound.into())
    }

    fn read(&self, key: &str, range: Option<(u64, u64)>) -> std::io::Result<Bytes> {
        let mut file = File::open(self.path(key))?;
        let size = file.metadata()?.len();
        let Some((start, length)) = range else {
            let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
            file.read_to_end(&mut bytes)?;
            return Ok(bytes.into());
        };
        let length = length.min(size.saturating_sub(start));
        let mut bytes = vec![0; usize::try_from(length).map_err(|_| ErrorKind::InvalidInput)?];
        file.read_exact_at(&mut bytes, start)?;
        Ok(bytes.into())
    }

    fn remove(&self, key: &str) -> std::io::Result<()> {
        let path = self.path(key);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        // Empty folders go as well; one that is not empty stays, and that is how it ends.
        let mut folder = path.parent();
        while let Some(empty) = folder.filter(|f| *f != self.root.as_path()) {
            if fs::remove_dir(empty).is_err() {
                break;
            }
            folder = empty.parent();
        }
        Ok(())
    }

    fn walk(&self, prefix: &str) -> std::io::Result<Vec<Object>> {
        let mut objects = Vec::new();
        let mut folders = vec![prefix.to_owned()];
        while let Some(folder) = folders.pop() {
            let level = self.level(&folder)?;
            objects.extend(level.objects);
            folders.extend(level.folders.into_iter().map(|name| join(&folder, &name)));
        }
        objects.sort();
        Ok(objects)
    }

    fn level(&self, prefix: &str) -> std::io::Result<Listing> {
        let mut listing = Listing::default();
        let entries = match fs::read_dir(self.path(prefix)) {
            Ok(entries) => entries,
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(listing);
            }
            Err(e) => return Err(e),
        };
        for entry in entries {
            let entry = entry?;
            // Names that are not ours to have written cannot be keys.
            let Some(name) = entry.file_name().to_str().filter(|n| !n.starts_with('.')).map(str::to_owned)
            else {
                continue;
            };
            // What vanishes while we look was deleted.
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                listing.folders.push(name);
            } else if metadata.is_file() {
                listing.objects.push(Object { key: join(prefix, &name), bytes: metadata.len() });
            }
        }
        listing.folders.sort();
        listing.objects.sort();
        Ok(listing)
    }

    fn sweep_temporary(&self) -> std::io::Result<()> {
        for entry in fs::read_dir(self.root.join(TEMPORARY))? {
            let entry = entry?;
            let name = entry.file_name();
            let mut parts = name.to_str().unwrap_or("").split('-');
            let owner = parts.next().and_then(|pid| pid.parse().ok()).zip(parts.next());
            let alive = owner.is_some_and(|(pid, start)| process_start(pid) == start && start != "0");
            if !alive {
                match fs::remove_file(entry.path()) {
                    Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    async fn blocking<T: Send + 'static>(
        &self,
        verb: &'static str,
        key: &str,
        work: impl FnOnce(&Self, &str) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let (this, key) = (self.clone(), key.to_owned());
        spawn_blocking(move || work(&this, &key).map_err(|e| Error::io(verb, &key, e))).await
    }
}

#[async_trait]
impl Backend for Folder {
    fn name(&self) -> String {
        format!("file:{}", self.root.display())
    }
    async fn put(&self, key: &str, bytes: Bytes) -> Result<()> {
        self.blocking("put", key, move |this, key| this.write(key, &bytes, false)).await
    }
    async fn create(&self, key: &str, bytes: Bytes) -> Result<()> {
        self.blocking("create", key, move |this, key| this.write(key, &bytes, true)).await
    }
    async fn get(&self, key: &str, range: Option<(u64, u64)>) -> Result<Bytes> {
        self.blocking("get", key, move |this, key| this.read(key, range)).await
    }
    async fn head(&self, key: &str) -> Result<Object> {
        let size = self.blocking("head", key, |this, key| fs::metadata(this.path(key))).await?;
        if !size.is_file() {
            return Err(Error::new(Kind::NotFound, "head", key));
        }
        Ok(Object { key: key.to_owned(), bytes: size.len() })
    }
    async fn list(&self, prefix: &str) -> Result<Vec<Object>> {
        self.blocking("list", prefix, |this, prefix| this.walk(prefix)).await
    }
    async fn list_level(&self, prefix: &str) -> Result<Listing> {
        self.blocking("list", prefix, |this, prefix| this.level(prefix)).await
    }
    async fn delete(&self, key: &str) -> Result<()> {
        self.blocking("delete", key, |this, key| this.remove(key)).await
    }
    async fn sweep(&self) -> Result<()> {
        self.blocking("sweep", "", |this, _| this.sweep_temporary()).await
    }
}

/// A file that is removed unless it was moved away.
struct Temporary {
    path: PathBuf,
    gone: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.gone {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

/// Makes a folder and those above it, each 0700 and fsynced in its parent.
fn make_folders(path: &Path) -> std::io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        make_folders(parent)?;
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        match File::open(parent).and_then(|p| p.sync_all()) {
            Err(e) if !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => {
                return Err(e);
            }
            _ => {}
        }
    }
    Ok(())
}

/// When a process started, in clock ticks since the machine did; `0` when there is no such process.
fn process_start(pid: u32) -> String {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The second field is a name in parentheses that may hold anything; the start is the 20th after it.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    after_name.split_whitespace().nth(19).unwrap_or("0").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[tokio::test]
    async fn objects_are_private_whole_and_swept() {
        let home = tempfile::tempdir().unwrap();
        let folder = Folder::open(home.path().join("deep/vault")).unwrap();
        folder.put("a/b/c", Bytes::from_static(b"hello")).await.unwrap();
        let file = home.path().join("deep/vault/a/b/c");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(file.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(folder.create("a/b/c", Bytes::new()).await.unwrap_err().kind, Kind::Exists);
        assert_eq!(&folder.get("a/b/c", Some((1, 100))).await.unwrap()[..], b"ello");
        assert_eq!(folder.get("a/b", None).await.unwrap_err().kind, Kind::Other);
        assert_eq!(folder.get("a/x", None).await.unwrap_err().kind, Kind::NotFound);
        // Ours stays, that of a process that is gone goes.
        let temporary = home.path().join("deep/vault/.tmp");
        let ours = folder.write_temporary(b"x").unwrap();
        fs::write(temporary.join("4194304-1-0"), b"left").unwrap();
        folder.sweep().await.unwrap();
        assert_eq!(fs::read_dir(&temporary).unwrap().count(), 1);
        drop(ours);
        assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0);
        folder.delete("a/b/c").await.unwrap();
        folder.delete("a/b/c").await.unwrap();
        assert!(!home.path().join("deep/vault/a").exists());
    }
}
