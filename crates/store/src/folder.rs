//! A folder as a store.
//!
//! An object is written to `.tmp/`, fsynced, and moved into place; then the folder is fsynced. So a key names a whole object or none, also
//! after the power failed. Creating links the file into place, which the kernel does for one only. Files are 0600, folders 0700.
//! Temporary files carry their process in their names, and are swept when it is gone.
//!
//! From the first object on that was read or written, a folder is known by its inode. One that is gone (a disk that is not mounted), or has
//! another in its place (that disk's empty mountpoint), is a store that cannot be reached until the right one is back: it is never made
//! anew, and nothing is said of what it holds.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use bytes::Bytes;

use crate::runtime::spawn_blocking;
use crate::{Backend, Error, Kind, Listing, Object, Result};

/// A store in a folder of this machine. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Folder {
    root: Arc<PathBuf>,
    /// The root's inode, since an object was read or written. Without the device, which is another when a disk is mounted again.
    inode: Arc<OnceLock<u64>>,
}

const TEMPORARY: &str = ".tmp";
/// How much is written at once. Linux gives larger writes larger pieces of memory, and those come fresh from a virtual machine's host, page by page:
/// 16 MiB at once took ten times as long.
const WRITE_BYTES: usize = 512 << 10;
/// How often a write is begun again because somebody removed its folder, empty at that moment.
const FOLDER_RACES_MAX: usize = 16;

static COUNTER: AtomicU64 = AtomicU64::new(0);

impl Folder {
    /// Opens a folder. Where there is none, the first write makes it.
    ///
    /// # Errors
    /// When something else is there, or it cannot be seen.
    pub fn open(root: PathBuf) -> Result<Self> {
        let seen = match fs::metadata(&root) {
            Ok(metadata) if metadata.is_dir() => Ok(()),
            Ok(_) => Err(ErrorKind::NotADirectory.into()),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
        };
        seen.map_err(|e| Error::io("open", &root.display().to_string(), e))?;
        Ok(Self { root: Arc::new(root), inode: Arc::default() })
    }

    /// An error where the folder is known, and is not the one that is there.
    fn confirm(&self, verb: &'static str, key: &str) -> Result<()> {
        let found = match fs::metadata(&*self.root) {
            Ok(metadata) => metadata.is_dir().then(|| metadata.ino()),
            Err(e) if e.kind() == ErrorKind::PermissionDenied => return Err(Error::io(verb, key, e)),
            Err(_) => None,
        };
        if self.inode.get().is_some_and(|known| found != Some(*known)) {
            let root = self.root.display();
            return Err(Error::new(Kind::Unavailable, verb, key).source(format!(
                "the folder {root} is gone, or another is in its place: is its disk mounted?"
            )));
        }
        Ok(())
    }

    /// Makes the root that was never read from or written to, where it is not there; from then on it is known.
    fn make_root(&self) -> std::io::Result<()> {
        if self.inode.get().is_none() {
            make_folders(&self.root)?;
            let inode = fs::metadata(&*self.root)?.ino();
            self.inode.get_or_init(|| inode);
        }
        Ok(())
    }

    /// Makes a folder below the root, which must be there.
    fn make_below(&self, path: &Path) -> std::io::Result<()> {
        match path.parent().filter(|_| path != self.root.as_path()) {
            _ if path.is_dir() => Ok(()),
            Some(parent) => {
                self.make_below(parent)?;
                make_folder(path, parent)
            }
            None => Err(ErrorKind::NotFound.into()),
        }
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
                self.make_below(&folder)?;
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
        self.make_root()?;
        let mut temporary = self.write_temporary(bytes)?;
        for _ in 0..FOLDER_RACES_MAX {
            self.make_below(parent)?;
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
        let entries = match fs::read_dir(self.root.join(TEMPORARY)) {
            Ok(entries) => entries,
            // Nothing was ever written.
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        };
        for entry in entries {
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
        spawn_blocking(move || {
            this.confirm(verb, &key)?;
            let done = work(&this, &key).map_err(|e| Error::io(verb, &key, e));
            // What was found, missed or written in another folder was not so in this one.
            this.confirm(verb, &key)?;
            done
        })
        .await
    }

    /// As [`Self::blocking`], of an object: where it is found, the folder that it is in is known from then on.
    async fn finding<T: Send + 'static>(
        &self,
        verb: &'static str,
        key: &str,
        work: impl FnOnce(&Self, &str) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T> {
        self.blocking(verb, key, move |this, key| {
            let before = fs::metadata(&*this.root)?.ino();
            let found = work(this, key)?;
            this.inode.get_or_init(|| before);
            Ok(found)
        })
        .await
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
        self.finding("get", key, move |this, key| this.read(key, range)).await
    }
    async fn head(&self, key: &str) -> Result<Object> {
        let size = self.finding("head", key, |this, key| fs::metadata(this.path(key))).await?;
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

/// Makes a folder and those above it.
fn make_folders(path: &Path) -> std::io::Result<()> {
    match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        _ if path.is_dir() => Ok(()),
        Some(parent) => {
            make_folders(parent)?;
            make_folder(path, parent)
        }
        None => make_folder(path, Path::new(".")),
    }
}

/// Makes one folder, 0700 and fsynced in its parent.
fn make_folder(path: &Path, parent: &Path) -> std::io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    match File::open(parent).and_then(|p| p.sync_all()) {
        Err(e) if !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => Err(e),
        _ => Ok(()),
    }
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

    #[tokio::test]
    async fn a_folder_that_is_gone_is_unreachable_and_never_made_anew() {
        let home = tempfile::tempdir().unwrap();
        let (root, aside) = (home.path().join("vault"), home.path().join("aside"));
        let made = Folder::open(root.clone()).unwrap();
        // Nothing is known of it yet, and looking makes nothing.
        assert_eq!(made.get("a/b", None).await.unwrap_err().kind, Kind::NotFound);
        assert_eq!(made.list("").await.unwrap(), []);
        made.sweep().await.unwrap();
        assert!(!root.exists());
        made.put("a/b", Bytes::from_static(b"hello")).await.unwrap();
        let found = Folder::open(root.clone()).unwrap();
        found.get("a/b", None).await.unwrap();
        let never_read = Folder::open(root.clone()).unwrap();

        fs::rename(&root, &aside).unwrap();
        for is_empty_one_there in [false, true] {
            if is_empty_one_there {
                fs::create_dir(&root).unwrap();
            }
            for folder in [&made, &found] {
                let body = || Bytes::from_static(b"x");
                let failed = [
                    folder.put("a/c", body()).await.map(drop),
                    folder.create("a/d", body()).await.map(drop),
                    folder.get("a/b", None).await.map(drop),
                    folder.head("a/b").await.map(drop),
                    folder.list("").await.map(drop),
                    folder.list_level("a").await.map(drop),
                    folder.delete("a/b").await.map(drop),
                    folder.sweep().await.map(drop),
                ];
                for failed in failed {
                    let error = failed.unwrap_err();
                    assert_eq!(error.kind, Kind::Unavailable);
                    assert!(error.source.unwrap().to_string().contains("is its disk mounted?"));
                }
            }
            // One in which nothing was found yet may be a mountpoint whose disk is still to come.
            assert_eq!(never_read.get("a/b", None).await.unwrap_err().kind, Kind::NotFound);
            assert_eq!(root.exists(), is_empty_one_there);
        }
        assert_eq!(fs::read_dir(&root).unwrap().count(), 0);

        fs::remove_dir(&root).unwrap();
        fs::rename(&aside, &root).unwrap();
        for folder in [&made, &found, &never_read] {
            assert_eq!(&folder.get("a/b", None).await.unwrap()[..], b"hello");
        }
        made.put("a/c", Bytes::from_static(b"x")).await.unwrap();
        assert_eq!(found.list("a").await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn a_root_that_vanishes_during_a_write_is_not_made_anew() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().join("vault");
        let folder = Folder::open(root.clone()).unwrap();
        folder.put("a", Bytes::new()).await.unwrap();
        fs::remove_dir_all(&root).unwrap();
        // As if it had been there a moment ago, when that was looked at.
        assert_eq!(folder.write("b/c", b"x", false).unwrap_err().kind(), ErrorKind::NotFound);
        assert!(!root.exists());
    }
}
