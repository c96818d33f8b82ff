//! A lane's log in the vault: what is written, and what is read again.

use bytes::Bytes;
use mainstay_engine::{Segment, SegmentData, TimeMark};
use mainstay_model::{Bracket, Branch, Lane, Offset, Place};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Something to be written to a lane's log.
#[derive(Clone, Debug)]
pub enum LogEntry {
    /// A short stretch: only what is new since the last one. Goes when a sealed one covers it.
    Tail(LogBytes),
    /// A long stretch, that supersedes the tails within it.
    Sealed(LogBytes),
    /// At `time` the source had nothing behind `at`.
    Beat {
        /// The end of the log.
        at: Place,
        /// When.
        time: Bracket,
    },
    /// The lane goes on in another epoch.
    Branch {
        /// Which, and where it began.
        branch: Branch,
        /// When it was seen.
        time: Bracket,
        /// The engine's own record (a timeline history file).
        history: Option<Bytes>,
    },
    /// What follows `from` was lost: the window ends there, and another begins with a later snapshot.
    Hole {
        /// The end of the log before it.
        from: Place,
        /// When it was found.
        time: Bracket,
        /// Why, in a few words that can be part of a name: `[a-z0-9-]{1,60}`.
        reason: String,
    },
}

/// A stretch of log to be written.
#[derive(Clone, Debug)]
pub struct LogBytes {
    /// Its places and its time bracket.
    pub segment: Segment,
    /// Times within it.
    pub times: Vec<TimeMark>,
    /// The adapter's state at its first place.
    pub carry: String,
    /// The log.
    pub bytes: Bytes,
}

/// An object of a lane's log, as its name alone tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogObject {
    /// Its key in the store.
    pub key: String,
    /// The incarnation.
    pub incarnation: String,
    /// The lane.
    pub lane: Lane,
    /// The generation of its writer.
    pub generation: u64,
    /// Its number within the generation, from 0.
    pub sequence: u64,
    /// What it is.
    pub kind: LogKind,
    /// Its places and its time bracket. Of a beat and of a branch, first and last are the same.
    pub segment: Segment,
    /// Of a branch: where it branched off.
    pub parent: Option<Place>,
    /// Of a hole: why, as [`LogEntry::Hole`] said.
    #[serde(default)]
    pub reason: Option<String>,
    /// What it names itself by: a keyed hash of its name and its bytes.
    pub tag: String,
    /// The tag of the object before it in its generation; zeros for the first.
    pub previous: String,
    /// Its size in the store.
    pub bytes: u64,
    /// Where a later generation begins: what lies behind is not to be used. Set by [`surviving`].
    pub cut_at: Option<Offset>,
}

/// What a [`LogObject`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogKind {
    /// A short stretch.
    Tail,
    /// A long stretch.
    Sealed,
    /// A sign of life.
    Beat,
    /// A switch to another epoch.
    Branch,
    /// A declared hole.
    Hole,
}

/// A [`LogObject`] that was read, decrypted and checked.
#[derive(Clone, Debug)]
pub enum LogContent {
    /// Of a tail or a sealed one.
    Segment(SegmentData),
    /// Of a beat: nothing that its name does not tell.
    Beat,
    /// Of a hole: nothing that its name does not tell.
    Hole,
    /// Of a branch.
    Branch {
        /// Which.
        branch: Branch,
        /// The engine's own record.
        history: Option<Bytes>,
    },
}

/// Writes one lane's log in one generation: one at a time, in order.
#[derive(Debug)]
pub struct LogWriter {
    generation: u64,
}

impl LogWriter {
    /// The generation.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Writes an entry; durable in the vault when it returns. After an error the same entry may be given again.
    ///
    /// # Errors
    /// `Invalid` for one that does not begin where the one before ended; the store's.
    pub async fn put(&mut self, _entry: &LogEntry) -> Result<LogObject> {
        Err(Error::Invalid("the log cannot be written yet".into()))
    }

    /// Deletes the tails of this generation that a sealed object covers.
    ///
    /// # Errors
    /// The store's; they are deleted the next time then.
    pub async fn retire(&mut self) -> Result<u64> {
        Ok(0)
    }
}

/// The objects of one lane that count, in order of (generation, sequence): without what a generation wrote past a later one's
/// first place (an object that reaches past it gets `cut_at`), and without tails that a sealed object covers. Says nothing of epochs: which of
/// them survived is for whoever reads the branches.
pub fn surviving(objects: &[LogObject]) -> Vec<LogObject> {
    objects.to_vec()
}
