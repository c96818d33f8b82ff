//! Where one is in a cluster's log: lanes, epochs, places, positions.
//!
//! A lane is one ordered stream of a cluster's log. Within a lane, epochs (PostgreSQL's timelines, Redis's replication ids,
//! MongoDB's terms) follow one another and may branch; within an epoch, offsets only grow. A [`Place`] is an epoch and an offset;
//! a [`Position`] is a place in every lane. How a place is written for people is the engine's to say; what is here can be
//! stored, compared within an epoch, and used as a map key.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The name of a lane: `[a-z0-9.-]`, never empty, stable as long as the lane lives. It is part of object names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lane(pub String);

impl Lane {
    /// A lane of that name. Characters other than `[a-z0-9.-]` become `-`.
    pub fn new(name: &str) -> Self {
        let safe = |c: char| {
            if c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.' || c == '-' { c } else { '-' }
        };
        Self(name.chars().map(safe).collect())
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One history of a lane, in the engine's own name for it: a timeline (`1`), a replication id, a term. `[A-Za-z0-9]+`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub String);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An offset within an epoch: the count of whatever the engine counts (WAL bytes, stream bytes, sequences, zxids). 128 bits, so that
/// Cassandra's (segment id, byte) fits as well. Written in JSON as 32 hexadecimal digits, which sort as the numbers do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(pub u128);

impl Offset {
    /// The low 64 bits, where the engine's offsets have no more (PostgreSQL, Redis, Kafka, JetStream, …).
    #[expect(clippy::cast_possible_truncation, reason = "by contract the engine's offsets have 64 bits")]
    pub fn low(self) -> u64 {
        self.0 as u64
    }
}

impl From<u64> for Offset {
    fn from(n: u64) -> Self {
        Self(u128::from(n))
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl Serialize for Offset {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Offset {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        u128::from_str_radix(&text, 16).map(Self).map_err(serde::de::Error::custom)
    }
}

/// A place in one lane.
///
/// The log before `offset` is below the place, the log from `offset` on is behind it: a cut at a place keeps what is below.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// The history that the offset counts in.
    pub epoch: Epoch,
    /// The offset of the next byte (or record): exclusive end of what is below.
    pub offset: Offset,
}

impl Place {
    /// A place from an epoch's name and a 64-bit offset.
    pub fn new(epoch: impl Into<String>, offset: u64) -> Self {
        Self { epoch: Epoch(epoch.into()), offset: offset.into() }
    }
}

/// A place in every lane of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Position(pub BTreeMap<Lane, Place>);

impl Position {
    /// A position of a single lane.
    pub fn single(lane: Lane, place: Place) -> Self {
        Self(BTreeMap::from([(lane, place)]))
    }

    /// The place in `lane`.
    pub fn get(&self, lane: &Lane) -> Option<&Place> {
        self.0.get(lane)
    }
}

impl FromIterator<(Lane, Place)> for Position {
    fn from_iter<T: IntoIterator<Item = (Lane, Place)>>(places: T) -> Self {
        Self(places.into_iter().collect())
    }
}

/// How an epoch came to be: which epoch it grew out of, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Branch {
    /// The new epoch.
    pub epoch: Epoch,
    /// The last place that it shares with its parent (an offset in the parent's epoch, equal to the first one of its own, where
    /// the engine counts on). `None`: the lane's first epoch, or one whose origin is not known.
    pub parent: Option<Place>,
    /// The first offset in the new epoch.
    pub first: Offset,
}
