//! The adapter against real Redis servers, each test with its own on free ports in its own folder.

mod conformance;
mod failover;
mod faults;
mod follow;
mod hold;
mod kit;
mod launch;
mod life;
mod proof;
mod restore;
mod traps;
