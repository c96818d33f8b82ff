//! Redis: copied and followed by joining as a replica, restored by being the master.
//!
//! One stream of writes is a shard, and a shard is a lane: `main` for a standalone server or a master with replicas, its slots
//! (`slots-0-5460`) for a master of a Redis Cluster. A place is a replication id and an offset. See `README.md` for the versions, and
//! for what is refused and why.

mod assemble;
mod config;
mod connect;
mod launch;
pub mod link;
pub mod master;
pub mod stream;
mod topology;
mod ttl;

/// The engine.
#[derive(Debug, Default)]
pub struct Redis {}
