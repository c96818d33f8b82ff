//! `prove`: the server's own check of every file, and the content of a restored cluster.
//!
//! The content is taken while a node is being fed, before it may expire anything, and kept beside its data: the same instant restored
//! twice must give the same, and keys that die by themselves between two looks are no difference. It is used as long as nobody has
//! written to the node since; otherwise it is taken again from the running server, which must allow `DEBUG DIGEST`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::try_join_all;
use mainstay_engine::{
    Access, Check, Content, Error, Host, Kind, Layout, NodeCommand, NodeLayout, Prove, Quiet, Result,
    SnapshotSource,
};
use serde::{Deserialize, Serialize};

use crate::Redis;
use crate::connect::Client;
use crate::launch::{make_folder, wait_ready};
use crate::replay::blocking;
use crate::snapshot::meta_of;
use crate::topology::{Topology, ask_again};
use crate::ttl::Pass;

/// How long the check of one file may take.
const CHECK_DEADLINE: Duration = Duration::from_secs(1800);
/// How long the digest of a server's whole content may take.
const DIGEST_DEADLINE: Duration = Duration::from_secs(600);

#[async_trait]
impl Prove for Redis {
    async fn integrity(
        &self,
        layout: &Layout,
        host: &dyn Host,
        snapshot: &dyn SnapshotSource,
    ) -> Result<Vec<Check>> {
        let meta = meta_of(snapshot.taken())?;
        let mut checks = Vec::new();
        for (node, shard) in layout.nodes.iter().zip(&meta.shards) {
            checks.push(check_file(layout, node, host, snapshot, &shard.file).await?);
        }
        for node in layout.nodes.iter().take(meta.shards.len()) {
            let client = wait_ready(layout, node, host).await?;
            let state = ask_again(&client).await?;
            if let Some(clustered) = state.clustered {
                checks.push(Check {
                    kind: "cluster".into(),
                    what: node.name.clone(),
                    expected: "every slot served".into(),
                    found: if clustered.ok {
                        "every slot served".into()
                    } else {
                        "cluster_state:fail".into()
                    },
                });
            }
        }
        Ok(checks)
    }

    async fn content(&self, access: &Access) -> Result<Vec<Content>> {
        let topology = Topology::look(access).await?;
        topology.complete(&access.cluster)?;
        let reads = topology.shards.iter().map(|shard| async {
            let (_, _, client) = topology.up(shard.master)?;
            let dir = access.nodes[shard.master].data_dir.as_deref().and_then(Path::parent);
            let kept = match dir {
                Some(dir) => kept(dir, client).await?,
                None => None,
            };
            match kept {
                Some(content) => Ok(content),
                None => content_of(client, &shard.lane.0, &[]).await,
            }
        });
        Ok(try_join_all(reads).await?.concat())
    }
}

/// Content that was taken before expiry, and the life of the server that still has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub content: Vec<Content>,
    pub run_id: String,
    /// Changes since the last save, and when that was.
    pub changes: String,
    pub saved: String,
}

fn file(dir: &Path) -> PathBuf {
    dir.join("content.json")
}

/// Keeps content for as long as nobody writes to the server that `client` reaches.
pub(crate) async fn keep(node: &NodeLayout, content: Vec<Content>, client: &Client) -> Result<()> {
    let (run_id, changes, saved) = life(client).await?;
    let kept = Kept { content, run_id, changes, saved };
    let json =
        serde_json::to_vec(&kept).map_err(|error| Error::new(Kind::Io, "write content").source(error))?;
    std::fs::write(file(&node.dir), json)
        .map_err(|error| Error::io(format!("write content of {}", node.name), error))
}

async fn kept(dir: &Path, client: &Client) -> Result<Option<Vec<Content>>> {
    let Ok(json) = std::fs::read(file(dir)) else { return Ok(None) };
    let Ok(kept) = serde_json::from_slice::<Kept>(&json) else { return Ok(None) };
    let now = life(client).await?;
    Ok((now == (kept.run_id, kept.changes, kept.saved)).then_some(kept.content))
}

/// What changes with every write and every restart, but not when a key dies.
async fn life(client: &Client) -> Result<(String, String, String)> {
    let info = client.call(&["INFO"]).await?.info();
    let text = |key: &str| info.get(key).cloned().unwrap_or_default();
    Ok((text("run_id"), text("rdb_changes_since_last_save"), text("rdb_last_save_time")))
}

/// Counts and digest of one server. `ends` is what is known of the ends of life in its databases.
pub(crate) async fn content_of(client: &Client, lane: &str, ends: &[(u32, Pass)]) -> Result<Vec<Content>> {
    let mut content = Vec::new();
    for Database { db, keys, .. } in keyspace(client).await? {
        let expiring = ends.iter().find(|(of, _)| *of == db);
        content.push(Content {
            what: format!("{lane} db {db}"),
            count: i64::try_from(keys).unwrap_or(i64::MAX),
            digest: expiring.map_or_else(String::new, |(_, were)| {
                format!("{} ends of life {:016x}", were.keys, were.digest)
            }),
            tolerance: 0,
        });
    }
    let digest =
        client.clone().patient(DIGEST_DEADLINE).call(&["DEBUG", "DIGEST"]).await.map_err(|error| Error {
            hint: Some("the server must run with enable-debug-command local, as sandboxes do".into()),
            ..error
        })?;
    let functions = client.call(&["FUNCTION", "LIST"]).await?.list().len();
    let total = content.iter().map(|content| content.count).sum();
    content.push(Content { what: format!("{lane} all"), count: total, digest: digest.text(), tolerance: 0 });
    content.push(Content {
        what: format!("{lane} functions"),
        count: i64::try_from(functions).unwrap_or(i64::MAX),
        digest: String::new(),
        tolerance: 0,
    });
    Ok(content)
}

/// A database that has keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Database {
    pub db: u32,
    pub keys: u64,
    /// Keys with an end of life.
    pub expiring: u64,
    /// Hashes with fields that have an end of life.
    pub hashes: u64,
}

/// The databases that have keys.
pub(crate) async fn keyspace(client: &Client) -> Result<Vec<Database>> {
    let info = client.info(&["keyspace"]).await?;
    let mut databases: Vec<Database> = info
        .iter()
        .filter_map(|(key, value)| {
            let db = key.strip_prefix("db")?.parse().ok()?;
            let field = |name: &str| {
                value.split(',').find_map(|field| field.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
            };
            // Counted from 7.4 on.
            let hashes = field("subexpiry").unwrap_or(0);
            Some(Database { db, keys: field("keys")?, expiring: field("expires")?, hashes })
        })
        .collect();
    databases.sort_unstable();
    Ok(databases)
}

/// Writes a file of the snapshot beside the node and has the server's own checker read it.
async fn check_file(
    layout: &Layout,
    node: &NodeLayout,
    host: &dyn Host,
    snapshot: &dyn SnapshotSource,
    path: &str,
) -> Result<Check> {
    let dir = node.dir.join("check");
    // What an interrupted check left behind.
    let _ = std::fs::remove_dir_all(&dir);
    make_folder(&dir, layout.owner)?;
    let copy = dir.join("dump.rdb");
    let placed = blocking(|| snapshot.place(&[(path.to_owned(), copy.clone())], layout.owner, 1, &Quiet));
    let found = match placed {
        Ok(_) => {
            let command = NodeCommand {
                node: node.name.clone(),
                program: checker(layout, &dir)?,
                args: vec![copy.to_string_lossy().into_owned()],
                env: Vec::new(),
                cwd: dir.clone(),
                log: dir.join("log"),
                owner: layout.owner,
            };
            match host.run(&command, CHECK_DEADLINE).await {
                Ok(output) if output.contains("RDB looks OK") => Ok("RDB looks OK".to_owned()),
                Ok(output) => Ok(output.lines().last().unwrap_or("nothing").to_owned()),
                Err(error) if error.kind == Kind::Server => Ok(error.to_string()),
                Err(error) => Err(error),
            }
        }
        Err(error) => Err(error),
    };
    let _ = std::fs::remove_dir_all(&dir);
    Ok(Check {
        kind: "redis-check-rdb".into(),
        what: path.to_owned(),
        expected: "RDB looks OK".into(),
        found: found?,
    })
}

/// The checker is the server itself under another name; where the name is missing, it is made.
fn checker(layout: &Layout, dir: &Path) -> Result<PathBuf> {
    let there = layout.installation.bin.join("redis-check-rdb");
    if there.exists() {
        return Ok(there);
    }
    let link = dir.join("redis-check-rdb");
    std::os::unix::fs::symlink(layout.installation.bin.join("redis-server"), &link)
        .map_err(|error| Error::io(format!("make {}", link.display()), error))?;
    Ok(link)
}
