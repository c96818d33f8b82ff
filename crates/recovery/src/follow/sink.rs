//! What an adapter hands its log to: the spool, without ever blocking the tasks of others, and waiting where there is no room.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use mainstay_engine::{Chunk, Error, Kind, LogSink, Result};
use mainstay_model::{Bracket, Branch, Place};
use tokio::sync::{Notify, watch};

use super::spool::Spool;

/// How often free space is looked at while there is none: nobody tells when others free a disk.
const ROOM_POLL: Duration = Duration::from_millis(200);

/// The [`LogSink`] of one lane.
pub(super) struct Sink {
    pub spool: Arc<Spool>,
    /// How far the lane is in the vault.
    pub vaulted: watch::Receiver<Option<Place>>,
    /// Rung at every beat and flush, for the uploader.
    pub moved: Arc<Notify>,
}

#[async_trait]
impl LogSink for Sink {
    async fn append(&self, chunk: Chunk) -> Result<()> {
        self.wait_for_room().await?;
        if self.spool.append(&chunk)? {
            self.flush().await?;
        }
        Ok(())
    }

    async fn sync(&self) -> Result<Place> {
        self.flush().await
    }

    async fn branch(&self, branch: Branch, history: Option<Bytes>) -> Result<()> {
        self.spool.branch(branch, history)?;
        self.flush().await.map(|_| ())
    }

    async fn beat(&self, at: &Place, time: Bracket) -> Result<()> {
        // A beat says that all below it is here; it must not say so of what a crash would take back.
        if self.spool.durable().borrow().as_ref() != Some(at) {
            self.flush().await?;
        }
        let (spool, at) = (self.spool.clone(), at.clone());
        blocking(move || {
            spool.set_beat(&at, time);
            Ok(())
        })
        .await?;
        self.moved.notify_one();
        Ok(())
    }

    fn vaulted(&self) -> Option<Place> {
        self.vaulted.borrow().clone()
    }

    async fn before(&self, from: &Place) -> Result<Option<Chunk>> {
        let (spool, from) = (self.spool.clone(), from.clone());
        blocking(move || spool.before(&from)).await
    }
}

impl Sink {
    async fn flush(&self) -> Result<Place> {
        let spool = self.spool.clone();
        let end = blocking(move || spool.flush()).await?;
        self.moved.notify_one();
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
