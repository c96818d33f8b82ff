//! A file's content on its way into the vault: cut into pieces, hashed, compared, and what is new collected into frames.

use std::io::Read;
use std::sync::{Mutex, PoisonError};

use fastcdc::v2020::FastCDC;
use mainstay_engine::{self as engine, Cut, FileSpec, Stored};
use zstd::zstd_safe::{CParameter, ParamSwitch};

use crate::index::{Extent, FileLine, Line, Pieces, Run, ZEROS};
use crate::keys::{Keys, PieceHash};
use crate::pipeline::Pipeline;
use crate::sources::{FileBefore, Found, Sources};
use crate::{Error, Result};

/// A frame holds at most as much content.
const FRAME_BYTES: usize = 256 << 10;
/// What is left of a file and smaller than this shares a frame with others.
const SHARED_BYTES_MAX: usize = 64 << 10;
/// A run speaks of at most as much of a file; a multiple of every page size.
const RUN_BYTES: u64 = 32 << 20;
/// How content is cut where bytes shift: smallest, usual, largest.
const PIECE_BYTES: [usize; 3] = [64 << 10, 128 << 10, 256 << 10];
/// Of what is written once.
const WHOLE_STEP: u32 = 256 << 10;
const LEVEL: i32 = 3;
/// The level for what is cut by content, with literals entropy-coded all the same: Redis has compressed its copies already, so that little repeats,
/// but letters are still letters. Of a copy of JSON and random bytes 0.68 is left; at level 1 it is 0.64 in 1.6 times the time, at 3 0.58 in three times.
const LEVEL_BY_CONTENT: i32 = -3;

/// What all files of a snapshot share.
pub(crate) struct Content {
    keys: std::sync::Arc<Keys>,
    pub pipeline: Pipeline,
    pub sources: Sources,
    packers: Mutex<Vec<Packer>>,
    shared: Mutex<Shared>,
}

/// A compressor, and the room that it writes to.
struct Packer {
    compressor: zstd::bulk::Compressor<'static>,
    packed: Vec<u8>,
}

/// A frame that small files share, and the runs that wait for its place.
#[derive(Default)]
struct Shared {
    frame: Vec<u8>,
    runs: Vec<Building>,
}

/// A run that is being put together.
struct Building {
    run: Run,
    /// What will be extents when the frame's place is known.
    pending: Vec<Pending>,
    needs: Option<u64>,
    /// The line of its file, if it is the last.
    file: Option<FileLine>,
}

#[derive(Clone, Copy)]
struct Pending {
    at: u64,
    length: u64,
    skip: u64,
    hash: PieceHash,
}

impl Content {
    pub fn new(keys: std::sync::Arc<Keys>, pipeline: Pipeline, sources: Sources) -> Self {
        Self { keys, pipeline, sources, packers: Mutex::default(), shared: Mutex::default() }
    }

    /// Stores one file; its bytes are read to their end.
    pub fn store(&self, spec: &FileSpec, content: &mut dyn Read) -> engine::Result<(Stored, u64)> {
        let step = match spec.cut {
            Cut::Pages(step) if step.is_power_of_two() && (512..=256 << 10).contains(&step) => Some(step),
            Cut::Pages(step) => {
                return Err(Error::Invalid(format!("{step} bytes is no size of a page")).into());
            }
            Cut::Whole => Some(WHOLE_STEP),
            Cut::Content => None,
        };
        let mut file = Writing::new(self, spec, step);
        match step {
            Some(step) => file.pages(content, step as usize)?,
            None => file.pieces(content)?,
        }
        file.finish()
    }

    /// Stores what has no content.
    pub fn store_empty(&self, spec: &FileSpec) -> Result<()> {
        self.pipeline.line(None, &Line::File(FileLine::new(spec, 0)))
    }

    /// Writes the frame that small files share.
    pub fn flush(&self) -> Result<()> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        self.flush_shared(&mut shared)
    }

    fn flush_shared(&self, shared: &mut Shared) -> Result<()> {
        let runs = std::mem::take(&mut shared.runs);
        if !shared.frame.is_empty() {
            let (pack, offset, packed) = self.write_frame(&shared.frame, LEVEL)?;
            shared.frame.clear();
            for mut building in runs {
                self.settle(&mut building, pack, offset, packed);
                self.emit(building)?;
            }
        }
        Ok(())
    }

    fn share(&self, mut building: Building, frame: &[u8]) -> Result<()> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if shared.frame.len() + frame.len() > FRAME_BYTES {
            self.flush_shared(&mut shared)?;
        }
        let base = shared.frame.len() as u64;
        for pending in &mut building.pending {
            pending.skip += base;
        }
        shared.frame.extend_from_slice(frame);
        shared.runs.push(building);
        Ok(())
    }

    /// Compresses a frame and gives its place: pack, offset, length.
    fn write_frame(&self, frame: &[u8], level: i32) -> Result<(u64, u64, u64)> {
        let failed = |e| Error::io("compress", e);
        let spare = self.packers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut packer = match spare {
            Some(packer) => packer,
            None => {
                let mut compressor = zstd::bulk::Compressor::new(level).map_err(failed)?;
                let literals = CParameter::LiteralCompressionMode(ParamSwitch::Enable);
                compressor.set_parameter(literals).map_err(failed)?;
                Packer { compressor, packed: Vec::new() }
            }
        };
        packer.compressor.set_compression_level(level).map_err(failed)?;
        packer.packed.clear();
        packer.packed.reserve(zstd::zstd_safe::compress_bound(frame.len()));
        packer.compressor.compress_to_buffer(frame, &mut packer.packed).map_err(failed)?;
        let (pack, offset) = self.pipeline.append(&packer.packed, frame.len() as u64)?;
        let length = packer.packed.len() as u64;
        self.packers.lock().unwrap_or_else(PoisonError::into_inner).push(packer);
        Ok((pack, offset, length))
    }

    /// Turns what waited for a frame into extents.
    fn settle(&self, building: &mut Building, pack: u64, offset: u64, packed: u64) {
        let by_content = matches!(building.run.pieces, Pieces::Uneven(_));
        for Pending { at, length, skip, hash } in building.pending.drain(..) {
            building.run.extents.push(Extent { at, length, pack, offset, packed, skip });
            if by_content {
                self.sources.remember(hash, Found::own(pack, offset, packed, skip));
            }
        }
        building.needs = building.needs.max(Some(pack));
    }

    fn emit(&self, mut building: Building) -> Result<()> {
        building.run.extents.sort_unstable_by_key(|extent| extent.at);
        let mut extents = Vec::with_capacity(building.run.extents.len());
        for extent in building.run.extents.drain(..) {
            extent.push_onto(&mut extents);
        }
        building.run.extents = extents;
        self.pipeline.line(building.needs, &Line::Run((&building.run).into()))?;
        match building.file {
            Some(file) => self.pipeline.line(building.needs, &Line::File(file)),
            None => Ok(()),
        }
    }
}

/// One file that is being written.
struct Writing<'a> {
    content: &'a Content,
    spec: &'a FileSpec,
    before: FileBefore<'a>,
    step: Option<u32>,
    at: u64,
    building: Building,
    frame: Vec<u8>,
    needs: Option<u64>,
    stored: Stored,
}

impl<'a> Writing<'a> {
    fn new(content: &'a Content, spec: &'a FileSpec, step: Option<u32>) -> Self {
        Self {
            content,
            spec,
            before: content.sources.file(&spec.path),
            step,
            at: 0,
            building: Self::building(spec, step, 0),
            frame: Vec::new(),
            needs: None,
            stored: Stored::default(),
        }
    }

    fn building(spec: &FileSpec, step: Option<u32>, at: u64) -> Building {
        let pieces = match step {
            Some(step) => Pieces::Even { step: u64::from(step), length: 0 },
            None => Pieces::Uneven(Vec::new()),
        };
        let run = Run { path: spec.path.clone(), at, pieces, hashes: Vec::new(), extents: Vec::new() };
        Building { run, pending: Vec::new(), needs: None, file: None }
    }

    /// Pieces of equal length.
    fn pages(&mut self, content: &mut dyn Read, step: usize) -> engine::Result<()> {
        let mut buffer = vec![0; FRAME_BYTES.max(step)];
        loop {
            let filled = fill(content, &mut buffer, 0, &self.spec.path)?;
            for page in buffer[..filled].chunks(step) {
                self.piece(page)?;
            }
            self.content.pipeline.check()?;
            if filled < buffer.len() {
                return Ok(());
            }
        }
    }

    /// Pieces that end where their content says.
    fn pieces(&mut self, content: &mut dyn Read) -> engine::Result<()> {
        let [smallest, usual, largest] = PIECE_BYTES;
        let mut buffer = vec![0; largest * 4];
        let mut kept = 0;
        loop {
            let filled = fill(content, &mut buffer, kept, &self.spec.path)?;
            let ended = filled < buffer.len();
            let mut done = 0;
            for piece in FastCDC::new(&buffer[..filled], smallest, usual, largest) {
                // Near the end of the buffer a cut may be the buffer's rather than the content's.
                if !ended && filled - piece.offset < largest {
                    break;
                }
                done = piece.offset + piece.length;
                self.piece(&buffer[piece.offset..done])?;
            }
            self.content.pipeline.check()?;
            if ended {
                return Ok(());
            }
            buffer.copy_within(done..filled, 0);
            kept = filled - done;
        }
    }

    fn piece(&mut self, piece: &[u8]) -> Result<()> {
        let length = piece.len() as u64;
        if self.at - self.building.run.at + length > RUN_BYTES {
            self.end_run()?;
        }
        let at = self.at;
        self.at += length;
        self.stored.bytes_read += length;
        match &mut self.building.run.pieces {
            Pieces::Even { length: whole, .. } => *whole += length,
            // Pieces are far below 4 GiB.
            Pieces::Uneven(lengths) => lengths.push(u32::try_from(length).unwrap_or(u32::MAX)),
        }
        if is_zeros(piece) {
            self.building.run.hashes.push(ZEROS);
            return Ok(());
        }
        let hash = self.content.keys.piece_hash(piece);
        self.building.run.hashes.push(hash);
        let found = match self.step {
            Some(step) => self.before.find(at, length, u64::from(step), &hash)?,
            None => self.content.sources.piece(&hash)?,
        };
        if let Some(found) = found {
            let extent = self.content.sources.extent(&self.content.pipeline, found, at, length);
            self.building.needs = self.building.needs.max(found.needs());
            extent.push_onto(&mut self.building.run.extents);
            return Ok(());
        }
        self.stored.bytes_new += length;
        if self.frame.len() + piece.len() > FRAME_BYTES {
            self.end_frame()?;
        }
        self.building.pending.push(Pending { at, length, skip: self.frame.len() as u64, hash });
        self.frame.extend_from_slice(piece);
        Ok(())
    }

    fn end_frame(&mut self) -> Result<()> {
        if self.frame.is_empty() {
            return Ok(());
        }
        let level = if self.step.is_some() { LEVEL } else { LEVEL_BY_CONTENT };
        let (pack, offset, packed) = self.content.write_frame(&self.frame, level)?;
        self.frame.clear();
        self.content.settle(&mut self.building, pack, offset, packed);
        Ok(())
    }

    fn end_run(&mut self) -> Result<()> {
        self.end_frame()?;
        let next = Self::building(self.spec, self.step, self.at);
        let done = std::mem::replace(&mut self.building, next);
        self.needs = self.needs.max(done.needs);
        self.content.emit(done)
    }

    fn finish(mut self) -> engine::Result<(Stored, u64)> {
        let file = FileLine::new(self.spec, self.at);
        if self.building.run.hashes.is_empty() {
            self.content.pipeline.line(self.needs, &Line::File(file))?;
            return Ok((self.stored, self.at));
        }
        self.building.needs = self.building.needs.max(self.needs);
        self.building.file = Some(file);
        if self.frame.len() >= SHARED_BYTES_MAX {
            self.end_frame()?;
        }
        if self.frame.is_empty() {
            self.content.emit(self.building)?;
        } else {
            self.content.share(self.building, &self.frame)?;
        }
        Ok((self.stored, self.at))
    }
}

/// Fills `buffer` from `from` on; fewer bytes than fit only at the end of the content.
fn fill(content: &mut dyn Read, buffer: &mut [u8], from: usize, path: &str) -> engine::Result<usize> {
    let mut filled = from;
    while filled < buffer.len() {
        match content.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(read_error(e, path)),
        }
    }
    Ok(filled)
}

/// What reading gave: an adapter's own error where it is one.
fn read_error(error: std::io::Error, path: &str) -> engine::Error {
    match error.downcast::<engine::Error>() {
        Ok(own) => own,
        Err(error) => engine::Error::io(format!("read {path}"), error),
    }
}

fn is_zeros(piece: &[u8]) -> bool {
    static ZERO_PAGE: [u8; 4096] = [0; 4096];
    piece.chunks(ZERO_PAGE.len()).all(|chunk| chunk == &ZERO_PAGE[..chunk.len()])
}
