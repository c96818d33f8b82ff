//! What a new snapshot is compared with: the one before, and attempts that were broken off since.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use mainstay_engine::Cut;

use crate::Result;
use crate::index::{Extent, Index, PackInfo, Pieces, Run, RunRef, ZEROS};
use crate::keys::PieceHash;
use crate::pipeline::Pipeline;

/// All indexes that a new snapshot may take from.
pub(crate) struct Sources {
    list: Vec<Source>,
    /// Where pieces that were cut by content are, made when the first is asked for.
    pieces: Mutex<Option<HashMap<PieceHash, Found>>>,
}

struct Source {
    index: Arc<Index>,
    /// The numbers that this index's packs have in the new one.
    numbers: Mutex<HashMap<u64, u64>>,
    /// Packs that nothing is taken from: those that are not there as they were written, and those of which so little is in use that what is
    /// left is stored again, and they can go some day.
    avoided: HashSet<u64>,
}

/// Where some bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Which of the sources' packs, or `None`: the new snapshot's own.
    source: Option<u32>,
    pack: u64,
    offset: u64,
    packed: u64,
    skip: u64,
}

/// A pack that is in use to less than one part in so many is not taken over.
const SPARSE: u64 = 5;
/// Small packs do no harm.
const SPARSE_CONTENT_MIN: u64 = 1 << 20;

impl Sources {
    /// In order of preference. `is_whole` says whether a pack is there as it was written, as far as is known.
    pub fn new(indexes: Vec<Arc<Index>>, is_whole: impl Fn(&PackInfo) -> bool) -> Self {
        let source = |index: Arc<Index>| {
            let is_sparse = |pack: &PackInfo| {
                let live = index.live.get(&pack.n).copied().unwrap_or(0);
                pack.content >= SPARSE_CONTENT_MIN && live < pack.content / SPARSE
            };
            let avoided = index.packs.values().filter(|pack| is_sparse(pack) || !is_whole(pack));
            let avoided = avoided.map(|pack| pack.n).collect();
            Source { index, numbers: Mutex::default(), avoided }
        };
        Self { list: indexes.into_iter().map(source).collect(), pieces: Mutex::default() }
    }

    /// What the sources have at `path`, to be asked in order of offsets.
    pub fn file(&self, path: &str) -> FileBefore<'_> {
        let cursors = self.list.iter().enumerate().filter_map(|(n, source)| {
            let runs = source.index.runs.get(path)?;
            Some(Cursor {
                source: u32::try_from(n).ok()?,
                index: &source.index,
                runs,
                next: 0,
                run: None,
                extent: 0,
            })
        });
        FileBefore { cursors: cursors.collect(), sources: self }
    }

    /// A piece cut by content, wherever it is.
    pub fn piece(&self, hash: &PieceHash) -> Result<Option<Found>> {
        let mut pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        if pieces.is_none() {
            *pieces = Some(self.all_pieces()?);
        }
        Ok(pieces.as_ref().and_then(|pieces| pieces.get(hash)).copied())
    }

    /// Remembers where the new snapshot itself put a piece.
    pub fn remember(&self, hash: PieceHash, found: Found) {
        if let Some(pieces) = self.pieces.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            pieces.entry(hash).or_insert(found);
        }
    }

    fn all_pieces(&self) -> Result<HashMap<PieceHash, Found>> {
        let mut pieces = HashMap::new();
        for (n, source) in self.list.iter().enumerate() {
            let number = u32::try_from(n).unwrap_or(u32::MAX);
            for (path, runs) in &source.index.runs {
                // Of a file that was not finished the cut is not known, but its runs tell.
                if source.index.files.get(path).is_some_and(|(spec, _)| spec.cut != Cut::Content) {
                    continue;
                }
                for run in runs {
                    let run = source.index.run_blocking(run)?;
                    if matches!(run.pieces, Pieces::Even { .. }) {
                        break;
                    }
                    let mut extent = 0;
                    for (at, length, hash) in run.pieces() {
                        if let Some(found) = locate(&run, &mut extent, at, length, number, &source.avoided) {
                            pieces.entry(*hash).or_insert(found);
                        }
                    }
                }
            }
        }
        Ok(pieces)
    }

    /// The extent of a piece that was found, for the new index.
    pub fn extent(&self, pipeline: &Pipeline, found: Found, at: u64, length: u64) -> Extent {
        let pack = found.source.map_or(found.pack, |n| {
            let source = &self.list[n as usize];
            let mut numbers = source.numbers.lock().unwrap_or_else(PoisonError::into_inner);
            *numbers.entry(found.pack).or_insert_with(|| pipeline.adopt(&source.index.packs[&found.pack]))
        });
        Extent { at, length, pack, offset: found.offset, packed: found.packed, skip: found.skip }
    }
}

impl Found {
    /// The pack of ours that must be durable before this can be spoken of.
    pub fn needs(&self) -> Option<u64> {
        self.source.is_none().then_some(self.pack)
    }

    /// Somewhere in a pack of the new snapshot's own.
    pub fn own(pack: u64, offset: u64, packed: u64, skip: u64) -> Self {
        Self { source: None, pack, offset, packed, skip }
    }
}

/// What is known of one file, read in the order of its offsets.
pub(crate) struct FileBefore<'a> {
    cursors: Vec<Cursor<'a>>,
    sources: &'a Sources,
}

struct Cursor<'a> {
    source: u32,
    index: &'a Index,
    runs: &'a [RunRef],
    next: usize,
    run: Option<Run>,
    extent: usize,
}

impl FileBefore<'_> {
    /// Where the piece of that length and hash is, if it is at `at` in one of the sources. `at` must not go back.
    pub fn find(&mut self, at: u64, length: u64, step: u64, hash: &PieceHash) -> Result<Option<Found>> {
        for cursor in &mut self.cursors {
            let avoided = &self.sources.list[cursor.source as usize].avoided;
            if let Some(found) = cursor.find(at, length, step, hash, avoided)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

impl Cursor<'_> {
    fn find(
        &mut self,
        at: u64,
        length: u64,
        step: u64,
        hash: &PieceHash,
        avoided: &HashSet<u64>,
    ) -> Result<Option<Found>> {
        while self.run.as_ref().is_none_or(|run| run.at + run.length() <= at) {
            let Some(next) = self.runs.get(self.next).filter(|run| run.at <= at) else { return Ok(None) };
            self.run = Some(self.index.run_blocking(next)?);
            self.extent = 0;
            self.next += 1;
        }
        let Some(run) = self.run.as_ref().filter(|run| run.at <= at) else { return Ok(None) };
        let same_cut = matches!(run.pieces, Pieces::Even { step: s, .. } if s == step)
            && (at - run.at).is_multiple_of(step);
        let n = usize::try_from((at - run.at) / step.max(1)).unwrap_or(usize::MAX);
        if !same_cut || run.hashes.get(n) != Some(hash) || *hash == ZEROS {
            return Ok(None);
        }
        Ok(locate(run, &mut self.extent, at, length, self.source, avoided))
    }
}

/// The place of a whole piece, from a run's extents, of which those before `extent` are behind.
fn locate(
    run: &Run,
    extent: &mut usize,
    at: u64,
    length: u64,
    source: u32,
    avoided: &HashSet<u64>,
) -> Option<Found> {
    let e = run.extent_of(extent, at, length).filter(|e| !avoided.contains(&e.pack))?;
    Some(Found { source: Some(source), pack: e.pack, offset: e.offset, packed: e.packed, skip: e.skip })
}
