//! The log that a snapshot needs to become consistent, fetched while the copy runs and stored in it, segment by segment.
//!
//! It comes over a replication link of its own; a temporary slot on the same link keeps it at the source, and goes away with the link.
//! Nothing is acknowledged as flushed, so this link never counts for a synchronous commit.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use mainstay_engine::{Error, Kind, Result, SnapshotSink};
use mainstay_model::Instant;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::{Job, joined, spec};
use crate::connect;
use crate::fault;
use crate::lsn::{Lsn, Timeline, segment_name};
use crate::replication::{Client, Started, Streamed};
use crate::wal::{Event, Scanner, decode, magic_of};

const STATUS_INTERVAL: Duration = Duration::from_secs(10);
/// The source's data may be silent for as long as nothing is written; the link is not.
const SILENCE_MAX: Duration = Duration::from_secs(120);
const QUEUE: usize = 32;

/// What is known once the log is stored.
pub(super) struct Finished {
    /// The time of the last commit below the snapshot's end.
    pub last_commit: Option<Instant>,
}

/// The snapshot's own log, on its way.
pub(super) struct OwnLog {
    client: Option<Client>,
    sink: Arc<dyn SnapshotSink>,
    segment_size: u64,
    major: u32,
    stop: watch::Sender<Option<Lsn>>,
    fetching: JoinSet<Result<Finished>>,
}

impl OwnLog {
    /// Makes the source keep its log from now on.
    pub async fn reserve(job: &Job<'_>, segment_size: u64) -> Result<Self> {
        let mut client = connect::replicate(job.access, job.node).await?;
        // Unique among the links that one process or several have at the same time.
        let nonce = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos());
        let name = format!("mainstay_snapshot_{}_{nonce:x}", std::process::id());
        let command =
            format!("CREATE_REPLICATION_SLOT {} TEMPORARY PHYSICAL RESERVE_WAL", connect::quote_name(&name));
        client
            .query(&command)
            .await
            .map_err(|error| fault::replication("make the source keep its log", error))?;
        Ok(Self {
            client: Some(client),
            sink: Arc::clone(&job.sink),
            segment_size,
            major: job.major,
            stop: watch::Sender::new(None),
            fetching: JoinSet::new(),
        })
    }

    /// Begins to fetch, from the segment that holds `start` on.
    pub fn begin(&mut self, start: Lsn, timeline: Timeline) {
        let Some(client) = self.client.take() else { return };
        let from = start.segment_start(self.segment_size);
        let fetch = Fetch {
            sink: Arc::clone(&self.sink),
            segment_size: self.segment_size,
            timeline,
            at: from,
            scanner: {
                let scanner = Scanner::new(from, self.segment_size, None);
                match magic_of(self.major) {
                    Some(magic) => scanner.expecting(magic),
                    None => scanner,
                }
            },
            last_commit: None,
            commits: Vec::new(),
            writer: None,
            puts: JoinSet::new(),
        };
        let stop = self.stop.subscribe();
        self.fetching.spawn(fetch.run(client, stop));
    }

    /// An error of the fetching, as soon as there is one; otherwise waits for ever.
    pub async fn failed(&mut self) -> Error {
        match self.fetching.join_next().await {
            Some(Ok(Err(error))) => error,
            Some(Err(error)) => Error::new(Kind::Io, "fetch the snapshot's own log").source(error),
            Some(Ok(Ok(_))) => Error::new(Kind::Invalid, "the snapshot's own log ended before the copy"),
            None => std::future::pending().await,
        }
    }

    /// Waits until the log is stored up to `stop`.
    pub async fn finish(mut self, stop: Lsn) -> Result<Finished> {
        self.stop.send_replace(Some(stop));
        match self.fetching.join_next().await {
            Some(outcome) => joined(outcome),
            None => Err(Error::new(Kind::Invalid, "the snapshot's own log was never begun")),
        }
    }
}

struct Fetch {
    sink: Arc<dyn SnapshotSink>,
    segment_size: u64,
    timeline: Timeline,
    at: Lsn,
    scanner: Scanner,
    last_commit: Option<Instant>,
    /// Commits not yet known to be below the end.
    commits: Vec<(Lsn, i64)>,
    writer: Option<mpsc::Sender<Piece>>,
    puts: JoinSet<Result<()>>,
}

enum Piece {
    Data(Bytes),
    End,
}

impl Fetch {
    async fn run(mut self, client: Client, mut stop: watch::Receiver<Option<Lsn>>) -> Result<Finished> {
        let begun = client.start(None, self.at, self.timeline).await;
        let mut stream =
            match begun.map_err(|error| fault::replication("fetch the snapshot's own log", error))? {
                Started::Streaming(stream) => stream,
                Started::Ended(..) => return Err(self.switched()),
            };
        let mut status = tokio::time::interval(STATUS_INTERVAL);
        loop {
            let end = *stop.borrow_and_update();
            if let Some(end) = end.filter(|end| self.at >= *end) {
                return self.complete(end).await;
            }
            let next = tokio::select! {
                next = tokio::time::timeout(SILENCE_MAX, stream.next()) => next,
                _ = status.tick() => {
                    let sent = stream.status(self.at, Lsn(0)).await;
                    sent.map_err(|error| fault::replication("answer the source", error))?;
                    continue;
                }
                Ok(()) = stop.changed() => continue,
            };
            let next = next.map_err(|_| {
                Error::new(Kind::Unreachable, format!("the source said nothing for {SILENCE_MAX:?}"))
            })?;
            match next.map_err(|error| fault::replication("fetch the snapshot's own log", error))? {
                Streamed::Data { start, bytes, .. } => self.take(start, bytes).await?,
                Streamed::Keepalive { reply: true, .. } => {
                    let sent = stream.status(self.at, Lsn(0)).await;
                    sent.map_err(|error| fault::replication("answer the source", error))?;
                }
                Streamed::Keepalive { .. } => {}
                Streamed::TimelineEnd => return Err(self.switched()),
            }
        }
    }

    fn switched(&self) -> Error {
        Error::new(
            Kind::Unreachable,
            format!("the source left timeline {} while it was copied", self.timeline),
        )
        .hint("take the snapshot again")
    }

    async fn take(&mut self, start: Lsn, mut bytes: Bytes) -> Result<()> {
        if start != self.at {
            return Err(Error::new(
                Kind::Damaged,
                format!("the source's log jumps from {} to {start}", self.at),
            ));
        }
        let commits = &mut self.commits;
        let scanned = self.scanner.push(&bytes, |record| {
            if let Some(Event::Commit { time_us }) = decode(record) {
                commits.push((record.end, time_us));
            }
        });
        scanned.map_err(|error| Error::new(Kind::Damaged, "read the snapshot's own log").source(error))?;
        // Only the newest few can lie beyond an end that is not known yet; keep the list short.
        if self.commits.len() > 10_000 {
            let old = self.commits.drain(..5_000).map(|(_, time_us)| Instant(time_us)).max();
            self.last_commit = self.last_commit.max(old);
        }
        while !bytes.is_empty() {
            let left = self.segment_size - self.at.0 % self.segment_size;
            let now = bytes.split_to((bytes.len() as u64).min(left) as usize);
            let filled = now.len() as u64 == left;
            self.at = self.at.plus(now.len() as u64);
            self.send(Piece::Data(now)).await?;
            if filled {
                // Nothing is said of the end: whoever stores a whole segment may be done, and gone, by now.
                self.writer = None;
            }
            // Segments are stored one behind the other; a failure shows here.
            while let Some(outcome) = self.puts.try_join_next() {
                joined(outcome)?;
            }
        }
        Ok(())
    }

    async fn send(&mut self, piece: Piece) -> Result<()> {
        if self.writer.is_none() {
            let first = match &piece {
                Piece::Data(bytes) => self.at.0 - bytes.len() as u64,
                Piece::End => self.at.0 - 1,
            };
            let name = segment_name(self.timeline, first / self.segment_size, self.segment_size);
            let (writer, queue) = mpsc::channel(QUEUE);
            let mut reader =
                SegmentReader { queue, current: Bytes::new(), left: self.segment_size, ended: false };
            let sink = Arc::clone(&self.sink);
            let spec = spec(&format!("pg_wal/{name}"), 0o600);
            self.puts.spawn_blocking(move || sink.put(&spec, &mut reader).map(drop));
            self.writer = Some(writer);
        }
        let Some(writer) = &self.writer else { return Ok(()) };
        if writer.send(piece).await.is_err() {
            // The thread that stored it is gone: it says why.
            while let Some(outcome) = self.puts.join_next().await {
                joined(outcome)?;
            }
            return Err(Error::new(Kind::Io, "store the snapshot's own log"));
        }
        Ok(())
    }

    async fn complete(mut self, end: Lsn) -> Result<Finished> {
        if self.writer.is_some() {
            self.send(Piece::End).await?;
            self.writer = None;
        }
        while let Some(outcome) = self.puts.join_next().await {
            joined(outcome)?;
        }
        let below =
            self.commits.iter().filter(|(at, _)| *at <= end).map(|(_, time_us)| Instant(*time_us)).max();
        Ok(Finished { last_commit: below.max(self.last_commit) })
    }
}

/// Gives a segment's bytes to a thread, and zeros behind them up to its length.
struct SegmentReader {
    queue: mpsc::Receiver<Piece>,
    current: Bytes,
    left: u64,
    ended: bool,
}

impl Read for SegmentReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = (into.len() as u64).min(self.left) as usize;
        if most == 0 {
            return Ok(0);
        }
        while self.current.is_empty() && !self.ended {
            match self.queue.blocking_recv() {
                Some(Piece::Data(bytes)) => self.current = bytes,
                Some(Piece::End) => self.ended = true,
                None => {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the snapshot was given up"));
                }
            }
        }
        let n = if self.ended {
            into[..most].fill(0);
            most
        } else {
            let n = most.min(self.current.len());
            self.current.copy_to_slice(&mut into[..n]);
            n
        };
        self.left -= n as u64;
        Ok(n)
    }
}
