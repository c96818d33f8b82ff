//! `restore`: checks that a snapshot fits the nodes that it shall become, and makes their folders.
//!
//! Nothing is copied yet: the files go from the vault straight into the servers when [`mainstay_engine::Replay`] feeds them, so a gigabyte
//! is written once and not twice. No `nodes.conf` and no `replicaof` of the source ever reaches a node: all that a node knows of
//! others is written here, for this layout.

use async_trait::async_trait;
use mainstay_engine::{Error, Kind, Restore, RestoreJob, Result};
use mainstay_model::Version;

use crate::Redis;
use crate::launch::make_folder;
use crate::snapshot::{Meta, ShardMeta, meta_of};

#[async_trait]
impl Restore for Redis {
    async fn restore(&self, job: &RestoreJob<'_>) -> Result<()> {
        let plan = plan(job)?;
        for (node, _) in plan.nodes(job) {
            let data = node.data();
            if data.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
                return Err(Error::new(
                    Kind::Invalid,
                    format!("restore {}: {} is not empty", node.name, data.display()),
                ));
            }
            make_folder(&data, job.layout.owner)?;
        }
        Ok(())
    }
}

/// Which shard goes to which node.
pub(crate) struct Plan {
    pub meta: Meta,
}

impl Plan {
    /// The nodes that are fed, each with its shard: the masters, which come first in a layout.
    pub fn nodes<'a>(
        &'a self,
        job: &'a RestoreJob<'_>,
    ) -> impl Iterator<Item = (&'a mainstay_engine::NodeLayout, &'a ShardMeta)> {
        job.layout.nodes.iter().zip(&self.meta.shards)
    }
}

/// Checks all that can be checked before anything is touched.
pub(crate) fn plan(job: &RestoreJob<'_>) -> Result<Plan> {
    let taken = job.snapshot.taken();
    let meta = meta_of(taken)?;
    let layout = job.layout;
    let name = &layout.cluster.name;
    let unsupported = |why: String| Err(Error::new(Kind::Unsupported, format!("restore {name}: {why}")));
    if meta.clustered != layout.cluster.cluster.is_some() {
        return unsupported(match meta.clustered {
            true => "the snapshot is of a Redis Cluster, the layout is none".to_owned(),
            false => "the layout is a Redis Cluster, the snapshot is of none".to_owned(),
        });
    }
    if layout.nodes.len() < meta.shards.len() {
        return unsupported(format!(
            "the snapshot has {} shards, the layout {} nodes",
            meta.shards.len(),
            layout.nodes.len()
        ));
    }
    if layout.sandbox && layout.nodes.len() != meta.shards.len() {
        return unsupported(format!(
            "the snapshot has {} shards, the sandbox {} nodes",
            meta.shards.len(),
            layout.nodes.len()
        ));
    }
    let masters = crate::config::masters(&layout.cluster);
    if !layout.sandbox && masters != meta.shards.len() {
        return unsupported(format!(
            "the snapshot has {} shards, the layout {masters} masters",
            meta.shards.len()
        ));
    }
    // A server reads files of its own version and of earlier ones.
    let (from, into) = (taken.version.parse::<Version>(), layout.installation.version.parse::<Version>());
    if let (Ok(from), Ok(into)) = (from, into)
        && (from.major(), from.minor()) > (into.major(), into.minor())
    {
        return unsupported(format!("the snapshot is of Redis {from}, the server is {into}"));
    }
    for shard in &meta.shards {
        let (Some(start), Some(cut)) = (taken.position.get(&shard.lane), job.cut.get(&shard.lane)) else {
            return Err(Error::new(
                Kind::Invalid,
                format!("restore {name}: there is no place for {}", shard.lane),
            ));
        };
        if cut.offset < start.offset {
            return Err(Error::new(
                Kind::OutOfLog,
                format!(
                    "restore {name}: the snapshot of {} is later than the place that is asked for",
                    shard.lane
                ),
            ));
        }
    }
    Ok(Plan { meta })
}
