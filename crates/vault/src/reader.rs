//! Reading a snapshot.

use std::io::Read;
use std::path::PathBuf;

use mainstay_engine::{self as engine, FileSpec, Progress, RunAs, SnapshotSource, Taken};

use crate::{Error, SnapshotRecord};

/// A snapshot, opened for reading.
#[derive(Debug)]
pub struct SnapshotReader {
    record: SnapshotRecord,
}

impl SnapshotReader {
    /// What is known of it.
    pub fn record(&self) -> &SnapshotRecord {
        &self.record
    }
}

impl SnapshotSource for SnapshotReader {
    fn taken(&self) -> &Taken {
        &self.record.taken
    }
    fn files(&self) -> engine::Result<Vec<(FileSpec, u64)>> {
        Err(Error::Invalid("the vault is not there yet".into()).into())
    }
    fn open(&self, path: &str) -> engine::Result<Box<dyn Read + Send>> {
        let _ = path;
        Err(Error::Invalid("the vault is not there yet".into()).into())
    }
    fn place(
        &self,
        files: &[(String, PathBuf)],
        owner: Option<RunAs>,
        jobs: usize,
        progress: &dyn Progress,
    ) -> engine::Result<u64> {
        let _ = (files, owner, jobs, progress);
        Err(Error::Invalid("the vault is not there yet".into()).into())
    }
}
