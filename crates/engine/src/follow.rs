//! `follow`: the log of a cluster, for ever; and how that log is read again.

use async_trait::async_trait;
use bytes::Bytes;
use mainstay_model::{Bracket, Branch, Instant, Lane, Offset, Place};
use serde::{Deserialize, Serialize};

use crate::{Access, Error, Kind, Result};

/// Engines whose log can be had as it is written.
#[async_trait]
pub trait Follow: Send + Sync {
    /// The lanes that there are now.
    ///
    /// # Errors
    /// `Unreachable`, `Refused`, `Server`.
    async fn lanes(&self, access: &Access) -> Result<Vec<Lane>>;

    /// A place from which `lane` can be followed from now on without a snapshot before it: its end now, after making the source
    /// keep what comes (a slot, a backlog).
    ///
    /// # Errors
    /// `LogGone` where that cannot be had before a snapshot was taken (a Redis that never had a replica).
    async fn tip(&self, access: &Access, lane: &Lane) -> Result<Place>;

    /// Streams the log of `lane` from `from` on into `sink`, in order and without a gap, until the link breaks.
    ///
    /// Finds the right node by itself (after a failover another one), reports epochs by [`LogSink::branch`], acknowledges to the
    /// source only what [`LogSink::sync`] has returned, and never returns `Ok`. Stopped by dropping the future. One call is one link: the
    /// caller calls again, from what is durable, after `Unreachable`.
    ///
    /// # Errors
    /// `Unreachable`: try again. `LogGone`: a hole; take a snapshot. `Diverged`: the log from `branched` on is not on the source's
    /// history: the caller ends that branch there and calls again from `branched`. `SpoolFull`, `Refused`, `Server`.
    async fn follow(&self, access: &Access, lane: &Lane, from: &Place, sink: &dyn LogSink) -> Result<Never>;

    /// Gives up what the source keeps for us (slots), for good.
    ///
    /// # Errors
    /// `Unreachable`, `Refused`, `Server`.
    async fn release(&self, access: &Access) -> Result<()>;
}

/// What [`Follow::follow`] returns when all goes well: nothing, since it does not return.
#[derive(Clone, Copy, Debug)]
pub enum Never {}

/// Some log, as it arrived.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// The place of the first byte; must be where the chunk before ended (or the place given to [`LogSink::branch`]).
    pub at: Place,
    /// The log itself, byte for byte.
    pub bytes: Bytes,
    /// What is known of times in it, ascending by offset.
    pub times: Vec<TimeMark>,
    /// The adapter's own state at `at`, small, to be given back when reading begins there (Redis: database and open MULTI).
    /// Where it is `None`, no segment may begin at this chunk.
    pub carry: Option<String>,
}

/// One thing known of time in a log: whatever lies below `offset` and not below the mark before happened within `at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeMark {
    /// Exclusive end of what is spoken of.
    pub offset: Offset,
    /// When it happened, by the source's clock.
    pub at: Bracket,
}

/// Where followed log goes: the spool, and from there the vault.
#[async_trait]
pub trait LogSink: Send + Sync {
    /// Takes log. Waits while the spool is over its limit; gives `SpoolFull` when that lasts. Not durable before [`Self::sync`].
    ///
    /// # Errors
    /// `Invalid` for a gap or an overlap, `SpoolFull`, `Io`.
    async fn append(&self, chunk: Chunk) -> Result<()>;

    /// As [`Self::append`], for lanes whose offsets do not count bytes (records, sequences, operation times): the chunk ends at `end`,
    /// where the next one begins.
    ///
    /// # Errors
    /// As [`Self::append`]; `Unsupported` from a sink that knows bytes only.
    async fn append_counted(&self, chunk: Chunk, end: Offset) -> Result<()> {
        if end.0 == chunk.at.offset.0 + chunk.bytes.len() as u128 {
            return self.append(chunk).await;
        }
        Err(Error::new(Kind::Unsupported, "this log is counted in bytes only"))
    }

    /// Makes all that was appended durable on this machine (fsync) and says up to where. Call it whenever no more is
    /// waiting on the link, and at the latest 20 ms after an append.
    ///
    /// # Errors
    /// `Io`, `SpoolFull`.
    async fn sync(&self) -> Result<Place>;

    /// From here on the lane is in another epoch. What was appended past `branch.parent` belongs to the ended branch and is kept as
    /// such. The next chunk is at (`branch.epoch`, `branch.first`). `history` is the engine's own record (a timeline history file).
    ///
    /// # Errors
    /// `Invalid` when the parent is not known or lies past what was appended, `Io`.
    async fn branch(&self, branch: Branch, history: Option<Bytes>) -> Result<()>;

    /// At `time` (the source's clock) the source had nothing behind `at`, and we have all below it: the window's end moves on.
    ///
    /// # Errors
    /// `Io`.
    async fn beat(&self, at: &Place, time: Bracket) -> Result<()>;

    /// How far this lane is durable in the vault; `None` if not at all. May be given to the source as a hint, never as an acknowledgement.
    fn vaulted(&self) -> Option<Place>;

    /// The log before `from`, from the last place that has a carry on: an adapter whose state lives in the stream (Redis: database and
    /// open MULTI) reads it to know its state at `from`, when a link begins in the midst of a log. Ends at `from`; `times` is empty.
    /// `None` when `from` itself has no log before it here (a snapshot's position, a tip), or that cannot be had.
    ///
    /// # Errors
    /// `Io`, `Damaged`.
    async fn before(&self, _from: &Place) -> Result<Option<Chunk>> {
        Ok(None)
    }

    /// What lies behind `from` happened at this time or later, by the source's clock: what a beat at a place below it said. `None` where
    /// that is not known. For adapters whose log has no times of its own.
    fn not_before(&self, _from: &Place) -> Option<Instant> {
        None
    }
}

/// What is known of a stored stretch of log without reading it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// The place of its first byte.
    pub first: Place,
    /// The place after its last byte; the same epoch.
    pub last: Place,
    /// When what is in it happened.
    pub bracket: Bracket,
}

/// A stretch of log that was read, decrypted and checked.
#[derive(Clone, Debug)]
pub struct SegmentData {
    /// Which it is.
    pub segment: Segment,
    /// Times within it.
    pub times: Vec<TimeMark>,
    /// The adapter's state at its first place; empty where it is not known any more (log that was stored anew): it is then to be found from
    /// the log before.
    pub carry: String,
    /// The log, `last.offset - first.offset` bytes where offsets count bytes.
    pub bytes: Bytes,
}

/// The log of a cluster on its surviving history, from a snapshot's start up to its end. Blocking; from any thread.
pub trait LogSource: Send + Sync {
    /// The lanes that have log.
    fn lanes(&self) -> Vec<Lane>;
    /// The segments of `lane`, in order, without gap or overlap, each in one epoch; empty if there are none.
    fn segments(&self, lane: &Lane) -> Vec<Segment>;
    /// Reads one of them, by its index in [`Self::segments`].
    ///
    /// # Errors
    /// `Damaged` with the object's name, `Io`.
    fn read(&self, lane: &Lane, index: usize) -> Result<SegmentData>;
    /// How the epochs of `lane` came to be, with the engine's own record of it.
    fn branches(&self, lane: &Lane) -> Vec<(Branch, Option<Bytes>)>;
    /// Up to when the log of `lane` is known to be complete, by the source's clock (the last commit, or a later beat).
    fn complete_to(&self, lane: &Lane) -> Option<Instant>;
}
