//! The copy over the replication protocol: one stream, unpacked here, stored by several threads.
//!
//! Pages are checked by the server, which can read a torn one again; it ends the backup with an error when one stays bad.

use std::io::{self, Cursor, Read};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use mainstay_engine::{Error, Kind, Result};
use mainstay_model::Bracket;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::own_log::OwnLog;
use super::{Copied, Job, clock, directory, joined, put, spec, tablespaces};
use crate::replication::BackupOptions;
use crate::tar::{Entry, EntryKind, Piece};
use crate::unpack::{Files, is_left_out};
use crate::{connect, fault};

/// A file up to this size is gathered whole before it is handed to a thread.
const SMALL_BYTES: u64 = 256 << 10;
const QUEUE: usize = 64;

enum Target {
    Skip,
    Small(Entry, Vec<u8>),
    Large(mpsc::Sender<Option<Bytes>>),
}

pub(super) async fn copy(job: &Job<'_>, sql: &tokio_postgres::Client, own: &mut OwnLog) -> Result<Copied> {
    let client = connect::replicate(job.access, job.node).await?;
    let options =
        BackupOptions { label: job.options.label.clone(), kib_per_second_max: None, fast_checkpoint: true };
    let begun = client.base_backup(&options).await;
    let (start, backup) = begun.map_err(|error| fault::replication("start a base backup", error))?;
    if let Some((_, name)) = connect::left_out(sql, &start.tablespaces).await?.first() {
        let what = format!(
            "copy tablespace {name} over the replication protocol: it lies inside the data directory, and PostgreSQL {} leaves \
             such out of a base backup",
            job.major
        );
        return Err(Error::new(Kind::Unsupported, what).hint(
            "take the snapshot beside the server, by its files, or move the tablespace's tables to another and drop it",
        ));
    }
    own.begin(start.lsn, start.timeline);
    let mut before = clock(sql).await?;
    let mut copy = Copy {
        job,
        threads: Arc::new(Semaphore::new(job.options.jobs.max(1))),
        puts: JoinSet::new(),
        target: Target::Skip,
        map: Vec::new(),
    };
    let mut files = Files::new(backup);
    loop {
        let piece = tokio::select! {
            piece = files.next() => piece?,
            error = own.failed() => return Err(error),
        };
        let Some(piece) = piece else { break };
        if matches!(&piece, Piece::Begin(entry) if entry.path == "global/pg_control") {
            before = clock(sql).await?;
        }
        copy.take(piece).await?;
        job.progress.check()?;
    }
    while let Some(outcome) = copy.puts.join_next().await {
        joined(outcome)?;
    }
    if !copy.map.is_empty() {
        put(job, "mainstay/tablespace_map".into(), copy.map).await?;
    }
    let (stop, timeline) =
        files.end().ok_or_else(|| Error::new(Kind::Damaged, "a base backup without its end"))?;
    if timeline != start.timeline {
        return Err(Error::new(Kind::Unreachable, "the source was promoted while it was copied")
            .hint("take the snapshot again"));
    }
    let after = clock(sql).await?;
    Ok(Copied {
        start: (start.lsn, start.timeline),
        stop,
        tablespaces: tablespaces(&start.tablespaces),
        at: Bracket::between(before, after),
    })
}

struct Copy<'a> {
    job: &'a Job<'a>,
    threads: Arc<Semaphore>,
    puts: JoinSet<Result<()>>,
    target: Target,
    map: Vec<u8>,
}

impl Copy<'_> {
    async fn take(&mut self, piece: Piece) -> Result<()> {
        while let Some(outcome) = self.puts.try_join_next() {
            joined(outcome)?;
        }
        match piece {
            Piece::Begin(entry) => self.begin(entry).await,
            Piece::Data(bytes) => self.data(bytes).await,
            Piece::End => self.end().await,
        }
    }

    async fn begin(&mut self, entry: Entry) -> Result<()> {
        self.target = Target::Skip;
        if entry.path.is_empty() || is_left_out(&entry.path) {
            return Ok(());
        }
        match entry.kind {
            EntryKind::Directory => {
                let spec = directory(&entry.path);
                self.spawn(spec, Cursor::new(Vec::new())).await
            }
            EntryKind::Link(_) => {
                Err(Error::new(Kind::Unsupported, format!("a link in the data directory: {}", entry.path))
                    .hint("take the snapshot with the server's tablespaces in their own folders"))
            }
            EntryKind::File if entry.size <= SMALL_BYTES => {
                let content = Vec::with_capacity(entry.size as usize);
                self.target = Target::Small(entry, content);
                Ok(())
            }
            EntryKind::File => {
                let (writer, queue) = mpsc::channel(QUEUE);
                let spec = spec(&entry.path, entry.mode);
                self.spawn(spec, QueueReader { queue, current: Bytes::new(), ended: false }).await?;
                self.target = Target::Large(writer);
                Ok(())
            }
        }
    }

    async fn data(&mut self, bytes: Bytes) -> Result<()> {
        self.job.progress.advance(bytes.len() as u64);
        match &mut self.target {
            Target::Skip => Ok(()),
            Target::Small(_, content) => {
                content.extend_from_slice(&bytes);
                Ok(())
            }
            Target::Large(writer) => match writer.send(Some(bytes)).await {
                Ok(()) => Ok(()),
                Err(_) => self.failed().await,
            },
        }
    }

    async fn end(&mut self) -> Result<()> {
        match std::mem::replace(&mut self.target, Target::Skip) {
            Target::Skip => Ok(()),
            Target::Small(entry, content) if entry.path == "tablespace_map" => {
                self.map = content;
                Ok(())
            }
            Target::Small(entry, content) => {
                let spec = spec(&entry.path, entry.mode);
                self.spawn(spec, Cursor::new(content)).await
            }
            Target::Large(writer) => match writer.send(None).await {
                Ok(()) => Ok(()),
                Err(_) => self.failed().await,
            },
        }
    }

    /// The thread that was to take bytes is gone: it says why.
    async fn failed(&mut self) -> Result<()> {
        while let Some(outcome) = self.puts.join_next().await {
            joined(outcome)?;
        }
        Err(Error::new(Kind::Io, "a file was not read to its end by whoever stores it"))
    }

    async fn spawn(
        &mut self,
        spec: mainstay_engine::FileSpec,
        mut content: impl Read + Send + 'static,
    ) -> Result<()> {
        let permit = Arc::clone(&self.threads).acquire_owned().await;
        let permit =
            permit.map_err(|error| Error::new(Kind::Cancelled, "the snapshot was given up").source(error))?;
        let sink = Arc::clone(&self.job.sink);
        self.puts.spawn_blocking(move || {
            let _permit = permit;
            sink.put(&spec, &mut content).map(drop)
        });
        Ok(())
    }
}

/// A file's bytes, from the task that receives them to the thread that stores them.
struct QueueReader {
    queue: mpsc::Receiver<Option<Bytes>>,
    current: Bytes,
    ended: bool,
}

impl Read for QueueReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            if self.ended || into.is_empty() {
                return Ok(0);
            }
            match self.queue.blocking_recv() {
                Some(Some(bytes)) => self.current = bytes,
                Some(None) => self.ended = true,
                None => {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the snapshot was given up"));
                }
            }
        }
        // As much as is there: whoever reads wants whole pages, and asks again for less.
        let mut done = 0;
        while done < into.len() {
            let n = self.current.len().min(into.len() - done);
            self.current.copy_to_slice(&mut into[done..done + n]);
            done += n;
            if self.current.is_empty() {
                match self.queue.try_recv() {
                    Ok(Some(bytes)) => self.current = bytes,
                    Ok(None) => {
                        self.ended = true;
                        break;
                    }
                    Err(_) => break,
                }
            }
        }
        Ok(done)
    }
}
