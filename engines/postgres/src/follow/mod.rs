//! Following the log: a physical replication link to the primary, and a slot that keeps the log while we are away.
//!
//! We count for nobody's commit: the link never reports a flushed place, and a walsender without one is no synchronous
//! standby, whatever `synchronous_standby_names` says. What is durable in the spool is acknowledged by moving our slot
//! (`pg_replication_slot_advance`), on the primary and on every standby, so that a promoted one still has the log that we need.
//! The received place is reported as written at once, so that a server that shuts down never waits for our disk; a spool that takes
//! nothing ends the link.
//!
//! Timelines are followed by their histories: a link that ends at a fork goes on in the timeline that the server names, and what
//! we hold beyond a fork is reported as [`Kind::Diverged`] with the place where the surviving history left it.

mod chunk;
mod mind;

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant as Clock};

use async_trait::async_trait;
use futures::FutureExt;
use mainstay_engine::{Access, Chunk, Error, Follow, Kind, LogSink, Never, Result};
use mainstay_model::{Branch, Epoch, Lane, Place};

use self::chunk::Scan;
use crate::connect;
use crate::lsn::{self, Lsn, Timeline};
use crate::replication::{Client, ReplicationError, Started, Streamed, WalStream};
use crate::snapshot::lane;
use crate::wal::Scanner;
use crate::{Postgres, fault};

/// The longest that an append stays without an fsync.
const SYNC_INTERVAL: Duration = Duration::from_millis(20);
const STATUS_INTERVAL: Duration = Duration::from_secs(5);
/// The server sends a keepalive at the latest after half its wal_sender_timeout when we answer; this is far beyond.
const SILENCE_MAX: Duration = Duration::from_secs(120);
/// How long the spool may take nothing: less than the time after which a server counts us as dead.
const SPOOL_PATIENCE: Duration = Duration::from_secs(20);

#[async_trait]
impl Follow for Postgres {
    async fn lanes(&self, _: &Access) -> Result<Vec<Lane>> {
        Ok(vec![lane()])
    }

    async fn tip(&self, access: &Access, _: &Lane) -> Result<Place> {
        let primary = connect::primary(access).await?;
        let mut client = connect::replicate(access, &access.nodes[primary.index]).await?;
        let slot = connect::slot(access);
        ensure_slot(&mut client, &slot).await?;
        let identity =
            client.identify().await.map_err(|error| fault::replication("ask how far the log is", error))?;
        let (history, _) = connect::history(&mut client, identity.timeline).await?;
        let segment_size = segment_size(&primary.sql).await?;
        // A segment's beginning says where its first record is; the slot keeps whole segments.
        let start = identity.flushed.segment_start(segment_size);
        // Just behind a promotion that is still its parent's.
        let branches = connect::branches(identity.timeline, &history);
        let branch = branches.iter().rev().find(|branch| branch.first.low() <= start.0).or(branches.first());
        let epoch = branch.map(|branch| &branch.epoch);
        Ok(lsn::place(epoch.unwrap_or(&lsn::epoch(identity.timeline, &history)), start))
    }

    async fn follow(&self, access: &Access, _: &Lane, from: &Place, sink: &dyn LogSink) -> Result<Never> {
        let primary = connect::primary(access).await?;
        let mut client = connect::replicate(access, &access.nodes[primary.index]).await?;
        let segment_size = segment_size(&primary.sql).await?;
        let (history, _) = connect::history(&mut client, primary.timeline).await?;
        let branches = connect::branches(primary.timeline, &history);
        let start = resume(&branches, from)?;
        ensure_slot(&mut client, &connect::slot(access)).await?;
        let link = Link {
            access,
            sink,
            segment_size,
            reached: Mutex::new(from.clone()),
            durable: Mutex::new(from.clone()),
        };
        let streaming = link.stream(client, start, Lsn(from.offset.low()));
        let minding = link.mind(&primary);
        let error = tokio::select! {
            error = streaming => error,
            error = minding => error,
        };
        Err(error)
    }

    async fn release(&self, access: &Access) -> Result<()> {
        let slot = connect::slot(access);
        let (mut reached, mut failed) = (false, None);
        for node in &access.nodes {
            let released = async {
                let mut client = connect::replicate(access, node).await?;
                match client.read_slot(&slot).await {
                    Ok(None) => Ok(()),
                    Ok(Some(_)) => client
                        .drop_slot(&slot)
                        .await
                        .map_err(|error| fault::replication("drop our slot", error)),
                    Err(error) => Err(fault::replication("look at our slot", error)),
                }
            };
            match released.await {
                Ok(()) => reached = true,
                // A node that is gone keeps nothing; were it to come back, max_slot_wal_keep_size limits what it keeps.
                Err(error) if error.kind == Kind::Unreachable && reached => {}
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) if error.kind != Kind::Unreachable || !reached => Err(error),
            _ => Ok(()),
        }
    }
}

/// The server's segment size in bytes.
pub(crate) async fn segment_size(sql: &tokio_postgres::Client) -> Result<u64> {
    let what = "ask for the segment size";
    let row = connect::row(sql, what, "SELECT pg_size_bytes(current_setting('wal_segment_size'))").await?;
    connect::column(&row, 0, what)
}

/// Makes our slot where it is not there, and anew where the server gave it up.
async fn ensure_slot(client: &mut Client, slot: &str) -> Result<()> {
    let known =
        client.read_slot(slot).await.map_err(|error| fault::replication("look at our slot", error))?;
    match known {
        Some(known) if known.restart.is_some() => return Ok(()),
        // Given up for want of space. Whether the log that we need is gone with it, the link will say.
        Some(_) => client
            .drop_slot(slot)
            .await
            .map_err(|error| fault::replication("drop a slot that was given up", error))?,
        None => {}
    }
    match client.create_slot(slot).await {
        Err(error) if error.is_code("42710") => Ok(()),
        other => other.map_err(|error| fault::replication("make our slot", error)),
    }
}

/// In which timeline to begin, and whether what we hold is on the source's history.
fn resume(branches: &[Branch], from: &Place) -> Result<Timeline> {
    let timeline = lsn::timeline_of(&from.epoch)
        .map_err(|error| Error::new(Kind::Invalid, "read where to follow from").source(error))?;
    let Some(index) = branches.iter().position(|branch| branch.epoch == from.epoch) else {
        // Another node made a timeline of the same number, or ours is one that nobody went on from.
        let what = format!("timeline {timeline} ({}) is not in the source's history", from.epoch);
        return Err(Error::new(Kind::Diverged { branched: None }, what)
            .hint("take a snapshot: the log of another history cannot be joined"));
    };
    let left = branches.get(index + 1).and_then(|next| next.parent.as_ref());
    if let Some(left) = left
        && from.offset > left.offset
    {
        let what = format!(
            "the source left timeline {timeline} at {}, before {}",
            Lsn(left.offset.low()),
            Lsn(from.offset.low())
        );
        return Err(Error::new(Kind::Diverged { branched: Some(left.clone()) }, what));
    }
    if from.offset < branches[index].first {
        let what = format!(
            "timeline {timeline} begins at {}, behind {}",
            Lsn(branches[index].first.low()),
            Lsn(from.offset.low())
        );
        return Err(Error::new(Kind::Invalid, what));
    }
    Ok(timeline)
}

/// One link.
struct Link<'a> {
    access: &'a Access,
    sink: &'a dyn LogSink,
    segment_size: u64,
    /// Up to where the sink took log.
    reached: Mutex<Place>,
    /// Up to where it made it durable.
    durable: Mutex<Place>,
}

fn get(place: &Mutex<Place>) -> Place {
    place.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn set(place: &Mutex<Place>, to: Place) {
    *place.lock().unwrap_or_else(PoisonError::into_inner) = to;
}

impl Link<'_> {
    /// Streams until something ends it.
    async fn stream(&self, client: Client, timeline: Timeline, from: Lsn) -> Error {
        match self.try_stream(client, timeline, from).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn try_stream(&self, mut client: Client, mut timeline: Timeline, from: Lsn) -> Result<Never> {
        let mut scan =
            Scan { scanner: Scanner::new(from, self.segment_size, None), segment_size: self.segment_size };
        let mut epoch = get(&self.reached).epoch;
        let mut at = from;
        loop {
            let started = client.start(None, at, timeline).await.map_err(|error| refused(&epoch, error))?;
            let (back, next) = match started {
                Started::Ended(back, next) => (back, next),
                Started::Streaming(mut stream) => {
                    at = self.one_timeline(&mut stream, &epoch, at, &mut scan).await?;
                    stream
                        .finish()
                        .await
                        .map_err(|error| fault::replication("ask which timeline follows", error))?
                }
            };
            client = back;
            if next.at != at {
                // Cannot be: the link starts at or before the fork and ends at it.
                return Err(Error::new(
                    Kind::Damaged,
                    format!("timeline {timeline} ended at {at}, and the next begins at {}", next.at),
                ));
            }
            let (history, bytes) = connect::history(&mut client, next.timeline).await?;
            let branches = connect::branches(next.timeline, &history);
            let Some(branch) = branches.into_iter().next_back() else {
                return Err(Error::new(Kind::Damaged, "a timeline without a history"));
            };
            tracing::info!(cluster = self.access.cluster, timeline = next.timeline, at = %next.at, "the log goes on in another timeline");
            epoch = branch.epoch.clone();
            self.sync().await?;
            patiently(self.sink.branch(branch, bytes)).await?;
            set(&self.reached, lsn::place(&epoch, at));
            set(&self.durable, lsn::place(&epoch, at));
            timeline = next.timeline;
        }
    }

    /// Takes log until the timeline ends, and says where.
    async fn one_timeline(
        &self,
        stream: &mut WalStream,
        epoch: &Epoch,
        from: Lsn,
        scan: &mut Scan,
    ) -> Result<Lsn> {
        let mut at = from;
        let mut unsynced: Option<Clock> = None;
        let mut heard = Clock::now();
        let mut status_sent = Clock::now();
        loop {
            // Whatever is there already is taken first; when nothing is, what was taken is made durable.
            let due = unsynced.is_some_and(|since| since.elapsed() >= SYNC_INTERVAL);
            let ready = if due { None } else { stream.next().now_or_never() };
            let message = match ready {
                Some(message) => Some(message),
                None if unsynced.take().is_some() => {
                    self.sync().await?;
                    continue;
                }
                None => tokio::time::timeout(STATUS_INTERVAL, stream.next()).await.ok(),
            };
            let mut answer = status_sent.elapsed() >= STATUS_INTERVAL;
            match message {
                None if heard.elapsed() > SILENCE_MAX => {
                    return Err(Error::new(
                        Kind::Unreachable,
                        format!("the source said nothing for {SILENCE_MAX:?}"),
                    ));
                }
                None => answer = true,
                Some(message) => {
                    heard = Clock::now();
                    match message.map_err(|error| fault::replication("follow the log", error))? {
                        Streamed::Data { start, bytes, .. } => {
                            if start != at {
                                return Err(Error::new(
                                    Kind::Damaged,
                                    format!("the source's log jumps from {at} to {start}"),
                                ));
                            }
                            at = at.plus(bytes.len() as u64);
                            self.append(scan.chunk(epoch, start, bytes)).await?;
                            set(&self.reached, lsn::place(epoch, at));
                            unsynced.get_or_insert_with(Clock::now);
                        }
                        Streamed::Keepalive { reply, .. } => answer |= reply,
                        Streamed::TimelineEnd => return Ok(at),
                    }
                }
            }
            if answer {
                status_sent = Clock::now();
                let sent = stream.status(at, Lsn(0)).await;
                sent.map_err(|error| fault::replication("answer the source", error))?;
            }
        }
    }

    async fn append(&self, chunk: Chunk) -> Result<()> {
        patiently(self.sink.append(chunk)).await
    }

    async fn sync(&self) -> Result<()> {
        let durable = patiently(self.sink.sync()).await?;
        set(&self.durable, durable);
        Ok(())
    }
}

/// A link that answers without moving on, or stands without answering, would hold up a shutdown of the server; one that is gone does not.
async fn patiently<T>(spool: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(SPOOL_PATIENCE, spool).await.unwrap_or_else(|_| {
        Err(Error::new(Kind::SpoolFull, format!("the spool took nothing for {SPOOL_PATIENCE:?}")))
    })
}

/// What it means that the server refuses to start.
fn refused(epoch: &Epoch, error: ReplicationError) -> Error {
    if let ReplicationError::Server(server) = &error {
        // `This server's history forked from timeline 1 at 0/3000148.`
        let forked =
            server.detail.rsplit(' ').next().and_then(|word| word.trim_end_matches('.').parse::<Lsn>().ok());
        if let Some(fork) = forked
            && server.message.contains("is not in this server's history")
        {
            let what = format!("the source left our timeline at {fork}");
            return Error::new(Kind::Diverged { branched: Some(lsn::place(epoch, fork)) }, what);
        }
    }
    fault::replication("ask for the log", error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsn::History;
    use crate::replication::ServerError;

    #[test]
    fn a_link_resumes_where_history_allows() {
        let history = History { branches: vec![(1, Lsn(1000)), (2, Lsn(2000))] };
        let branches = connect::branches(3, &history);
        assert_eq!(
            branches.iter().map(|branch| branch.epoch.0.as_str()).collect::<Vec<_>>(),
            ["1", "2x3e8", "3x7d0"]
        );
        assert_eq!(branches[2].parent, Some(Place::new("2x3e8", 2000)));
        let at = |epoch: &str, lsn| resume(&branches, &Place::new(epoch, lsn));
        assert_eq!(at("1", 900).unwrap(), 1);
        assert_eq!(at("1", 1000).unwrap(), 1);
        assert_eq!(at("2x3e8", 1500).unwrap(), 2);
        assert_eq!(at("3x7d0", 9000).unwrap(), 3);
        assert_eq!(at("1", 1001).unwrap_err().kind, Kind::Diverged { branched: Some(Place::new("1", 1000)) });
        // Another node's timeline 2.
        assert_eq!(at("2x3e7", 1500).unwrap_err().kind, Kind::Diverged { branched: None });
        assert_eq!(at("3x7d0", 1999).unwrap_err().kind, Kind::Invalid);
    }

    #[test]
    fn a_refusal_that_names_the_fork_says_where_to_go_on() {
        let said = |message: &str, detail: &str| {
            let server = ServerError {
                code: "XX000".into(),
                message: message.into(),
                detail: detail.into(),
                hint: String::new(),
            };
            refused(&Epoch("1".into()), ReplicationError::Server(server)).kind
        };
        let gone = "requested starting point 0/5000000 on timeline 1 is not in this server's history";
        let forked = "This server's history forked from timeline 1 at 0/3000148.";
        assert_eq!(said(gone, forked), Kind::Diverged { branched: Some(Place::new("1", 0x300_0148)) });
        // Without the fork's place there is nothing to go on from; and other errors may end in a place too.
        assert_eq!(said(gone, ""), Kind::Server);
        assert_eq!(
            said("requested starting point 0/5000000 is ahead of the WAL flush position", forked),
            Kind::Server
        );
    }
}
