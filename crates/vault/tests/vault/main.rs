//! The vault on real folders, on a real S3 server, and on stores that fail.

mod kit;
mod snapshots;
