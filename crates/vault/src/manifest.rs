//! The manifest that makes a snapshot one, and what lies beside it.
//!
//! `INCARNATION/snap/ID/`: `started` while somebody is at work on it, `index-NNNNN-TAG` parts, `packs-TAG` (all packs that it needs), and last,
//! `manifest`.

use mainstay_engine::Taken;
use mainstay_model::Instant;
use serde::{Deserialize, Serialize};

use crate::index::Part;

/// What a finished snapshot says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    pub id: String,
    pub incarnation: String,
    pub taken: Taken,
    pub begun_at: Instant,
    pub committed_at: Instant,
    pub files: u64,
    pub bytes_total: u64,
    pub bytes_read: u64,
    pub bytes_new: u64,
    pub bytes_stored: u64,
    pub seconds: f64,
    /// The snapshots and attempts that it was compared with.
    pub sources: Vec<String>,
    /// The parts of its index, in order.
    pub index: Vec<Part>,
    /// The list of its packs.
    pub packs: Part,
}

/// That somebody is at work on a snapshot, whose lease is `attempt.ID`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Started {
    pub id: String,
    pub holder: String,
    pub begun_at: Instant,
    /// What it may take packs over from: these must stay as long as it is at work.
    pub sources: Vec<String>,
}

/// A prune's word that some things go, unless they come into use before a later prune deletes them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tomb {
    pub marked_at: Instant,
    /// Snapshots' ids.
    pub snapshots: Vec<String>,
    /// Keys of packs, of parts of attempts, of log objects.
    pub objects: Vec<String>,
}

/// What is in a snapshot's folder, by the last part of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beside {
    Manifest,
    Started,
    Index,
    Packs,
}

impl Beside {
    pub fn of(name: &str) -> Option<Self> {
        match name {
            "manifest" => Some(Self::Manifest),
            "started" => Some(Self::Started),
            _ if name.starts_with("index-") => Some(Self::Index),
            _ if name.starts_with("packs-") => Some(Self::Packs),
            _ => None,
        }
    }
}

/// The name of the lease of an attempt.
pub(crate) fn attempt_lease(id: &str) -> String {
    format!("attempt.{id}")
}

/// A new snapshot's id, and the part of it that its packs carry.
pub(crate) fn new_id(now: Instant) -> (String, String) {
    let attempt = format!("{:08x}", rand::random::<u32>());
    let text = now.to_string();
    // 2026-01-31T02:00:00.123456Z
    let time: String = text.chars().take(19).filter(|c| c.is_ascii_alphanumeric()).collect();
    (format!("{}-{attempt}", time.to_lowercase()), attempt)
}

/// The part of a snapshot's id that its packs carry.
pub(crate) fn attempt_of(id: &str) -> &str {
    id.rsplit_once('-').map_or(id, |(_, attempt)| attempt)
}
