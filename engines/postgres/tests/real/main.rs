//! The adapter against real servers of both versions.

mod conformance;
mod failover;
mod job;
mod sources;
mod traps;
mod world;
