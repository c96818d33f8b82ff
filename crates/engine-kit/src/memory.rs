//! Snapshots and logs kept in memory: what an adapter's tests give it in place of the vault and the spool.
//!
//! As strict as the real ones: a path given twice, a gap or an overlap in a log, an unknown parent of a branch, times that do not
//! ascend are refused with `Invalid`, so that an adapter that passes here meets no surprise later.

mod log;
mod snapshot;

pub use log::{MemoryLog, MemoryLogSink, MemoryLogSource};
pub use snapshot::{MemorySnapshot, MemorySnapshotSource};
