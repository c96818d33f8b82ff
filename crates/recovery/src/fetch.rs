//! Reading a lane's log from the vault, piece by piece, and what else holds a piece that went meanwhile, or is damaged.
//!
//! A restore reads for as long as it takes; beside it, a follower seals tails and deletes them. What a piece held that is not there is therefore
//! looked for once more: the lane is listed anew, and its stretch is read from whatever covers it now. Log whose chain does not fit is kept out and
//! named, whenever it was listed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use mainstay_engine::{Error, Kind, Result, Segment, SegmentData};
use mainstay_model::{Lane, Place};
use mainstay_vault::{ClusterVault, LogContent, LogObject};

use crate::catalogue::{Objects, read_names};
use crate::history::{History, Part};
use crate::log::Fetch;

/// How often a lane is listed for one piece: what is listed may go before it is read, but not again and again.
const LISTINGS_MAX: u32 = 3;

/// A lane's objects: as they were planned with, and as they were last found.
pub(crate) struct Source {
    planned: Objects,
    now: Mutex<Now>,
}

#[derive(Default)]
struct Now {
    listed: Option<Arc<(History, Objects)>>,
    /// What was read last: one sealed object stands for many tails, one after the other.
    last: Option<(String, SegmentData)>,
}

/// Reads log from the vault.
pub(crate) struct VaultFetch {
    vault: ClusterVault,
    incarnation: String,
    lanes: BTreeMap<Lane, Source>,
}

impl Source {
    pub fn new(planned: Objects) -> Self {
        Self { planned, now: Mutex::default() }
    }
}

impl VaultFetch {
    pub fn new(vault: ClusterVault, incarnation: String, lanes: BTreeMap<Lane, Source>) -> Self {
        Self { vault, incarnation, lanes }
    }

    fn source(&self, lane: &Lane, piece: usize) -> Result<(&Source, &LogObject)> {
        let found = self.lanes.get(lane).and_then(|source| Some((source, source.planned.pieces.get(piece)?)));
        found.ok_or_else(|| {
            Error::new(Kind::Invalid, format!("read log of {lane}: there is no piece {piece}"))
        })
    }

    fn read(&self, objects: &Objects, piece: usize) -> Result<Option<SegmentData>> {
        let object = &objects.pieces[piece];
        if objects.broken.contains(&piece) {
            return Err(damaged(object, "it does not follow the object before it"));
        }
        match self.vault.find_log_blocking(object)? {
            None => Ok(None),
            Some(LogContent::Segment(data)) => Ok(Some(data)),
            Some(_) => Err(damaged(object, "it holds no log")),
        }
    }

    /// The parts that cover `wanted`; `None` where none do.
    fn parts(history: &History, wanted: &Segment) -> Option<Vec<Part>> {
        let line = history.line_to(&wanted.last);
        let run = line.run_from(&wanted.first)?;
        line.is_at_or_below(&wanted.last, &run.last).filter(|reached| *reached)?;
        let parts = line.parts_from(run, &wanted.first, history.pieces());
        let is_here = |part: &&Part| {
            let piece = &history.pieces()[part.piece];
            piece.first.epoch == wanted.first.epoch && piece.first.offset < wanted.last.offset
        };
        let parts: Vec<Part> = parts.iter().filter(is_here).cloned().collect();
        let first = &history.pieces()[parts.first()?.piece].first;
        (first.offset <= wanted.first.offset).then_some(parts)
    }

    /// Reads them; `None` if one of them is gone.
    fn read_parts(
        &self,
        now: &mut Now,
        listed: &(History, Objects),
        parts: &[Part],
    ) -> Result<Option<Vec<(SegmentData, Segment)>>> {
        let mut read = Vec::new();
        for part in parts {
            let object = &listed.1.pieces[part.piece];
            let data = match &now.last {
                Some((key, data)) if *key == object.key => data.clone(),
                _ => {
                    let Some(data) = self.read(&listed.1, part.piece)? else { return Ok(None) };
                    now.last = Some((object.key.clone(), data.clone()));
                    data
                }
            };
            let Segment { first, bracket, .. } = object.segment.clone();
            let last = Place { epoch: first.epoch.clone(), offset: part.to };
            read.push((data, Segment { first, last, bracket }));
        }
        Ok(Some(read))
    }
}

impl Fetch for VaultFetch {
    fn fetch(&self, lane: &Lane, piece: usize) -> Result<Option<SegmentData>> {
        let (source, _) = self.source(lane, piece)?;
        self.read(&source.planned, piece)
    }

    fn instead(&self, lane: &Lane, piece: usize, wanted: &Segment) -> Result<Vec<(SegmentData, Segment)>> {
        let (source, object) = self.source(lane, piece)?;
        let mut now = source.now.lock().unwrap_or_else(PoisonError::into_inner);
        for listing in 0..=LISTINGS_MAX {
            // First from what was found for the piece before.
            if listing > 0 {
                let objects = self.vault.log_objects_blocking(&self.incarnation, lane)?;
                now.listed = Some(Arc::new(read_names(objects, std::iter::empty())));
            }
            let Some(listed) = now.listed.clone() else { continue };
            let itself = listed.1.pieces.iter().position(|listed| listed.key == object.key);
            let without = itself.map(|piece| listed.0.clone().without(piece));
            let history = without.as_ref().unwrap_or(&listed.0);
            let Some(parts) = Self::parts(history, wanted) else { continue };
            if let Some(read) = self.read_parts(&mut now, &listed, &parts)? {
                tracing::debug!(
                    object = object.key,
                    "was superseded while it was wanted: read from what stands for it"
                );
                return Ok(read);
            }
        }
        Err(damaged(object, "it is missing, and nothing else holds what it held"))
    }
}

fn damaged(object: &LogObject, reason: &str) -> Error {
    Error::new(Kind::Damaged, format!("`{}` is damaged: {reason}", object.key))
}
