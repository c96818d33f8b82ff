//! A decorator that counts calls and bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{Backend, Listing, Object, Result};

/// A backend whose calls are counted.
#[derive(Debug)]
pub struct Counting<B> {
    inner: B,
    counts: Arc<Counts>,
}

/// What was counted; shared with the [`Counting`] that counts.
#[derive(Debug, Default)]
pub struct Counts {
    /// Calls that write: put, create.
    pub writes: AtomicU64,
    /// Calls that read: get.
    pub reads: AtomicU64,
    /// head and list.
    pub looks: AtomicU64,
    /// Deletions.
    pub deletes: AtomicU64,
    /// Bytes given to put and create.
    pub bytes_written: AtomicU64,
    /// Bytes that get gave.
    pub bytes_read: AtomicU64,
}

impl<B> Counting<B> {
    /// Counts the calls on `inner`.
    pub fn new(inner: B) -> (Self, Arc<Counts>) {
        let counts = Arc::new(Counts::default());
        (Self { inner, counts: Arc::clone(&counts) }, counts)
    }

    fn wrote(&self, bytes: &Bytes) {
        self.counts.writes.fetch_add(1, Ordering::Relaxed);
        self.counts.bytes_written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    }
}

#[async_trait]
impl<B: Backend> Backend for Counting<B> {
    fn name(&self) -> String {
        self.inner.name()
    }
    async fn put(&self, key: &str, bytes: Bytes) -> Result<()> {
        self.wrote(&bytes);
        self.inner.put(key, bytes).await
    }
    async fn create(&self, key: &str, bytes: Bytes) -> Result<()> {
        self.wrote(&bytes);
        self.inner.create(key, bytes).await
    }
    async fn get(&self, key: &str, range: Option<(u64, u64)>) -> Result<Bytes> {
        self.counts.reads.fetch_add(1, Ordering::Relaxed);
        let bytes = self.inner.get(key, range).await?;
        self.counts.bytes_read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(bytes)
    }
    async fn head(&self, key: &str) -> Result<Object> {
        self.counts.looks.fetch_add(1, Ordering::Relaxed);
        self.inner.head(key).await
    }
    async fn list(&self, prefix: &str) -> Result<Vec<Object>> {
        self.counts.looks.fetch_add(1, Ordering::Relaxed);
        self.inner.list(prefix).await
    }
    async fn list_level(&self, prefix: &str) -> Result<Listing> {
        self.counts.looks.fetch_add(1, Ordering::Relaxed);
        self.inner.list_level(prefix).await
    }
    async fn delete(&self, key: &str) -> Result<()> {
        self.counts.deletes.fetch_add(1, Ordering::Relaxed);
        self.inner.delete(key).await
    }
    async fn sweep(&self) -> Result<()> {
        self.inner.sweep().await
    }
}
