//! Which log a replay is fed with: the snapshot's own up to where it is consistent, then what was followed, up to the cut.
//!
//! Refuses a hole between them before anything is started.

use std::io::Read;

use bytes::Bytes;
use mainstay_engine::{Error, Kind, LogSource, RestoreJob, Result, SnapshotSource};
use mainstay_model::Place;

use crate::lsn::{self, Lsn, Timeline, parse_segment_name};
use crate::snapshot::{Meta, lane};

/// A stretch of log from one source.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Span {
    from: Lsn,
    to: Lsn,
    timeline: Timeline,
    source: Source,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    /// A segment file of the snapshot, and where its first byte is.
    Snapshot { path: String, first: Lsn },
    /// A segment of the log, by its index, and where its first byte is.
    Log { index: usize, first: Lsn },
}

/// The log of a replay, in order.
pub(super) struct Supply<'a> {
    snapshot: &'a dyn SnapshotSource,
    log: &'a dyn LogSource,
    spans: Vec<Span>,
    next: usize,
}

/// Log bytes and the timeline that they are on.
pub(super) struct Stretch {
    pub at: Lsn,
    pub timeline: Timeline,
    pub bytes: Bytes,
}

impl<'a> Supply<'a> {
    pub fn new(job: &RestoreJob<'a>, meta: &Meta, cut: &Place) -> Result<Self> {
        let taken = job.snapshot.taken();
        let place = |position: &mainstay_model::Position| {
            position
                .get(&lane())
                .cloned()
                .ok_or_else(|| Error::new(Kind::Damaged, "a snapshot without its place"))
        };
        let (started, position) = (place(&taken.started)?, place(&taken.position)?);
        let (stop, cut_at) = (Lsn(position.offset.low()), Lsn(cut.offset.low()));
        if cut_at < stop {
            let what = format!(
                "stop at {}: the snapshot is consistent from {} on",
                lsn::write_place(cut),
                lsn::write_place(&position)
            );
            return Err(Error::new(Kind::OutOfLog, what).hint("restore from an earlier snapshot"));
        }
        let begin = Lsn(started.offset.low()).segment_start(meta.segment_size);
        let mut spans = own_spans(job.snapshot, meta.segment_size, begin, stop)?;
        let timeline = |place: &Place| {
            lsn::timeline_of(&place.epoch)
                .map_err(|error| Error::new(Kind::Damaged, "read a log's epoch").source(error))
        };
        for (index, segment) in job.log.segments(&lane()).iter().enumerate() {
            let (first, last) = (Lsn(segment.first.offset.low()), Lsn(segment.last.offset.low()));
            let (from, to) = (first.max(stop), last.min(cut_at));
            if from < to {
                spans.push(Span {
                    from,
                    to,
                    timeline: timeline(&segment.first)?,
                    source: Source::Log { index, first },
                });
            }
        }
        let mut at = begin;
        for span in &spans {
            if span.from != at {
                let what = format!("the log from {at} to {} is missing", span.from);
                return Err(Error::new(Kind::OutOfLog, what)
                    .hint("restore to an earlier instant, or from another snapshot"));
            }
            at = span.to;
        }
        if at != cut_at {
            return Err(Error::new(
                Kind::OutOfLog,
                format!("the log ends at {at}, before {}", lsn::write_place(cut)),
            ));
        }
        Ok(Self { snapshot: job.snapshot, log: job.log, spans, next: 0 })
    }

    /// How many bytes there are in all.
    pub fn bytes(&self) -> u64 {
        self.spans.iter().map(|span| span.to.0 - span.from.0).sum()
    }

    /// Where the first byte is.
    pub fn begin(&self) -> Lsn {
        self.spans.first().map_or(Lsn(0), |span| span.from)
    }

    /// Where the last byte ends.
    pub fn end(&self) -> Lsn {
        self.spans.last().map_or(Lsn(0), |span| span.to)
    }

    /// The timeline of the last byte: the one that recovery must follow.
    pub fn timeline(&self) -> Timeline {
        self.spans.last().map_or(1, |span| span.timeline)
    }

    /// The next stretch; `None` at the end.
    pub fn read(&mut self) -> Result<Option<Stretch>> {
        let Some(span) = self.spans.get(self.next) else { return Ok(None) };
        self.next += 1;
        let (bytes, first) = match &span.source {
            Source::Snapshot { path, first } => {
                let mut bytes = Vec::new();
                let read = self.snapshot.open(path)?.take(1 << 30).read_to_end(&mut bytes);
                read.map_err(|error| Error::io(format!("read {path} of the snapshot"), error))?;
                (Bytes::from(bytes), *first)
            }
            Source::Log { index, first } => (self.log.read(&lane(), *index)?.bytes, *first),
        };
        let (from, to) = ((span.from.0 - first.0) as usize, (span.to.0 - first.0) as usize);
        if bytes.len() < to {
            return Err(Error::new(
                Kind::Damaged,
                format!("the log at {} is shorter than it says", span.from),
            ));
        }
        Ok(Some(Stretch { at: span.from, timeline: span.timeline, bytes: bytes.slice(from..to) }))
    }

    /// The history files that are known, by name.
    pub fn histories(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let mut all = Vec::new();
        for (branch, bytes) in self.log.branches(&lane()) {
            if let (Some(bytes), Ok(timeline)) = (bytes, lsn::timeline_of(&branch.epoch)) {
                all.push((lsn::history_name(timeline), bytes.to_vec()));
            }
        }
        for (file, _) in self.snapshot.files()? {
            if let Some(name) = file.path.strip_prefix("pg_wal/").filter(|name| name.ends_with(".history")) {
                let mut bytes = Vec::new();
                let read = self.snapshot.open(&file.path)?.take(1 << 20).read_to_end(&mut bytes);
                read.map_err(|error| Error::io(format!("read {} of the snapshot", file.path), error))?;
                all.push((name.to_owned(), bytes));
            }
        }
        Ok(all)
    }
}

/// The snapshot's own segments, between where it begins and where it is consistent.
fn own_spans(snapshot: &dyn SnapshotSource, segment_size: u64, begin: Lsn, stop: Lsn) -> Result<Vec<Span>> {
    let mut spans = Vec::new();
    for (file, _) in snapshot.files()? {
        let Some(name) = file.path.strip_prefix("pg_wal/") else { continue };
        let Some((timeline, number)) = parse_segment_name(name, segment_size) else { continue };
        let first = Lsn(number.saturating_mul(segment_size));
        let (from, to) = (first.max(begin), first.plus(segment_size).min(stop));
        if from < to {
            spans.push(Span { from, to, timeline, source: Source::Snapshot { path: file.path, first } });
        }
    }
    spans.sort_by_key(|span| span.from);
    Ok(spans)
}
