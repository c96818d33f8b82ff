//! The adapter against real servers of both versions.

mod conformance;
mod copies;
mod failover;
mod job;
mod links;
mod pooler;
mod replays;
mod sources;
mod traps;
mod world;
