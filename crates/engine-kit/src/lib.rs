//! What adapters are built and tested with.
//!
//! - [`fake`]: an engine over a folder, which the machinery is tested with and new adapters are copied from
//! - [`memory`]: snapshots and logs in memory, in place of the vault and the spool
//! - [`conformance`]: the suite that every adapter passes
//! - [`unreliable`]: any engine, failing where a test wants it to

pub mod conformance;
pub mod fake;
pub mod memory;
pub mod unreliable;
