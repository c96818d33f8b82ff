//! Snapshot, window, plan, restore, prove, and restoring into the environment itself.
//!
//! This crate knows engines through `mainstay-engine` alone, the vault through `mainstay-vault`, and processes through the [`Host`] and the
//! [`Layout`]s that its caller hands in. What it refuses, it refuses while planning: before anything is touched, saying what can be had
//! instead. It never falls back to another target, another snapshot than one that reaches the target, or less log.
//!
//! [`Host`]: mainstay_engine::Host
//! [`Layout`]: mainstay_engine::Layout

pub mod history;
pub mod follow;
