//! The adapter against real servers of both versions.

mod job;
mod world;
