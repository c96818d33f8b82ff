//! The vault on real folders, on a real S3 server, and on stores that fail.

mod absent;
mod away;
mod damage;
mod faults;
mod kit;
mod logs;
mod memory;
mod prunes;
mod remedy;
mod s3;
mod script;
mod snapshots;
