//! Fake: an engine over a folder, with everything that engines have and nothing that takes time.
//!
//! It is what the machinery is tested with, and what a new adapter is copied from: each file does the job that the file of that
//! name does in every engine. A cluster is a few folders, one a node; a "server" is a process that sleeps, or the test itself. There
//! is no network. Keys are spread over lanes; each lane has an append-only log; a failover begins another epoch in every lane;
//! offsets count bytes or, if `count: records` is set, records. Writers are made by [`FakeCluster`].
//!
//! Refused: everything that a real engine has beyond keys and values.
//!
//! - `record` the log's format, `node` a node's folder, `connect` finding the node that takes writes, `server` for tests only
//! - the rest is named for the capability that it is

mod connect;
mod follow;
mod hold;
mod launch;
mod mark;
mod node;
mod observe;
mod prove;
mod record;
mod replay;
mod restore;
mod server;
mod snapshot;
#[cfg(test)]
mod tests;

use mainstay_engine::{
    Engine, Error, Follow, Hold, Kind, Launch, Mark, Mistake, Observe, Prove, Replay, Restore, Result,
    Snapshot,
};
use mainstay_model::{Cluster, Lane, Offset, Place};

pub use node::Count;
pub use record::{Op, Record};
pub use server::FakeCluster;

/// The engine. There is no more of it than its name.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fake;

/// The one that registries list.
pub static FAKE: Fake = Fake;

impl Engine for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn check(&self, cluster: &Cluster) -> Vec<Mistake> {
        let mut mistakes = Vec::new();
        for (key, value) in &cluster.config {
            let right = match key.as_str() {
                "lanes" => value.parse::<u32>().is_ok_and(|lanes| (1..=64).contains(&lanes)),
                "count" => matches!(value.as_str(), "bytes" | "records"),
                _ => false,
            };
            if !right {
                mistakes.push(Mistake {
                    key: format!("config.{key}"),
                    message: format!("`{key}: {value}` is no setting of a fake engine"),
                    hint: Some("there are `lanes: 1` to 64 and `count: bytes` or `records`".to_owned()),
                });
            }
        }
        mistakes
    }

    /// `2:4711`
    fn write_place(&self, place: &Place) -> String {
        format!("{}:{}", place.epoch, place.offset.low())
    }

    fn read_place(&self, text: &str) -> Result<Place> {
        let parsed = text.split_once(':').and_then(|(epoch, offset)| {
            let number: u32 = epoch.parse().ok()?;
            Some(Place::new(number.to_string(), offset.parse::<u64>().ok()?))
        });
        parsed.ok_or_else(|| {
            Error::new(Kind::Invalid, format!("`{text}` is no place of a fake engine"))
                .hint("write EPOCH:OFFSET, as 2:4711")
        })
    }

    fn snapshot(&self) -> Option<&dyn Snapshot> {
        Some(self)
    }
    fn follow(&self) -> Option<&dyn Follow> {
        Some(self)
    }
    fn mark(&self) -> Option<&dyn Mark> {
        Some(self)
    }
    fn hold(&self) -> Option<&dyn Hold> {
        Some(self)
    }
    fn restore(&self) -> Option<&dyn Restore> {
        Some(self)
    }
    fn replay(&self) -> Option<&dyn Replay> {
        Some(self)
    }
    fn observe(&self) -> Option<&dyn Observe> {
        Some(self)
    }
    fn launch(&self) -> Option<&dyn Launch> {
        Some(self)
    }
    fn prove(&self) -> Option<&dyn Prove> {
        Some(self)
    }
}

/// The lane of that number.
pub(crate) fn lane(number: usize) -> Lane {
    Lane::new(&format!("lane-{number}"))
}

/// The number of a lane.
pub(crate) fn lane_number(lane: &Lane) -> Result<usize> {
    let number = lane.0.strip_prefix("lane-").and_then(|number| number.parse().ok());
    number.ok_or_else(|| Error::new(Kind::Invalid, format!("there is no lane {lane}")))
}

/// An offset that is a number of bytes in a file, or of records.
pub(crate) fn to_usize(offset: Offset) -> Result<usize> {
    usize::try_from(offset.0).map_err(|e| Error::new(Kind::Invalid, "an offset beyond memory").source(e))
}
