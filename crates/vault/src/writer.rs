//! Writing a snapshot.

use std::io::Read;
use std::sync::Arc;

use mainstay_engine::{FileSpec, SnapshotSink, Stored, Taken};

use crate::{Error, Result, SnapshotRecord};

/// A snapshot that is being written: where the adapter's files go. Dropped without [`Self::commit`], it leaves what the next attempt takes up, or
/// the second prune removes.
#[derive(Debug)]
pub struct SnapshotWriter {
    id: String,
}

impl SnapshotWriter {
    /// The id that the snapshot will have.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Makes it a snapshot: waits for all that is on its way, checks that everything is there, and writes the manifest last.
    ///
    /// # Errors
    /// What an upload gave, `LeaseLost`, `Invalid` when the source says another incarnation, or when it was committed already.
    pub async fn commit(self: Arc<Self>, taken: Taken) -> Result<SnapshotRecord> {
        let _ = taken;
        Err(Error::Invalid("the vault is not there yet".into()))
    }

    /// Gives up: stops the uploads and says that nobody is at work on it.
    pub async fn abort(self: Arc<Self>) {}
}

impl SnapshotSink for SnapshotWriter {
    fn put(&self, file: &FileSpec, content: &mut dyn Read) -> mainstay_engine::Result<Stored> {
        let _ = (file, content);
        Err(Error::Invalid("the vault is not there yet".into()).into())
    }
}
