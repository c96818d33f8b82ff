//! Following: the log of every lane of a cluster, from the engine to the spool on this machine and from there to the vault.
//!
//! Acknowledged to the source is what is fsynced in the spool, never less durable. The vault gets what is new every few seconds as a
//! tail, and sealed segments that supersede the tails. A slow or failing vault holds up neither the source nor the spool, until the spool
//! is full; then the link is given up rather than anything harmed, and the hole is declared.

mod cover;
mod follower;
mod lane;
mod resume;
mod sink;
mod spool;
mod stale;
mod upload;

pub use cover::{Until, catch_up, vault_covers};
pub use follower::{FollowOptions, FollowStatus, Follower, LaneStatus, Phase, Wanted};
pub(crate) use resume::spooled_range;
pub use resume::spooled_to;
pub use spool::Limits;
pub use upload::Pace;

/// An error and all that lay under it, on one line.
pub(crate) fn why(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
