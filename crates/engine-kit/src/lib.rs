//! What adapters are built and tested with: sinks and sources in memory.

pub mod memory;
