//! `snapshot`: a copy of every shard, taken as a replica takes it.
//!
//! Each shard sends an RDB file over a replication link, from a replica where there is one that is well; it goes to the vault as it
//! arrives, its checksum checked on the way. The file is consistent at the offset that the server named, so its place is exact. Users
//! (`ACL LIST`) and settings are not in it and are stored beside it. Slots that are moving are refused: keys of theirs could be in two
//! shards or in none.

use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use futures::{StreamExt, TryStreamExt};
use mainstay_engine::{
    Access, Cut, Error, FileKind, FileSpec, Kind, Progress, Result, Snapshot, SnapshotOptions, SnapshotSink,
    Taken, Way,
};
use mainstay_model::{Bracket, Branch, Lane, Place, Position};
use serde::{Deserialize, Serialize};

use crate::Redis;
use crate::carry::Known;
use crate::clock::{Sample, sample};
use crate::connect::{self, Client, link_error};
use crate::copy::Copy;
use crate::link::{Link, LinkError};
use crate::place::branch_of;
use crate::rdb::{RdbCheck, RdbFacts};
use crate::stream::Boundary;
use crate::topology::{Shard, Topology, ask_again};

/// How long a server may be silent while it prepares or sends a copy. It sends heartbeats every ten seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a replica may need to reach where its master was when we began.
const CATCH_UP_DEADLINE: Duration = Duration::from_secs(10);

/// The file that users are in.
pub(crate) const USERS: &str = "users.acl";

/// What the adapter wants to find again at restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Whether it was a Redis Cluster.
    pub clustered: bool,
    /// Its shards, by their first slot.
    pub shards: Vec<ShardMeta>,
}

/// One shard's copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardMeta {
    /// Its lane.
    pub lane: Lane,
    /// Its slots.
    pub slots: Vec<(u16, u16)>,
    /// The file in the snapshot.
    pub file: String,
    /// How long it is.
    pub bytes: u64,
    /// The database that is selected in the stream at the copy's place.
    pub stream_db: u32,
}

#[async_trait]
impl Snapshot for Redis {
    async fn snapshot(
        &self,
        access: &Access,
        options: &SnapshotOptions,
        sink: Arc<dyn SnapshotSink>,
        progress: Arc<dyn Progress>,
    ) -> Result<Taken> {
        if options.way == Way::Files {
            return Err(Error::new(
                Kind::Unsupported,
                "copy Redis by its files: they have no exact place in the log",
            ));
        }
        let topology = Topology::look(access).await?;
        topology.complete(&access.cluster)?;
        progress.stage("copy shards");
        let jobs = options.jobs.clamp(1, 16);
        let copies = topology
            .shards
            .iter()
            .map(|shard| copy(&topology, shard, Arc::clone(&sink), Arc::clone(&progress)));
        let copies: Vec<Copied> =
            futures::stream::iter(copies.collect::<Vec<_>>()).buffered(jobs).try_collect().await?;
        // Owners may have changed while the copies ran.
        let now = Topology::look(access).await?;
        if slots_of(&now) != slots_of(&topology) {
            return Err(Error::new(Kind::Server, format!("copy {}: slots moved meanwhile", access.cluster)));
        }
        store_beside(&topology, &sink).await?;
        for copied in &copies {
            let offset = copied.place.offset.low();
            let state = Boundary { offset, db: Some(copied.meta.stream_db), in_multi: false };
            let known = Known { state, seen: Some(copied.at.earliest) };
            self.states.remember(access, &copied.meta.lane, &copied.place, known);
        }
        let position: Position =
            copies.iter().map(|copied| (copied.meta.lane.clone(), copied.place.clone())).collect();
        let brackets = copies.iter().map(|copied| copied.at).reduce(Bracket::union);
        let meta = Meta {
            clustered: topology.clustered,
            shards: copies.iter().map(|copied| copied.meta.clone()).collect(),
        };
        let branches =
            copies.iter().filter_map(|copied| Some((copied.meta.lane.clone(), copied.branch.clone()?)));
        Ok(Taken {
            started: position.clone(),
            position,
            at: brackets.ok_or_else(|| {
                Error::new(Kind::Server, format!("copy {}: it has no shards", access.cluster))
            })?,
            incarnation: None,
            version: copies.first().map(|copied| copied.version.clone()).unwrap_or_default(),
            branches: branches.collect(),
            meta: serde_json::to_value(meta)
                .map_err(|error| Error::new(Kind::Io, "write the snapshot's meta").source(error))?,
        })
    }
}

/// Reads what [`Snapshot::snapshot`] put into `meta`.
pub fn meta_of(taken: &Taken) -> Result<Meta> {
    serde_json::from_value(taken.meta.clone())
        .map_err(|error| Error::new(Kind::Damaged, "read the snapshot's meta").source(error))
}

struct Copied {
    meta: ShardMeta,
    place: Place,
    at: Bracket,
    branch: Option<Branch>,
    version: String,
}

async fn copy(
    topology: &Topology,
    shard: &Shard,
    sink: Arc<dyn SnapshotSink>,
    progress: Arc<dyn Progress>,
) -> Result<Copied> {
    let (_, master_state, master) = topology.up(shard.master)?;
    let before = sample(master).await?;
    let from = match catch_up(topology, shard, before).await {
        Some(index) => index,
        None => shard.master,
    };
    let (node, state, _) = topology.up(from)?;
    let (copy, opening) =
        Link::copy(&node.door, PATIENCE).await.map_err(|error| link_error(&node.name, error))?;
    let after = sample(master).await?;
    let file = format!("shard-{}.rdb", shard.lane);
    tracing::info!(node = %node.name, lane = %shard.lane, offset = opening.offset, "copying");
    let reader = Pieces {
        node: node.name.clone(),
        copy,
        piece: Bytes::new(),
        check: RdbCheck::default(),
        end: Arc::default(),
        progress,
    };
    let end = Arc::clone(&reader.end);
    let spec = FileSpec { path: file.clone(), kind: FileKind::Regular, mode: 0o600, cut: Cut::Content };
    let put = tokio::task::spawn_blocking(move || {
        let mut reader = reader;
        sink.put(&spec, &mut reader)
    });
    let put = put.await.map_err(|error| Error::new(Kind::Io, format!("store {file}")).source(error))?;
    let end = end.lock().unwrap_or_else(PoisonError::into_inner).take();
    // What the vault says of a link that broke is only that reading failed.
    let facts = end.transpose()?;
    put?;
    let facts = facts.ok_or_else(|| {
        Error::new(Kind::Invalid, format!("store {file}: the vault did not read it to its end"))
    })?;
    if facts.aux.get("repl-offset").is_some_and(|offset| *offset != opening.offset.to_string()) {
        return Err(Error::new(
            Kind::Damaged,
            format!("copy {}: the file names another offset than the server", node.name),
        ));
    }
    Ok(Copied {
        meta: ShardMeta {
            lane: shard.lane.clone(),
            slots: shard.slots.clone(),
            file,
            bytes: facts.bytes,
            stream_db: facts.aux.get("repl-stream-db").and_then(|db| db.parse().ok()).unwrap_or(0),
        },
        place: Place::new(opening.replid, opening.offset),
        at: Bracket::between(before.at, after.at),
        branch: branch_of(master_state),
        version: state.version.clone(),
    })
}

/// A replica that has reached where its master was, so that its copy is not older than when we began.
async fn catch_up(topology: &Topology, shard: &Shard, master: Sample) -> Option<usize> {
    let index = topology.source(shard);
    let (_, _, client) = topology.up(index).ok().filter(|_| index != shard.master)?;
    let deadline = tokio::time::Instant::now() + CATCH_UP_DEADLINE;
    while tokio::time::Instant::now() < deadline {
        let state = ask_again(client).await.ok()?;
        let well = state.upstream.as_ref().is_some_and(|(_, _, link_up)| *link_up) && !state.loading;
        if !well {
            return None;
        }
        if state.offset >= master.offset {
            return Some(index);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tracing::warn!(lane = %shard.lane, "replica is too far behind; copying the master");
    None
}

/// The pieces of a copy as a reader, checked to the last byte.
struct Pieces {
    node: String,
    copy: Copy,
    piece: Bytes,
    check: RdbCheck,
    /// What was found at its end, or why there is none.
    end: Arc<Mutex<Option<Result<RdbFacts>>>>,
    progress: Arc<dyn Progress>,
}

/// Why there is no further piece.
enum Stop {
    Link(LinkError),
    Asked(Error),
}

impl From<LinkError> for Stop {
    fn from(error: LinkError) -> Stop {
        Stop::Link(error)
    }
}

impl Pieces {
    fn next(&mut self) -> Result<Option<Bytes>> {
        let go_on = || self.progress.check().map_err(Stop::Asked);
        match go_on().and_then(|()| self.copy.next(go_on)) {
            Ok(piece) => Ok(piece),
            Err(Stop::Link(error)) => Err(link_error(&self.node, error)),
            Err(Stop::Asked(error)) => Err(error),
        }
    }

    fn end(&self, end: Result<RdbFacts>) {
        *self.end.lock().unwrap_or_else(PoisonError::into_inner) = Some(end);
    }
}

impl Read for Pieces {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        while self.piece.is_empty() {
            match self.next() {
                Ok(Some(piece)) => {
                    self.check.feed(&piece);
                    self.progress.advance(piece.len() as u64);
                    self.piece = piece;
                }
                Ok(None) => {
                    let damaged = |error| Error::new(Kind::Damaged, "check the copy").source(error);
                    let facts = self.check.finish().map_err(|error| std::io::Error::other(damaged(error)))?;
                    self.end(Ok(facts));
                    return Ok(0);
                }
                Err(error) => {
                    let told = Error::new(error.kind.clone(), error.what.clone());
                    self.end(Err(error));
                    return Err(std::io::Error::other(told));
                }
            }
        }
        let take = into.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut into[..take]);
        Ok(take)
    }
}

fn slots_of(topology: &Topology) -> Vec<(Lane, Vec<(u16, u16)>)> {
    topology.shards.iter().map(|shard| (shard.lane.clone(), shard.slots.clone())).collect()
}

/// What is in no copy: users and settings. Secrets of the settings are left out; users' passwords are hashes.
async fn store_beside(topology: &Topology, sink: &Arc<dyn SnapshotSink>) -> Result<()> {
    let Some(shard) = topology.shards.first() else { return Ok(()) };
    let (_, _, client) = topology.up(shard.master)?;
    let users = list_of(client, &["ACL", "LIST"]).await;
    let settings = list_of(client, &["CONFIG", "GET", "*"]).await;
    let secret = ["requirepass", "masterauth", "masteruser", "tls-key-file-pass", "tls-client-key-file-pass"];
    let settings: serde_json::Map<String, serde_json::Value> = settings
        .chunks_exact(2)
        .filter(|pair| !secret.contains(&pair[0].as_str()))
        .map(|pair| (pair[0].clone(), pair[1].clone().into()))
        .collect();
    let files = [(USERS, users.join("\n")), ("settings.json", serde_json::Value::from(settings).to_string())];
    let sink = Arc::clone(sink);
    let put = move || {
        for (path, content) in files {
            let spec =
                FileSpec { path: path.to_owned(), kind: FileKind::Regular, mode: 0o600, cut: Cut::Content };
            sink.put(&spec, &mut content.as_bytes())?;
        }
        Ok(())
    };
    tokio::task::spawn_blocking(put)
        .await
        .map_err(|error| Error::new(Kind::Io, "store users and settings").source(error))?
}

/// A list of texts; empty where the user may not ask.
async fn list_of(client: &Client, words: &[&str]) -> Vec<String> {
    match client.call(words).await {
        Ok(answer) => answer.list().iter().map(connect::Answer::text).collect(),
        Err(error) => {
            tracing::warn!(%error, "users or settings are left out of the snapshot");
            Vec::new()
        }
    }
}
