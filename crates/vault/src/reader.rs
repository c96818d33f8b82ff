//! Reading a snapshot: its list of files, one file in order, or many onto a disk.

use std::fmt;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use zstd::bulk::Decompressor;

use mainstay_engine::{self as engine, FileKind, FileSpec, Progress, RunAs, SnapshotSource, Taken};

use crate::index::{Extent, Index, Run, RunRef, ZEROS, pack_key};
use crate::keys::Keys;
use crate::manifest::Manifest;
use crate::packs::Pack;
use crate::place::place;
use crate::{ClusterVault, Error, Result, SnapshotRecord, Vault};

/// A snapshot, opened for reading.
pub struct SnapshotReader {
    pub(crate) vault: Vault,
    /// The incarnation's prefix, below which its packs are.
    pub(crate) prefix: String,
    pub(crate) record: SnapshotRecord,
    pub(crate) index: Arc<Index>,
}

impl SnapshotReader {
    pub(crate) async fn open(
        cluster: &ClusterVault,
        record: SnapshotRecord,
        manifest: &Manifest,
    ) -> Result<Arc<Self>> {
        let prefix = format!("{}/{}", cluster.prefix(), manifest.incarnation);
        let folder = format!("{prefix}/snap/{}", manifest.id);
        let index = Index::load(cluster.vault(), &folder, manifest.index.clone()).await?;
        if index.files.len() as u64 != manifest.files {
            return Err(Error::damaged(folder, "its index has not as many files as its manifest says"));
        }
        Ok(Arc::new(Self { vault: cluster.vault().clone(), prefix, record, index: Arc::new(index) }))
    }

    /// What is known of it.
    pub fn record(&self) -> &SnapshotRecord {
        &self.record
    }

    pub(crate) fn file(&self, path: &str) -> Result<(&FileSpec, u64, &[RunRef])> {
        let missing = || Error::NotFound(format!("{path} in snapshot {}", self.record.id));
        let (spec, size) = self.index.files.get(path).ok_or_else(missing)?;
        Ok((spec, *size, self.index.runs.get(path).map_or(&[], Vec::as_slice)))
    }

    pub(crate) fn pack(&self, n: u64, wanted: u64) -> Result<Pack> {
        let info = self.index.packs.get(&n).ok_or_else(|| self.damaged("its index names no such pack"))?;
        Pack::open(&self.vault, pack_key(&self.prefix, &info.id), info.bytes, wanted)
    }

    pub(crate) fn damaged(&self, reason: &str) -> Error {
        Error::damaged(format!("{}/snap/{}", self.prefix, self.record.id), reason)
    }
}

impl SnapshotSource for SnapshotReader {
    fn taken(&self) -> &Taken {
        &self.record.taken
    }

    fn files(&self) -> engine::Result<Vec<(FileSpec, u64)>> {
        Ok(self.index.files.values().cloned().collect())
    }

    fn open(&self, path: &str) -> engine::Result<Box<dyn Read + Send>> {
        let (spec, size, runs) = self.file(path)?;
        if spec.kind != FileKind::Regular {
            return Err(Error::Invalid(format!("{path} is no file")).into());
        }
        self.vault.require_identity()?;
        let frames = Frames::new(self, size);
        Ok(Box::new(Contents {
            index: Arc::clone(&self.index),
            keys: Arc::clone(self.vault.keys()),
            frames,
            runs: runs.to_vec(),
            next: 0,
            run: None,
            left: size,
            path: path.to_owned(),
            piece: Vec::new(),
            given: 0,
        }))
    }

    fn place(
        &self,
        files: &[(String, PathBuf)],
        owner: Option<RunAs>,
        jobs: usize,
        progress: &dyn Progress,
    ) -> engine::Result<u64> {
        place(self, files, owner, jobs, progress)
    }
}

impl fmt::Debug for SnapshotReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotReader").field("id", &self.record.id).finish_non_exhaustive()
    }
}

/// The frame that was asked for last, and its pack, kept open.
pub(crate) struct Frames {
    vault: Vault,
    prefix: String,
    index: Arc<Index>,
    wanted: u64,
    pack: Option<(u64, Pack)>,
    frame_at: Option<(u64, u64)>,
    frame: Vec<u8>,
    packed: Vec<u8>,
    decompressor: Option<Decompressor<'static>>,
}

impl Frames {
    /// `wanted`: about how many bytes will be asked for of one pack.
    pub fn new(reader: &SnapshotReader, wanted: u64) -> Self {
        Self {
            vault: reader.vault.clone(),
            prefix: reader.prefix.clone(),
            index: Arc::clone(&reader.index),
            wanted,
            pack: None,
            frame_at: None,
            frame: Vec::new(),
            packed: Vec::new(),
            decompressor: None,
        }
    }

    /// The bytes of an extent.
    pub fn bytes(&mut self, extent: &Extent) -> Result<&[u8]> {
        if self.frame_at != Some((extent.pack, extent.offset)) {
            self.frame_at = None;
            let pack = match self.pack.take() {
                Some((n, pack)) if n == extent.pack => pack,
                _ => self.open(extent)?,
            };
            let (_, pack) = self.pack.insert((extent.pack, pack));
            let decompressor = decompressor(&mut self.decompressor)?;
            pack.frame(extent, decompressor, &mut self.packed, &mut self.frame)?;
            self.frame_at = Some((extent.pack, extent.offset));
        }
        let start = usize::try_from(extent.skip).unwrap_or(usize::MAX);
        let end = start.saturating_add(usize::try_from(extent.length).unwrap_or(usize::MAX));
        match self.frame.get(start..end) {
            Some(bytes) => Ok(bytes),
            None => Err(Error::damaged(self.key(extent), "a frame of it is shorter than its index says")),
        }
    }

    fn open(&self, extent: &Extent) -> Result<Pack> {
        let info = self.index.packs.get(&extent.pack);
        let info =
            info.ok_or_else(|| Error::damaged(&self.prefix, "an index names a pack that it does not know"))?;
        Pack::open(&self.vault, pack_key(&self.prefix, &info.id), info.bytes, self.wanted)
    }

    /// The key of the pack that an extent is in.
    pub fn key(&self, extent: &Extent) -> String {
        self.index
            .packs
            .get(&extent.pack)
            .map_or_else(|| self.prefix.clone(), |info| pack_key(&self.prefix, &info.id))
    }
}

/// The decompressor in the slot, made if there is none.
pub(crate) fn decompressor<'a>(
    slot: &'a mut Option<Decompressor<'static>>,
) -> Result<&'a mut Decompressor<'static>> {
    let made = match slot.take() {
        Some(made) => made,
        None => Decompressor::new().map_err(|e| Error::io("decompress", e))?,
    };
    Ok(slot.insert(made))
}

/// The content of one file, piece by piece, each checked before it is given.
struct Contents {
    index: Arc<Index>,
    keys: Arc<Keys>,
    frames: Frames,
    runs: Vec<RunRef>,
    next: usize,
    /// The run that is being read, how many of its pieces and extents are done, and where in the file.
    run: Option<(Run, usize, usize, u64)>,
    left: u64,
    path: String,
    piece: Vec<u8>,
    given: usize,
}

impl Contents {
    /// Makes the next piece the current one; false at the end.
    fn next_piece(&mut self) -> Result<bool> {
        if self.left == 0 {
            return Ok(false);
        }
        loop {
            if let Some((run, piece, extent, at)) = &mut self.run
                && let Some(hash) = run.hashes.get(*piece)
            {
                let length = run.piece_length(*piece);
                self.piece.clear();
                self.given = 0;
                if *hash == ZEROS {
                    self.piece.resize(usize::try_from(length).unwrap_or(0), 0);
                } else {
                    let whole = run.extent_of(extent, *at, length);
                    let whole = whole
                        .ok_or_else(|| Error::damaged(&self.path, "its index leaves out a piece of it"))?;
                    let bytes = self.frames.bytes(&whole)?;
                    if self.keys.piece_hash(bytes) != *hash {
                        let reason = format!("its bytes are not those of {}", self.path);
                        return Err(Error::damaged(self.frames.key(&whole), reason));
                    }
                    self.piece.extend_from_slice(bytes);
                }
                *piece += 1;
                *at += length;
                self.left = self.left.saturating_sub(length);
                return Ok(true);
            }
            let next = self.runs.get(self.next);
            let next = next.ok_or_else(|| Error::damaged(&self.path, "its index ends before it does"))?;
            let run = self.index.run_blocking(next)?;
            self.next += 1;
            let at = run.at;
            self.run = Some((run, 0, 0, at));
        }
    }
}

impl Read for Contents {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        if self.given == self.piece.len()
            && !self.next_piece().map_err(|e| std::io::Error::other(engine::Error::from(e)))?
        {
            return Ok(0);
        }
        let n = into.len().min(self.piece.len() - self.given);
        into[..n].copy_from_slice(&self.piece[self.given..self.given + n]);
        self.given += n;
        Ok(n)
    }
}
