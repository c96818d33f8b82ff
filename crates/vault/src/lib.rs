//! The vault: how backups are kept on a store, and found, checked and read again.
//!
//! What is told to others is in `docs/vault-format.md`. In short: objects are immutable; a snapshot is one when its manifest is there, which is
//! written last; content is encrypted to the recipients, so that a host that backs up cannot read what it wrote; the catalogue (names, places,
//! hashes) is encrypted to the vault's own key, which hosts hold; every object tells when one bit of it is wrong; what a log holds is told
//! by its objects' names alone.

mod cluster;
mod content;
mod error;
mod format;
mod index;
mod keep;
mod keys;
mod lease;
mod log;
mod manifest;
mod names;
mod packs;
mod pipeline;
mod place;
mod presence;
mod process;
mod prune;
mod reader;
mod record;
mod sealed;
mod sources;
mod surviving;
mod tree;
mod vault;
mod verify;
mod writer;

pub use cluster::ClusterVault;
pub use error::{Error, Result};
pub use keep::KEEP_NOTHING;
pub use lease::Lease;
pub use log::{LogBytes, LogContent, LogEntry, LogKind, LogObject, LogWriter};
pub use presence::{Packs, missing_pack};
pub use prune::{Going, GoingKind, Kept, PrunePlan, Pruned};
pub use reader::SnapshotReader;
pub use record::{SnapshotRecord, SnapshotState};
pub use surviving::surviving;
pub use vault::{Opened, Vault};
pub use verify::{Damage, Verified, VerifyOptions};
pub use writer::SnapshotWriter;
