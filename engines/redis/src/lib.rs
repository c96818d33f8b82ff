//! Redis: copied and followed by joining as a replica, restored by being the master.
//!
//! One stream of writes is a shard, and a shard is a lane: `main` for a standalone server or a master with replicas, its slots
//! (`slots-0-5460`) for a master of a Redis Cluster. A place is a replication id and an offset. See `README.md` for the versions, and
//! for what is refused and why.

mod assemble;
mod carry;
mod clock;
mod config;
mod connect;
pub mod copy;
mod cut;
mod fields;
mod follow;
mod hold;
mod launch;
pub mod link;
mod mark;
pub mod master;
mod noted;
mod observe;
mod place;
mod prove;
pub mod rdb;
mod replay;
mod restore;
mod revive;
mod snapshot;
pub mod stream;
mod topology;
mod ttl;
pub mod walk;

use mainstay_engine::{
    Engine, Follow, Hold, Launch, Mark, Mistake, Observe, Prove, Replay, Restore, Result, Snapshot,
};
use mainstay_model::{Cluster, Place};

/// The engine.
pub static REDIS: Redis = Redis::new();

/// Redis, 7.0 and later.
#[derive(Debug, Default)]
pub struct Redis {
    states: carry::States,
}

impl Redis {
    /// An adapter that has seen nothing yet.
    pub const fn new() -> Redis {
        Redis { states: carry::States::new() }
    }
}

impl Engine for Redis {
    fn name(&self) -> &'static str {
        "redis"
    }
    fn check(&self, cluster: &Cluster) -> Vec<Mistake> {
        config::check(cluster)
    }
    fn write_place(&self, place: &Place) -> String {
        place::write(place)
    }
    fn read_place(&self, text: &str) -> Result<Place> {
        place::read(text)
    }
    fn expires(&self) -> bool {
        true
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
