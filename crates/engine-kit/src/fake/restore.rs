//! `restore`: the snapshot's files into the first node's folder.

use std::path::PathBuf;

use async_trait::async_trait;
use mainstay_engine::{Error, Kind, Restore, RestoreJob, Result};

use crate::fake::Fake;
use crate::fake::snapshot::{PARTS, part_name};

#[async_trait]
impl Restore for Fake {
    async fn restore(&self, job: &RestoreJob<'_>) -> Result<()> {
        let Some(node) = job.layout.nodes.first() else {
            return Err(Error::new(Kind::Invalid, "restore: the layout has no node"));
        };
        if node.data().join("node.json").exists() {
            return Err(Error::new(Kind::Invalid, format!("restore: {} has data", node.name)));
        }
        job.progress.stage("place files");
        let target =
            |number: usize| -> (String, PathBuf) { (part_name(number), node.data().join(part_name(number))) };
        let files: Vec<_> = (0..PARTS).map(target).collect();
        job.snapshot.place(&files, job.layout.owner, job.jobs, &*job.progress)?;
        Ok(())
    }
}
