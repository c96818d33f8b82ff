//! A snapshot's index: which files it has, which pieces they are made of, and where in which packs these lie.
//!
//! It is lines of JSON in parts of a few MiB, each part zstd, then an age file to the catalogue and the recipients, under a name that authenticates
//! it (`index-00001-TAG`). A part is written when all that it speaks of is durable, so the parts of an attempt that was broken off are as good
//! as a finished snapshot's. Three kinds of lines (`t`):
//!
//! - `pack`: a pack that later lines speak of by its number `n`: its id, its sizes, and its ciphertext's hash;
//! - `run`: a stretch of a file: its pieces' lengths and keyed hashes, and its *extents* `[at, length, pack, offset, packed, skip]`: `length` bytes
//!   of the file from `at` on are those at `skip` in the zstd frame of `packed` bytes at `offset` in the pack. What no extent covers is zeros;
//! - `file`: a file, directory or link, after all of its runs.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use mainstay_engine::{Cut, FileKind, FileSpec};
use serde::{Deserialize, Serialize};

use crate::keys::{Keys, PIECE_HASH_BYTES, PieceHash};
use crate::{Error, Result, Vault};

/// Where some bytes of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "[u64; 6]", into = "[u64; 6]")]
pub(crate) struct Extent {
    /// Offset in the file.
    pub at: u64,
    pub length: u64,
    /// The pack's number in this index.
    pub pack: u64,
    /// Offset of the frame in the pack.
    pub offset: u64,
    /// Length of the frame in the pack.
    pub packed: u64,
    /// Offset of the bytes in the decompressed frame.
    pub skip: u64,
}

impl From<[u64; 6]> for Extent {
    fn from([at, length, pack, offset, packed, skip]: [u64; 6]) -> Self {
        Self { at, length, pack, offset, packed, skip }
    }
}

impl From<Extent> for [u64; 6] {
    fn from(e: Extent) -> Self {
        [e.at, e.length, e.pack, e.offset, e.packed, e.skip]
    }
}

impl Extent {
    /// Appends to a list, together with the last one where the two are one stretch.
    pub fn push_onto(self, list: &mut Vec<Self>) {
        if let Some(last) = list.last_mut() {
            let same_frame = (last.pack, last.offset) == (self.pack, self.offset);
            if same_frame && last.at + last.length == self.at && last.skip + last.length == self.skip {
                last.length += self.length;
                return;
            }
        }
        list.push(self);
    }
}

/// A pack, as an index speaks of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PackInfo {
    pub n: u64,
    pub id: String,
    /// Bytes of ciphertext: the object's size.
    pub bytes: u64,
    /// Bytes of all its frames.
    pub packed: u64,
    /// Bytes of content.
    pub content: u64,
    /// BLAKE3 of the ciphertext.
    pub hash: String,
}

/// A stretch of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub path: String,
    pub at: u64,
    pub pieces: Pieces,
    pub hashes: Vec<PieceHash>,
    /// Ordered by `at`.
    pub extents: Vec<Extent>,
}

/// How long the pieces are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Pieces {
    /// All of them `step`, but that the last ends with the run.
    Even { step: u64, length: u64 },
    /// Each its own.
    Uneven(Vec<u32>),
}

/// The hash of a piece of zeros, which needs no extent.
pub(crate) const ZEROS: PieceHash = [0; PIECE_HASH_BYTES];

impl Run {
    pub fn length(&self) -> u64 {
        match &self.pieces {
            Pieces::Even { length, .. } => *length,
            Pieces::Uneven(lengths) => lengths.iter().map(|n| u64::from(*n)).sum(),
        }
    }

    /// The length of one piece.
    pub fn piece_length(&self, n: usize) -> u64 {
        match &self.pieces {
            Pieces::Even { step, length } => {
                (*step).min(length.saturating_sub(step.saturating_mul(n as u64)))
            }
            Pieces::Uneven(lengths) => lengths.get(n).map_or(0, |n| u64::from(*n)),
        }
    }

    /// The extent of `length` bytes from `at` on, if they lie in one; `from` is the first that may hold them, and moves on.
    pub fn extent_of(&self, from: &mut usize, at: u64, length: u64) -> Option<Extent> {
        while self.extents.get(*from).is_some_and(|e| e.at + e.length <= at) {
            *from += 1;
        }
        let e = self.extents.get(*from).filter(|e| e.at <= at && at + length <= e.at + e.length)?;
        Some(Extent { at, length, skip: e.skip + (at - e.at), ..*e })
    }

    /// (offset in the file, length, hash) of each piece.
    pub fn pieces(&self) -> impl Iterator<Item = (u64, u64, &PieceHash)> {
        let mut at = self.at;
        self.hashes.iter().enumerate().map(move |(n, hash)| {
            let length = self.piece_length(n);
            at += length;
            (at - length, length, hash)
        })
    }

    /// Refuses what would lead a reader astray, though it was authenticated: a mistake of ours must not become damage.
    fn check(&self, has_pack: impl Fn(u64) -> bool) -> Option<()> {
        let pieces = match &self.pieces {
            Pieces::Even { step, length } => {
                (*step > 0 && *length > 0).then_some(())?;
                length.div_ceil(*step)
            }
            Pieces::Uneven(lengths) => {
                lengths.iter().all(|n| *n > 0).then_some(())?;
                lengths.len() as u64
            }
        };
        (pieces == self.hashes.len() as u64).then_some(())?;
        let end = self.at.checked_add(self.length())?;
        let mut at = self.at;
        for extent in &self.extents {
            let extent_end = extent.at.checked_add(extent.length)?;
            let fits = extent.at >= at
                && extent.length > 0
                && extent_end <= end
                && has_pack(extent.pack)
                && extent.skip.checked_add(extent.length)? <= FRAME_BYTES_MAX
                && extent.packed <= PACKED_BYTES_MAX;
            fits.then_some(())?;
            at = extent_end;
        }
        Some(())
    }
}

/// The most content that a frame holds.
pub(crate) const FRAME_BYTES_MAX: u64 = 1 << 20;
/// The most that a frame can be compressed, if that is the word.
const PACKED_BYTES_MAX: u64 = FRAME_BYTES_MAX + (64 << 10);

/// A line, as it is written.
#[derive(Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "lowercase")]
pub(crate) enum Line {
    Pack(PackInfo),
    Run(RunLine),
    File(FileLine),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RunLine {
    path: String,
    at: u64,
    /// Length of each piece but the last, and of the run; or the length of each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    even: Option<(u64, u64)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    uneven: Option<Vec<u32>>,
    /// 16 bytes each, base64.
    hashes: String,
    extents: Vec<Extent>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileLine {
    pub path: String,
    /// `file`, `directory`, `link`.
    pub kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    pub mode: u32,
    pub cut: Cut,
    pub size: u64,
}

impl From<&Run> for RunLine {
    fn from(run: &Run) -> Self {
        let (even, uneven) = match &run.pieces {
            Pieces::Even { step, length } => (Some((*step, *length)), None),
            Pieces::Uneven(lengths) => (None, Some(lengths.clone())),
        };
        Self {
            path: run.path.clone(),
            at: run.at,
            even,
            uneven,
            hashes: BASE64.encode(run.hashes.as_flattened()),
            extents: run.extents.clone(),
        }
    }
}

impl RunLine {
    fn into_run(self) -> Option<Run> {
        let pieces = match (self.even, self.uneven) {
            (Some((step, length)), None) => Pieces::Even { step, length },
            (None, Some(lengths)) => Pieces::Uneven(lengths),
            _ => return None,
        };
        let bytes = BASE64.decode(&self.hashes).ok()?;
        let (hashes, []) = bytes.as_chunks::<PIECE_HASH_BYTES>() else { return None };
        let hashes = hashes.to_vec();
        Some(Run { path: self.path, at: self.at, pieces, hashes, extents: self.extents })
    }
}

impl FileLine {
    pub fn new(spec: &FileSpec, size: u64) -> Self {
        let (kind, target) = match &spec.kind {
            FileKind::Regular => ("file", None),
            FileKind::Directory => ("directory", None),
            FileKind::Symlink { target } => ("link", Some(target.clone())),
        };
        Self { path: spec.path.clone(), kind: kind.into(), target, mode: spec.mode, cut: spec.cut, size }
    }

    fn spec(self) -> Option<FileSpec> {
        let kind = match (self.kind.as_str(), self.target) {
            ("file", None) => FileKind::Regular,
            ("directory", None) => FileKind::Directory,
            ("link", Some(target)) => FileKind::Symlink { target },
            _ => return None,
        };
        path_is_ok(&self.path).then_some(FileSpec { path: self.path, kind, mode: self.mode, cut: self.cut })
    }
}

/// Whether a path can be in a snapshot: relative, without `.` and `..`, and such that a shell can print it.
pub(crate) fn path_is_ok(path: &str) -> bool {
    let part_ok = |part: &str| !part.is_empty() && part != "." && part != "..";
    path.len() <= 4096 && path.split('/').all(part_ok) && !path.chars().any(char::is_control)
}

/// Whether a pack's id can be part of a key.
fn pack_id_is_ok(id: &str) -> bool {
    id.len() == PACK_ID_BYTES && id.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}

/// `ATTEMPT-RANDOM`: 8 and 16 hexadecimal digits.
const PACK_ID_BYTES: usize = 25;

/// Where a pack is. The attempt that wrote it is in its name, so that a prune knows whose it is.
pub(crate) fn pack_key(incarnation_prefix: &str, id: &str) -> String {
    let random = id.split_once('-').map_or(id, |(_, random)| random);
    format!("{incarnation_prefix}/packs/{}/{id}", &random[..2.min(random.len())])
}

/// Writes a line.
pub(crate) fn write_line(line: &Line) -> Vec<u8> {
    // Numbers, strings and lists of them always have a JSON form.
    let mut bytes = serde_json::to_vec(line).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// A part of an index, as a manifest names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Part {
    /// The last part of its key: `index-00001-TAG`.
    pub name: String,
    pub bytes: u64,
}

const LEVEL: i32 = 3;
/// What a part may be, decompressed: the writer's limit and one long line.
const PART_BYTES_MAX: usize = 64 << 20;

/// Encrypts a part and names it. `folder` is its snapshot's.
pub(crate) fn seal_part(keys: &Keys, folder: &str, stem: &str, lines: &[u8]) -> Result<(Part, Vec<u8>)> {
    let packed = zstd::bulk::compress(lines, LEVEL).map_err(|e| Error::io("compress an index", e))?;
    let cipher = keys.encrypt_catalogue(&packed)?;
    let tag = part_tag(keys, folder, stem, &cipher);
    Ok((Part { name: format!("{stem}-{tag}"), bytes: cipher.len() as u64 }, cipher))
}

/// Checks a part's ciphertext against its name.
pub(crate) fn check_part(keys: &Keys, folder: &str, name: &str, cipher: &[u8]) -> Result<()> {
    match name.rsplit_once('-') {
        Some((stem, tag)) if tag == part_tag(keys, folder, stem, cipher) => Ok(()),
        _ => Err(Error::damaged(
            format!("{folder}/{name}"),
            "its bytes are not those that its name stands for",
        )),
    }
}

/// Checks and decrypts a part.
pub(crate) fn open_part(keys: &Keys, folder: &str, name: &str, cipher: &[u8]) -> Result<Vec<u8>> {
    check_part(keys, folder, name, cipher)?;
    let key = format!("{folder}/{name}");
    let packed = keys.decrypt_catalogue(&key, cipher)?;
    let size = zstd::bulk::Decompressor::upper_bound(&packed).filter(|size| *size <= PART_BYTES_MAX);
    let size = size.ok_or_else(|| Error::damaged(&key, "it is not zstd, or of an impossible size"))?;
    zstd::bulk::decompress(&packed, size).map_err(|_| Error::damaged(&key, "it does not decompress"))
}

fn part_tag(keys: &Keys, folder: &str, stem: &str, cipher: &[u8]) -> String {
    keys.tag(&[b"index", folder.as_bytes(), stem.as_bytes(), blake3::hash(cipher).as_bytes()])
}

/// A run's line: the number of its part, and where in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RunRef {
    pub at: u64,
    part: u32,
    start: u32,
    length: u32,
}

/// An index that was read: its packs and files are in memory, its runs are read again when they are asked for.
pub(crate) struct Index {
    vault: Vault,
    folder: String,
    parts: Vec<Part>,
    /// By number.
    pub packs: BTreeMap<u64, PackInfo>,
    /// Bytes of each pack's content that this index still speaks of, by number.
    pub live: BTreeMap<u64, u64>,
    pub files: BTreeMap<String, (FileSpec, u64)>,
    /// Ordered by `at`. Of a broken-off attempt also those of files that were not finished.
    pub runs: HashMap<String, Vec<RunRef>>,
    cache: Mutex<VecDeque<(u32, Arc<Vec<u8>>)>>,
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Index").field("folder", &self.folder).field("files", &self.files.len()).finish()
    }
}

/// Decompressed parts that are kept, of a few MiB each.
const PARTS_CACHED_MAX: usize = 6;

impl Index {
    /// Reads all parts of an index once. `folder` is the snapshot's.
    pub async fn load(vault: &Vault, folder: &str, parts: Vec<Part>) -> Result<Self> {
        let mut index = Self {
            vault: vault.clone(),
            folder: folder.to_owned(),
            parts,
            packs: BTreeMap::new(),
            live: BTreeMap::new(),
            files: BTreeMap::new(),
            runs: HashMap::new(),
            cache: Mutex::default(),
        };
        for n in 0..index.parts.len() {
            let number =
                u32::try_from(n).map_err(|_| Error::damaged(folder, "its index has too many parts"))?;
            let part = index.fetch(number).await?;
            let name = index.parts[n].name.clone();
            index.take(number, &part).ok_or_else(|| {
                Error::damaged(format!("{folder}/{name}"), "its lines are not those of an index")
            })?;
        }
        // A run whose pack was late comes behind later ones.
        for runs in index.runs.values_mut() {
            runs.sort_by_key(|run| run.at);
        }
        Ok(index)
    }

    fn take(&mut self, number: u32, part: &[u8]) -> Option<()> {
        let mut start = 0;
        for line in part.split_inclusive(|b| *b == b'\n') {
            let length = line.len();
            match serde_json::from_slice(line).ok()? {
                Line::Pack(pack) => {
                    pack_id_is_ok(&pack.id).then_some(())?;
                    self.packs.insert(pack.n, pack);
                }
                Line::Run(run) => {
                    let run = run.into_run()?;
                    run.check(|pack| self.packs.contains_key(&pack))?;
                    for extent in &run.extents {
                        *self.live.entry(extent.pack).or_default() += extent.length;
                    }
                    let found = RunRef {
                        at: run.at,
                        part: number,
                        start: u32::try_from(start).ok()?,
                        length: u32::try_from(length).ok()?,
                    };
                    self.runs.entry(run.path).or_default().push(found);
                }
                Line::File(file) => {
                    let size = file.size;
                    let spec = file.spec()?;
                    self.files.insert(spec.path.clone(), (spec, size));
                }
            }
            start += length;
        }
        Some(())
    }

    /// Reads a run, and blocks.
    pub fn run_blocking(&self, found: &RunRef) -> Result<Run> {
        let part = match self.cached(found.part) {
            Some(part) => part,
            None => {
                let (vault, folder) = (self.vault.clone(), self.folder.clone());
                let name = self.parts[found.part as usize].name.clone();
                let part =
                    Arc::new(mainstay_store::wait(async move { fetch(&vault, &folder, &name).await })?);
                self.keep(found.part, &part);
                part
            }
        };
        self.parse(found, &part)
    }

    fn parse(&self, found: &RunRef, part: &[u8]) -> Result<Run> {
        let (start, length) = (found.start as usize, found.length as usize);
        match serde_json::from_slice(&part[start..start + length]) {
            Ok(Line::Run(run)) => run.into_run(),
            _ => None,
        }
        .ok_or_else(|| Error::damaged(&self.folder, "a line of its index changed while it was open"))
    }

    async fn fetch(&self, number: u32) -> Result<Vec<u8>> {
        fetch(&self.vault, &self.folder, &self.parts[number as usize].name).await
    }

    fn cached(&self, number: u32) -> Option<Arc<Vec<u8>>> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let found = cache.iter().position(|(n, _)| *n == number)?;
        // What was used last goes last.
        let hit = cache.remove(found)?;
        cache.push_back(hit.clone());
        Some(hit.1)
    }

    fn keep(&self, number: u32, part: &Arc<Vec<u8>>) {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= PARTS_CACHED_MAX {
            cache.pop_front();
        }
        cache.push_back((number, Arc::clone(part)));
    }
}

async fn fetch(vault: &Vault, folder: &str, name: &str) -> Result<Vec<u8>> {
    let key = format!("{folder}/{name}");
    let cipher = vault.store().get(&key).await.map_err(|error| match error.kind {
        mainstay_store::Kind::NotFound => Error::damaged(&key, "it is missing"),
        _ => error.into(),
    })?;
    open_part(vault.keys(), folder, name, &cipher)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn runs_are_read_as_they_are_written(
            at in 0_u64..1 << 40,
            lengths in proptest::collection::vec(1_u32..300_000, 1..40),
            even in any::<bool>(),
            seed in any::<[u8; 16]>(),
        ) {
            let whole: u64 = lengths.iter().map(|n| u64::from(*n)).sum();
            let step = whole.div_ceil(lengths.len() as u64);
            let pieces = match even {
                true => Pieces::Even { step, length: whole },
                false => Pieces::Uneven(lengths.clone()),
            };
            let count = if even { whole.div_ceil(step) as usize } else { lengths.len() };
            let run = Run {
                path: "base/1/2".into(),
                at,
                pieces,
                hashes: vec![seed; count],
                extents: vec![Extent { at, length: 1, pack: 0, offset: 9, packed: 8, skip: 0 }],
            };
            prop_assert!(run.check(|n| n == 0).is_some());
            prop_assert_eq!(run.check(|_| false), None);
            let pieces: Vec<_> = run.pieces().map(|(at, length, _)| (at, length)).collect();
            prop_assert_eq!(pieces.last().map(|(at, length)| at + length), Some(at + whole));
            let line = write_line(&Line::Run((&run).into()));
            let Ok(Line::Run(read)) = serde_json::from_slice(&line) else { panic!("not a run") };
            prop_assert_eq!(read.into_run(), Some(run));
        }

        #[test]
        fn foreign_lines_never_panic(text in "\\PC{0,300}", junk in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = serde_json::from_str::<Line>(&text);
            let _ = serde_json::from_slice::<Line>(&junk);
            let hostile = format!(
                "{{\"t\":\"run\",\"path\":\"a\",\"at\":{},\"even\":[0,{}],\"hashes\":\"\",\"extents\":[[1,2,3,4,5,6]]}}",
                u64::MAX, junk.len()
            );
            if let Ok(Line::Run(run)) = serde_json::from_str::<Line>(&hostile) {
                prop_assert!(run.into_run().is_none_or(|run| run.check(|_| true).is_none()));
            }
        }
    }

    #[test]
    fn extents_that_touch_become_one() {
        let mut list = Vec::new();
        for (at, skip) in [(0, 0), (8, 8), (24, 16), (32, 24)] {
            Extent { at, length: 8, pack: 1, offset: 2, packed: 3, skip }.push_onto(&mut list);
        }
        assert_eq!(list.iter().map(|e| (e.at, e.length)).collect::<Vec<_>>(), [(0, 16), (24, 16)]);
    }

    #[test]
    fn paths_stay_inside() {
        for good in ["a", "base/1/2", "pg_wal/000000010000000000000001", "ä b"] {
            assert!(path_is_ok(good), "{good}");
        }
        for bad in ["", "/a", "a/", "a//b", "..", "a/../b", "./a", "a\nb"] {
            assert!(!path_is_ok(bad), "{bad}");
        }
    }
}
