//! Many files of a snapshot onto a disk, pack by pack.
//!
//! A pack is fetched and decrypted once for all that is wanted of it, by several threads; pieces are checked against their hashes and
//! written where they belong, and what is zeros stays a hole. Only so much of the index is in memory at once. A verification does the same but
//! for the writing, and goes on after what is damaged.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Scope, ScopedJoinHandle};

use mainstay_engine::{self as engine, FileKind, Progress, RunAs};

use crate::index::{Extent, Run, ZEROS};
use crate::reader::{SnapshotReader, decompressor};
use crate::{Error, Result};

/// Threads at most; each holds one pack twice.
const JOBS_MAX: usize = 4;
/// The index of so much is in memory at once.
const BATCH_PIECES_MAX: usize = 512 << 10;
const BATCH_EXTENTS_MAX: usize = 256 << 10;
/// Files that are kept open.
const OPEN_FILES_MAX: usize = 128;
/// From so many files on, the whole filesystem is synced rather than each of them.
const SYNC_ALL_FROM: usize = 32;
/// And each time that so much was written, so that the disk works while the rest is still being unpacked.
const SYNC_EACH_BYTES: u64 = 128 << 20;

/// A regular file that is being placed.
struct Target {
    path: String,
    /// `None`: its bytes are only checked.
    disk: Option<PathBuf>,
    mode: u32,
}

/// Some bytes of a file, from a pack.
struct Want {
    target: usize,
    run: Arc<Run>,
    /// The first piece in it.
    piece: usize,
    extent: Extent,
}

pub(crate) fn place(
    reader: &SnapshotReader,
    files: &[(String, PathBuf)],
    owner: Option<RunAs>,
    jobs: usize,
    progress: &dyn Progress,
) -> engine::Result<u64> {
    reader.vault.require_identity()?;
    let mut folders = Vec::new();
    let mut targets = Vec::new();
    let mut bytes = 0;
    for (path, disk) in files {
        let (spec, size, _) = reader.file(path)?;
        match &spec.kind {
            FileKind::Directory => {
                make_folders(disk, owner)?;
                folders.push((disk.as_path(), spec.mode));
            }
            FileKind::Symlink { target } => {
                make_folders(parent(disk), owner)?;
                std::os::unix::fs::symlink(target, disk).map_err(|e| io("make link", disk, e))?;
                own(disk, owner)?;
            }
            FileKind::Regular => {
                make_folders(parent(disk), owner)?;
                let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(disk);
                let file = file.map_err(|e| io("create", disk, e))?;
                file.set_len(size).map_err(|e| io("size", disk, e))?;
                targets.push(Target { path: path.clone(), disk: Some(disk.clone()), mode: spec.mode });
                bytes += size;
            }
        }
    }
    let disks: Vec<_> = files.iter().map(|(_, disk)| disk.as_path()).collect();
    let whole = if disks.len() >= SYNC_ALL_FROM { Some(Filesystems::of(&disks)?) } else { None };
    std::thread::scope(|scope| {
        let (early, syncing) = whole.as_ref().map(|whole| Early::begin(scope, whole)).unzip();
        let placing =
            Placing { reader, targets: &targets, open: Mutex::default(), progress, checked: None, early };
        let placed = placing.all(jobs.clamp(1, JOBS_MAX)).map_err(|mut errors| errors.swap_remove(0));
        drop(placing);
        let panicked = |panic| std::panic::resume_unwind(panic);
        let synced = syncing.map_or(Ok(()), |thread| thread.join().unwrap_or_else(panicked));
        placed.and(synced)
    })?;
    for target in &targets {
        if let Some(disk) = &target.disk {
            set_mode(disk, target.mode)?;
            own(disk, owner)?;
        }
    }
    // Folders last: one that may not be written to would have kept us from filling it.
    for (folder, mode) in folders.iter().rev() {
        set_mode(folder, *mode)?;
        own(folder, owner)?;
    }
    match whole {
        Some(whole) => whole.sync()?,
        None => sync_each(&disks)?,
    }
    Ok(bytes)
}

/// Reads and checks all content of a snapshot but what `checked` says was checked already; gives all that is wrong. Blocks.
pub(crate) fn check(
    reader: &SnapshotReader,
    checked: &Mutex<HashSet<u64>>,
    jobs: usize,
) -> Vec<engine::Error> {
    if let Err(error) = reader.vault.require_identity() {
        return vec![error.into()];
    }
    let files = reader.index.files.values().filter(|(spec, _)| spec.kind == FileKind::Regular);
    let target = |(spec, _): &(mainstay_engine::FileSpec, u64)| Target {
        path: spec.path.clone(),
        disk: None,
        mode: 0,
    };
    let targets: Vec<_> = files.map(target).collect();
    let progress = &mainstay_engine::Quiet;
    let placing = Placing {
        reader,
        targets: &targets,
        open: Mutex::default(),
        progress,
        checked: Some(checked),
        early: None,
    };
    placing.all(jobs.clamp(1, JOBS_MAX)).err().unwrap_or_default()
}

struct Placing<'a> {
    reader: &'a SnapshotReader,
    targets: &'a [Target],
    open: Mutex<HashMap<usize, Arc<File>>>,
    progress: &'a dyn Progress,
    /// Set for a verification: it goes on after errors, and leaves out what is in here.
    checked: Option<&'a Mutex<HashSet<u64>>>,
    early: Option<Early>,
}

/// Syncs what was written so far, on a thread of its own, which ends when this is dropped.
struct Early {
    written: AtomicU64,
    wake: SyncSender<()>,
}

impl Early {
    fn begin<'scope>(
        scope: &'scope Scope<'scope, '_>,
        whole: &'scope Filesystems,
    ) -> (Self, ScopedJoinHandle<'scope, engine::Result<()>>) {
        let (wake, woken) = std::sync::mpsc::sync_channel(1);
        let thread = scope.spawn(move || {
            while woken.recv().is_ok() {
                whole.sync()?;
            }
            Ok(())
        });
        (Self { written: AtomicU64::new(0), wake }, thread)
    }

    fn wrote(&self, bytes: u64) {
        let before = self.written.fetch_add(bytes, Ordering::Relaxed);
        if before / SYNC_EACH_BYTES != (before + bytes) / SYNC_EACH_BYTES {
            // Full: one is waiting already.
            let _ = self.wake.try_send(());
        }
    }
}

/// What a verification remembers having checked, at most: 8 bytes each.
const CHECKED_MAX: usize = 4 << 20;

impl Placing<'_> {
    /// Fails with at least one error; of a verification, with all.
    fn all(&self, jobs: usize) -> Result<(), Vec<engine::Error>> {
        let mut failures = Vec::new();
        let (mut wants, mut pieces, mut extents) = (BTreeMap::new(), 0, 0);
        for (n, target) in self.targets.iter().enumerate() {
            let mut file = || -> engine::Result<()> {
                let (_, size, runs) = self.reader.file(&target.path)?;
                let mut at = 0;
                for found in runs {
                    let run = Arc::new(self.reader.index.run_blocking(found)?);
                    if run.at != at {
                        return Err(self.leaves_out(&target.path).into());
                    }
                    at += run.length();
                    pieces += run.hashes.len();
                    extents += run.extents.len();
                    self.want(n, &run, &mut wants)?;
                    if pieces >= BATCH_PIECES_MAX || extents >= BATCH_EXTENTS_MAX {
                        failures.extend(self.batch(std::mem::take(&mut wants), jobs));
                        (pieces, extents) = (0, 0);
                    }
                }
                if at == size { Ok(()) } else { Err(self.leaves_out(&target.path).into()) }
            };
            let done = file();
            failures.extend(done.err());
            if !failures.is_empty() && self.checked.is_none() {
                return Err(failures);
            }
        }
        failures.extend(self.batch(wants, jobs));
        if failures.is_empty() { Ok(()) } else { Err(failures) }
    }

    fn leaves_out(&self, path: &str) -> Error {
        self.reader.damaged(&format!("its index leaves out a part of {path}"))
    }

    /// Adds what a run needs of each pack. Every piece must lie in one extent, or be zeros.
    fn want(&self, target: usize, run: &Arc<Run>, wants: &mut BTreeMap<u64, Vec<Want>>) -> Result<()> {
        let mut extents = run.extents.iter().peekable();
        let mut zeros = 0;
        // How far the extent that was taken last reaches.
        let mut covered = run.at;
        for (piece, (at, length, hash)) in run.pieces().enumerate() {
            if at < covered {
                if at + length > covered {
                    return Err(self.leaves_out(&run.path));
                }
                continue;
            }
            match extents.next_if(|extent| extent.at == at && extent.length >= length) {
                Some(extent) => {
                    covered = at + extent.length;
                    if self.was_checked(run, piece, extent) {
                        continue;
                    }
                    wants.entry(extent.pack).or_default().push(Want {
                        target,
                        run: Arc::clone(run),
                        piece,
                        extent: *extent,
                    });
                }
                None if *hash == ZEROS => zeros += length,
                None => return Err(self.leaves_out(&run.path)),
            }
        }
        self.progress.advance(zeros);
        Ok(())
    }

    /// Whether a verification has seen these very bytes in this very place; remembers them.
    fn was_checked(&self, run: &Run, piece: usize, extent: &Extent) -> bool {
        let Some(checked) = self.checked else { return false };
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.reader.index.packs.get(&extent.pack).map_or("", |pack| &pack.id).as_bytes());
        for n in [extent.length, extent.offset, extent.skip] {
            hasher.update(&n.to_le_bytes());
        }
        hasher.update(run.hashes[piece..].as_flattened());
        let mut short = [0; 8];
        short.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        let mut checked = checked.lock().unwrap_or_else(PoisonError::into_inner);
        match checked.len() < CHECKED_MAX {
            true => !checked.insert(u64::from_le_bytes(short)),
            false => checked.contains(&u64::from_le_bytes(short)),
        }
    }

    fn batch(&self, wants: BTreeMap<u64, Vec<Want>>, jobs: usize) -> Vec<engine::Error> {
        let mut packs: Vec<_> = wants.into_iter().collect();
        for (_, wants) in &mut packs {
            wants.sort_unstable_by_key(|want| (want.extent.offset, want.target, want.extent.at));
        }
        let (next, stop, failures) = (AtomicUsize::new(0), AtomicBool::new(false), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for _ in 0..jobs.min(packs.len()) {
                scope.spawn(|| {
                    while let Some((pack, wants)) = packs.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                        if let Err(error) = self.pack(*pack, wants) {
                            stop.store(self.checked.is_none(), Ordering::Relaxed);
                            failures.lock().unwrap_or_else(PoisonError::into_inner).push(error);
                        }
                    }
                });
            }
        });
        failures.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn pack(&self, n: u64, wants: &[Want]) -> engine::Result<()> {
        let mut wanted = 0;
        for want in wants.chunk_by(|a, b| a.extent.offset == b.extent.offset) {
            wanted += want[0].extent.packed;
        }
        let mut pack = self.reader.pack(n, wanted)?;
        let (mut slot, mut packed, mut frame) = (None, Vec::new(), Vec::new());
        for wants in wants.chunk_by(|a, b| a.extent.offset == b.extent.offset) {
            self.progress.check()?;
            pack.frame(&wants[0].extent, decompressor(&mut slot)?, &mut packed, &mut frame)?;
            for want in wants {
                self.write(want, &frame)?;
            }
        }
        Ok(())
    }

    fn write(&self, want: &Want, frame: &[u8]) -> engine::Result<()> {
        let Want { target, run, piece, extent } = want;
        let target_path = &self.targets[*target];
        let damaged = |reason: String| {
            let info = &self.reader.index.packs[&extent.pack];
            Error::damaged(crate::index::pack_key(&self.reader.prefix, &info.id), reason)
        };
        let start = usize::try_from(extent.skip).unwrap_or(usize::MAX);
        let end = start.saturating_add(usize::try_from(extent.length).unwrap_or(usize::MAX));
        let bytes = frame
            .get(start..end)
            .ok_or_else(|| damaged("a frame of it is shorter than its index says".into()))?;
        let (mut rest, mut n) = (bytes, *piece);
        while !rest.is_empty() {
            let length = usize::try_from(run.piece_length(n)).unwrap_or(0);
            let (one, others) = rest
                .split_at_checked(length)
                .filter(|_| length > 0)
                .ok_or_else(|| self.leaves_out(&run.path))?;
            if run.hashes.get(n) != Some(&self.reader.vault.keys().piece_hash(one)) {
                return Err(damaged(format!("its bytes are not those of {}", target_path.path)).into());
            }
            (rest, n) = (others, n + 1);
        }
        if let Some(disk) = &target_path.disk {
            let file = self.file(*target, disk)?;
            file.write_all_at(bytes, extent.at).map_err(|e| io("write", disk, e))?;
            if let Some(early) = &self.early {
                early.wrote(extent.length);
            }
        }
        self.progress.advance(extent.length);
        Ok(())
    }

    fn file(&self, target: usize, disk: &Path) -> engine::Result<Arc<File>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.get(&target) {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(OpenOptions::new().write(true).open(disk).map_err(|e| io("open", disk, e))?);
        if open.len() >= OPEN_FILES_MAX {
            open.clear();
        }
        open.insert(target, Arc::clone(&file));
        Ok(file)
    }
}

fn io(verb: &str, path: &Path, error: std::io::Error) -> engine::Error {
    engine::Error::io(format!("{verb} {}", path.display()), error)
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// Makes a folder and those above it; what is made belongs to `owner`.
fn make_folders(path: &Path, owner: Option<RunAs>) -> engine::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(above) = path.parent() {
        make_folders(above, owner)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => own(path, owner),
        Err(e) if e.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(e) => Err(io("make folder", path, e)),
    }
}

fn own(path: &Path, owner: Option<RunAs>) -> engine::Result<()> {
    let Some(RunAs { uid, gid }) = owner else { return Ok(()) };
    std::os::unix::fs::lchown(path, Some(uid), Some(gid)).map_err(|e| io("give away", path, e))
}

fn set_mode(path: &Path, mode: u32) -> engine::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o7777))
        .map_err(|e| io("set mode of", path, e))
}

/// The filesystems of what is placed, opened before anything is written: the kernel tells each descriptor once of every write that failed behind it.
struct Filesystems(BTreeMap<u64, (PathBuf, File)>);

impl Filesystems {
    fn of(disks: &[&Path]) -> engine::Result<Self> {
        let mut all = BTreeMap::new();
        for disk in disks {
            let folder = parent(disk);
            let device = fs::metadata(folder).map_err(|e| io("look at", folder, e))?.dev();
            if let Entry::Vacant(entry) = all.entry(device) {
                let file = File::open(folder).map_err(|e| io("open", folder, e))?;
                entry.insert((folder.to_owned(), file));
            }
        }
        Ok(Self(all))
    }

    fn sync(&self) -> engine::Result<()> {
        for (folder, file) in self.0.values() {
            nix::unistd::syncfs(file).map_err(|e| io("sync the filesystem of", folder, e.into()))?;
        }
        Ok(())
    }
}

/// Makes each of a few files durable.
fn sync_each(disks: &[&Path]) -> engine::Result<()> {
    let mut folders = BTreeSet::new();
    for disk in disks {
        let metadata = fs::symlink_metadata(disk).map_err(|e| io("look at", disk, e))?;
        if !metadata.is_symlink() {
            File::open(disk).and_then(|file| file.sync_all()).map_err(|e| io("sync", disk, e))?;
        }
        folders.insert(parent(disk));
    }
    for folder in folders {
        File::open(folder).and_then(|file| file.sync_all()).map_err(|e| io("sync", folder, e))?;
    }
    Ok(())
}
