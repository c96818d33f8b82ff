//! `replay`: every shard's server is fed by us as its master, brought to its place, compared, and let go.
//!
//! Each is started as a plain server without any peer, told that we are its master, and sent the snapshot's file and the stream up
//! to the cut. When it stands there to the byte, times to live are moved and, for a proof, its content is taken; only then is it promoted. Nodes of a
//! Redis Cluster then save, and start again as such with the slots that they had. The id of the history that they begin with is one of
//! our own, so that no server of the source would ever take one of them for its continuation.

use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant as Tick};

use async_trait::async_trait;
use futures::future::join_all;
use mainstay_engine::{
    Content, Cutting, Error, Host, Kind, Layout, LogSource, NodeLayout, Progress, Replay, Replayed,
    RestoreJob, Result, Stoppable, Target, Ttl,
};
use mainstay_model::{Instant, Lane, Place, Position};

use crate::Redis;
use crate::assemble::{Member, assemble, wait_until_well};
use crate::config::{self, Purpose};
use crate::connect::{self, Client};
use crate::cut;
use crate::launch::{last_words, remember, start_node, wait_ready};
use crate::link::Door;
use crate::master::{FeedError, Listener};
use crate::noted::{Noted, Noting};
use crate::prove::{Database, content_of, keep, keyspace};
use crate::restore::plan;
use crate::revive::Reviver;
use crate::snapshot::{ShardMeta, USERS};
use crate::stream::{Boundary, Command, StreamError};
use crate::ttl::{Scripts, feed_error};

/// How long a server that is fed may do nothing. Loading a file of many gigabytes counts as doing something only at its end.
const PATIENCE: Duration = Duration::from_secs(600);
/// How long a promotion or a save may take.
const COMMAND_DEADLINE: Duration = Duration::from_secs(600);
/// How much is read of the list of users.
const USERS_BYTES_MAX: u64 = 1024 * 1024;
const STOP_GRACE: Duration = Duration::from_secs(600);

#[async_trait]
impl Replay for Redis {
    fn cut(&self, lane: &Lane, from: &Place, log: &dyn LogSource, target: &Target) -> Result<Cutting> {
        cut::cut(lane, from, log, target)
    }

    async fn replay(&self, job: &RestoreJob<'_>) -> Result<Replayed> {
        let replayed = run(job).await;
        if replayed.is_err() {
            let stops =
                job.layout.nodes.iter().map(|node| job.host.stop(&node.name, "KILL", Duration::from_secs(5)));
            for error in join_all(stops).await.into_iter().filter_map(Result::err) {
                tracing::warn!(%error, "could not stop what was started");
            }
        }
        replayed
    }
}

async fn run(job: &RestoreJob<'_>) -> Result<Replayed> {
    let plan = plan(job)?;
    let shards: Vec<(&NodeLayout, &ShardMeta)> = plan.nodes(job).collect();
    job.progress.stage("feed servers");
    let total: u64 = shards.iter().map(|(_, shard)| shard.bytes).sum();
    job.progress.expect(total);
    let waiting = join_all(shards.iter().map(|(node, shard)| start_and_point(job, node, shard))).await;
    let waiting: Vec<Waiting<'_>> = waiting.into_iter().collect::<Result<_>>()?;
    let fed = blocking(|| feed_all(job, waiting))?;
    let clients = finish(job, &shards).await?;
    for ((fed, client), (node, _)) in fed.iter().zip(&clients).zip(&shards).filter(|_| job.compared) {
        keep(node, fed.content.clone(), client).await?;
    }
    let position: Position =
        shards.iter().zip(&fed).map(|((_, shard), fed)| (shard.lane.clone(), fed.place.clone())).collect();
    let mut notes = Vec::new();
    let shifted: u64 = fed.iter().map(|fed| fed.shifted).sum();
    if shifted > 0 {
        notes.push(format!(
            "{shifted} keys and fields have the time to live that they had at the restored instant"
        ));
    }
    notes.extend(users_left_out(job));
    Ok(Replayed { position, notes })
}

/// Says which users the source had that a restored server has not.
fn users_left_out(job: &RestoreJob<'_>) -> Option<String> {
    let mut text = String::new();
    // They are a few hundred bytes each; a snapshot without them is none the worse.
    job.snapshot.open(USERS).ok()?.take(USERS_BYTES_MAX).read_to_string(&mut text).ok()?;
    let known = ["default", &job.layout.user];
    let names = text.lines().filter_map(|line| line.strip_prefix("user ")?.split(' ').next());
    let names: Vec<&str> = names.filter(|name| !known.contains(name)).collect();
    (!names.is_empty())
        .then(|| format!("users of the source were not made: {} (they are in {USERS})", names.join(", ")))
}

struct Fed {
    place: Place,
    content: Vec<Content>,
    shifted: u64,
}

/// One server that runs and waits to be fed.
struct Waiting<'a> {
    node: &'a NodeLayout,
    shard: &'a ShardMeta,
    listener: Listener,
    place: Place,
}

/// Starts one server and tells it that we are its master.
async fn start_and_point<'a>(
    job: &RestoreJob<'_>,
    node: &'a NodeLayout,
    shard: &'a ShardMeta,
) -> Result<Waiting<'a>> {
    start_node(job.layout, node, job.host, &Purpose::Fed).await?;
    let client = wait_ready(job.layout, node, job.host).await?;
    let listener = Listener::bind().map_err(|error| Error::io("listen on a free port", error))?;
    client.call(&["REPLICAOF", "127.0.0.1", &listener.port.to_string()]).await?;
    let place = job.cut.get(&shard.lane).cloned();
    let place =
        place.ok_or_else(|| Error::new(Kind::Invalid, format!("there is no place for {}", shard.lane)))?;
    Ok(Waiting { node, shard, listener, place })
}

/// Feeds all servers at once, a thread for each. The first that fails stops the others.
fn feed_all(job: &RestoreJob<'_>, waiting: Vec<Waiting<'_>>) -> Result<Vec<Fed>> {
    let progress = Arc::new(Stoppable::new(Arc::clone(&job.progress)));
    let feed = |waiting: Waiting<'_>| {
        let node = waiting.node;
        let fed = feed_one(job, waiting, progress.clone()).map_err(|error| {
            // The server says why, if it ended.
            let ended = error.kind == Kind::Server && job.host.running(&node.name).is_none();
            if ended { last_words(node, Kind::Server, &format!("{error}, and it ended")) } else { error }
        });
        if fed.is_err() {
            progress.stop();
        }
        fed
    };
    let fed: Vec<Result<Fed>> = std::thread::scope(|scope| {
        let threads: Vec<_> = waiting.into_iter().map(|waiting| scope.spawn(|| feed(waiting))).collect();
        let panicked = |_| Err(Error::new(Kind::Io, "feed a server: the thread panicked"));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
    });
    // One that was stopped because of another is not the reason.
    let mut stopped = None;
    let mut all = Vec::new();
    for fed in fed {
        match fed {
            Ok(fed) => all.push(fed),
            Err(error) if error.kind == Kind::Cancelled => stopped = Some(error),
            Err(error) => return Err(error),
        }
    }
    stopped.map_or(Ok(all), Err)
}

/// Feeds one server and promotes it.
fn feed_one(job: &RestoreJob<'_>, waiting: Waiting<'_>, progress: Arc<dyn Progress>) -> Result<Fed> {
    let Waiting { node, shard, listener, place } = waiting;
    let failed = |error| feed_error(&node.name, error);
    let from = job.snapshot.taken().position.get(&shard.lane).map_or(0, |place| place.offset.low());
    let to = place.offset.low();
    let replid = format!("{:032x}{:08x}", rand::random::<u128>(), rand::random::<u32>());
    let begun = Tick::now();
    let mut feed =
        listener.accept(&job.layout.password, &replid, from, PATIENCE, progress).map_err(failed)?;
    let mut copy = job.snapshot.open(&shard.file)?;
    let mut noting = (job.ttl == Ttl::Shift).then(|| Noting::begin(&node.dir, Some(shard.stream_db)));
    let mut watched =
        Watched { inner: &mut *copy, see: |piece: &[u8]| noting.iter_mut().for_each(|n| n.copy(piece)) };
    feed.send_copy(Some(shard.bytes), &mut watched).map_err(failed)?;
    let copied = begun.elapsed();
    let mut reviver = Reviver::new(Boundary { offset: from, db: Some(shard.stream_db), in_multi: false });
    each_piece(job.log, &shard.lane, from, to, |piece| {
        let see = |command: &Command<'_>| noting.iter_mut().for_each(|noting| noting.command(command));
        reviver.feed(piece, see, |bytes| feed.send(bytes).map_err(Fault::Feed)).map_err(|fault| match fault {
            Fault::Feed(error) => failed(error),
            Fault::Stream(error) => {
                Error::new(Kind::Damaged, format!("read the log of {}", shard.lane)).source(error)
            }
        })
    })?;
    if reviver.clean().map(|clean| clean.offset) != Some(to) {
        return Err(Error::new(
            Kind::Invalid,
            format!(
                "cut the stream of {} at {to}: a command or transaction would be cut with it",
                shard.lane
            ),
        ));
    }
    feed.confirm().map_err(failed)?;
    tracing::info!(node = %node.name, ?copied, all = ?begun.elapsed(), "fed");
    // A runtime of this thread's own: the caller's may have no thread to spare.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::io("start a runtime", error))?;
    let door = door(job.layout, node);
    let client = runtime.block_on(Client::open(&node.name, &door))?.patient(COMMAND_DEADLINE);
    let mut scripts = Scripts { feed: &mut feed, node: &node.name, door: &door, runtime: &runtime };
    let (content, shifted) = look_and_shift(job, shard, &mut scripts, &client, noting.and_then(Noting::end))?;
    feed.confirm().map_err(failed)?;
    runtime.block_on(client.call(&["REPLICAOF", "NO", "ONE"]))?;
    Ok(Fed { place, content, shifted })
}

/// Why a piece of the log could not be sent.
enum Fault {
    Feed(FeedError),
    Stream(StreamError),
}

impl From<StreamError> for Fault {
    fn from(error: StreamError) -> Fault {
        Fault::Stream(error)
    }
}

/// Moves the ends of life, or only reads them where content is wanted, and takes the content: as it is at the cut, with the ends that it had there.
fn look_and_shift(
    job: &RestoreJob<'_>,
    shard: &ShardMeta,
    scripts: &mut Scripts<'_>,
    client: &Client,
    mut noted: Option<Noted>,
) -> Result<(Vec<Content>, u64)> {
    let by_ms = || Instant::now().micros().saturating_sub(job.at.micros()) / 1000;
    let (mut ends, mut shifted) = (Vec::new(), 0);
    for database in scripts.runtime.block_on(keyspace(client))? {
        let Database { db, expiring, hashes, .. } = database;
        if expiring > 0 && job.ttl == Ttl::Shift {
            let were = scripts.shift(db, expiring, by_ms(), noted.as_mut())?;
            shifted += were.keys;
            ends.push((db, were));
        } else if expiring > 0 && job.compared {
            ends.push((db, scripts.read(db, expiring)?));
        }
        if hashes > 0 && job.ttl == Ttl::Shift {
            shifted += scripts.shift_fields(db, by_ms())?;
        }
    }
    // Of lives, this looks at nothing but whether there is one.
    let content = match job.compared {
        true => scripts.runtime.block_on(content_of(client, &shard.lane.0, &ends))?,
        false => vec![],
    };
    Ok((content, shifted))
}

/// A reader whose bytes are seen by somebody else, too.
struct Watched<'a, F> {
    inner: &'a mut dyn Read,
    see: F,
}

impl<F: FnMut(&[u8])> Read for Watched<'_, F> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(into)?;
        (self.see)(&into[..read]);
        Ok(read)
    }
}

/// Reads the log between two offsets.
fn each_piece(
    log: &dyn LogSource,
    lane: &Lane,
    from: u64,
    to: u64,
    mut take: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut at = from;
    for (index, segment) in log.segments(lane).iter().enumerate() {
        let (first, last) = (segment.first.offset.low(), segment.last.offset.low());
        if last <= at || first >= to || first > at {
            continue;
        }
        let data = log.read(lane, index)?;
        let index_of =
            |offset: u64| usize::try_from(offset - first).unwrap_or(usize::MAX).min(data.bytes.len());
        let piece = &data.bytes[index_of(at)..index_of(last.min(to))];
        take(piece)?;
        at += piece.len() as u64;
    }
    if at < to {
        return Err(Error::new(
            Kind::OutOfLog,
            format!("read the log of {lane}: it ends at {at}, before {to}"),
        ));
    }
    Ok(())
}

/// Runs what blocks without keeping a runtime of several threads from its other work.
pub(crate) fn blocking<T>(work: impl FnOnce() -> T) -> T {
    match tokio::runtime::Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(tokio::runtime::RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// Makes of the fed servers what the layout says, and gives a connection to each.
async fn finish(job: &RestoreJob<'_>, shards: &[(&NodeLayout, &ShardMeta)]) -> Result<Vec<Client>> {
    let layout = job.layout;
    let clustered = layout.cluster.cluster.is_some();
    job.progress.stage("open servers");
    if !clustered && layout.sandbox {
        let (node, _) = shards[0];
        let client = wait_ready(layout, node, job.host).await?;
        apply_settings(layout, node, &client).await?;
        return Ok(vec![client]);
    }
    let purpose = if clustered { Purpose::Clustered } else { Purpose::Master };
    let restarts = shards.iter().map(|(node, _)| restart(layout, node, job.host, &purpose));
    let clients: Vec<Client> = join_all(restarts).await.into_iter().collect::<Result<_>>()?;
    if clustered {
        let members: Vec<Member> =
            shards.iter().map(|(_, shard)| Member::Master(shard.slots.clone())).collect();
        let part =
            Layout { nodes: shards.iter().map(|(node, _)| (*node).clone()).collect(), ..layout.clone() };
        assemble(&clients, &part, &members).await?;
        wait_until_well(&clients, &part, true).await?;
    } else if let (Some(first), Some((master, _))) = (layout.nodes.first(), shards.first()) {
        remember(&first.data(), &master.name);
    }
    Ok(clients)
}

/// Saves, and starts again as what the node shall be.
async fn restart(layout: &Layout, node: &NodeLayout, host: &dyn Host, purpose: &Purpose) -> Result<Client> {
    let client = wait_ready(layout, node, host).await?.patient(COMMAND_DEADLINE);
    if config::append_only(layout) {
        client.call(&["CONFIG", "SET", "appendonly", "yes"]).await?;
        let begun = Tick::now();
        loop {
            let info = client.info(&["persistence"]).await?;
            let is = |key: &str, value: &str| info.get(key).is_some_and(|found| found == value);
            if is("aof_rewrite_in_progress", "0")
                && is("aof_rewrite_scheduled", "0")
                && is("aof_last_bgrewrite_status", "ok")
            {
                break;
            }
            if begun.elapsed() > COMMAND_DEADLINE {
                return Err(last_words(node, Kind::Deadline, "its append-only file is not ready"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    // A server saves at its end if there is any save point.
    client.call(&["CONFIG", "SET", "save", "3600 1"]).await?;
    host.stop(&node.name, "TERM", STOP_GRACE).await?;
    if !node.data().join("dump.rdb").is_file() {
        return Err(last_words(node, Kind::Server, "it ended without saving"));
    }
    start_node(layout, node, host, purpose).await?;
    wait_ready(layout, node, host).await
}

/// Gives a running sandbox the settings that its file would give it, without starting it again.
async fn apply_settings(layout: &Layout, node: &NodeLayout, client: &Client) -> Result<()> {
    crate::launch::write_config(layout, node, &Purpose::Master)?;
    for (key, value) in config::settings(layout, &Purpose::Master) {
        if let Err(error) = client.call(&["CONFIG", "SET", &key, &value]).await {
            // Some can only be set at a start.
            tracing::debug!(%error, key, "setting is not applied to the sandbox");
        }
    }
    Ok(())
}

fn door(layout: &Layout, node: &NodeLayout) -> Door {
    let access = layout.access();
    let at = access.nodes.iter().find(|candidate| candidate.name == node.name);
    at.map_or_else(
        || Door { host: "127.0.0.1".into(), port: node.ports[0], user: layout.user.clone(), password: None },
        |at| connect::door(&access, at),
    )
}
