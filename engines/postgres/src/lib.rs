//! Everything that Mainstay knows of PostgreSQL 15 to 18.
//!
//! See the README beside this crate for versions, what is refused, and why.

pub mod lsn;
pub mod pages;
pub mod replication;
pub mod wal;
