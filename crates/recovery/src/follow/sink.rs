//! What an adapter hands its log to: the spool, without ever blocking the tasks of others, and waiting where there is no room.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use mainstay_engine::{Chunk, Error, Kind, LogSink, Result};
use mainstay_model::{Bracket, Branch, Instant, Lane, Offset, Place};
use mainstay_vault::ClusterVault;
use tokio::sync::watch;

use super::upload::Vaulted;

use super::spool::Spool;

/// How often free space is looked at while there is none: nobody tells when others free a disk.
const ROOM_POLL: Duration = Duration::from_millis(200);

/// The [`LogSink`] of one lane.
pub(super) struct Sink {
    pub vault: ClusterVault,
    pub incarnation: String,
    pub lane: Lane,
    pub spool: Arc<Spool>,
    /// How far the lane is in the vault.
    pub vaulted: watch::Receiver<Vaulted>,
    /// Set while the link follows from a place before the spool's end, where the history branched: what lies behind that place is not
    /// on the source's history, and is not to be acknowledged to it.
    pub rewound: Mutex<Option<Place>>,
    /// Set while this process has no lease: nothing behind it is acknowledged, since it may be another's to keep.
    pub unleased_from: Option<Place>,
    /// Set at the first word from the source.
    pub linked: Arc<AtomicBool>,
}

#[async_trait]
impl LogSink for Sink {
    async fn append(&self, chunk: Chunk) -> Result<()> {
        let end = Offset(chunk.at.offset.0 + chunk.bytes.len() as u128);
        self.append_counted(chunk, end).await
    }

    async fn append_counted(&self, chunk: Chunk, end: Offset) -> Result<()> {
        self.linked.store(true, Ordering::Relaxed);
        self.wait_for_room().await?;
        if self.spool.append(&chunk, end)? {
            self.flush().await?;
        }
        Ok(())
    }

    async fn sync(&self) -> Result<Place> {
        let end = self.flush().await?;
        if let Some(from) = &self.unleased_from {
            return Ok(from.clone());
        }
        Ok(self.rewound().clone().unwrap_or(end))
    }

    async fn branch(&self, branch: Branch, history: Option<Bytes>) -> Result<()> {
        self.spool.branch(branch, history)?;
        // Told of the epoch that we are in, nothing has moved yet.
        let is_ours = self
            .rewound()
            .as_ref()
            .is_some_and(|place| self.spool.end().is_some_and(|end| end.epoch != place.epoch));
        if is_ours {
            *self.rewound() = None;
        }
        self.flush().await.map(|_| ())
    }

    async fn beat(&self, at: &Place, time: Bracket) -> Result<()> {
        self.linked.store(true, Ordering::Relaxed);
        // A beat says that all below it is here; it must not say so of what a crash would take back.
        if self.spool.durable().borrow().as_ref() != Some(at) {
            self.flush().await?;
        }
        let (spool, at) = (self.spool.clone(), at.clone());
        blocking(move || {
            spool.set_beat(&at, time);
            Ok(())
        })
        .await
    }

    fn vaulted(&self) -> Option<Place> {
        self.vaulted.borrow().end.clone()
    }

    async fn before(&self, from: &Place) -> Result<Option<Chunk>> {
        super::resume::before(&self.spool, &self.vault, &self.incarnation, &self.lane, from).await
    }

    fn not_before(&self, from: &Place) -> Option<Instant> {
        self.spool.not_before(from)
    }
}

impl Sink {
    fn rewound(&self) -> MutexGuard<'_, Option<Place>> {
        self.rewound.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn flush(&self) -> Result<Place> {
        let spool = self.spool.clone();
        let end = blocking(move || spool.flush()).await?;
        end.ok_or_else(|| Error::new(Kind::Invalid, "sync spool: it was not begun"))
    }

    async fn wait_for_room(&self) -> Result<()> {
        if self.spool.has_room() {
            return Ok(());
        }
        let full = async {
            loop {
                let room = self.spool.room().notified();
                let _ = tokio::time::timeout(ROOM_POLL, room).await;
                if self.spool.has_room() {
                    return;
                }
            }
        };
        let wait = self.spool.limits().wait;
        tokio::time::timeout(wait, full).await.map_err(|_| {
            Error::new(Kind::SpoolFull, format!("append to spool: no room; {}", self.spool.describe()))
                .hint("the vault takes log more slowly than it comes, or the disk is full")
        })
    }
}

/// Runs blocking work beside the tasks.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(Error::new(Kind::Io, "work on a thread ended early").source(e)),
    }
}
