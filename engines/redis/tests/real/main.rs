//! The adapter against real Redis servers, each test with its own on free ports in its own folder.

mod failover;
mod kit;
mod link;
mod restore;
mod standing;
