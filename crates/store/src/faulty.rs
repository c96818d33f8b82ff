//! A decorator that fails as stores do: for tests.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{Backend, Error, Kind, Listing, Object, Result};

/// One way to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `Unavailable`, and nothing was done.
    Before,
    /// `Unavailable`, though it was done: the outcome is not known.
    After,
    /// No answer for ever.
    Hang,
    /// Half of the bytes are written, or given, and that is called success.
    Truncate,
    /// Nothing is written, and that is called success.
    Forget,
    /// This call and every one after it fails for good, as if the process had been killed here.
    Die,
}

/// Chooses by the call's number, verb and key.
type Choose = dyn Fn(u64, &'static str, &str) -> Option<Fault> + Send + Sync;

/// Which calls fail, counted from 0 over all verbs.
#[derive(Clone)]
pub struct Faults {
    choose: Arc<Choose>,
}

impl Faults {
    /// Chosen by the call's number, verb (`put create get head list delete`) and key.
    pub fn choose(choose: impl Fn(u64, &'static str, &str) -> Option<Fault> + Send + Sync + 'static) -> Self {
        Self { choose: Arc::new(choose) }
    }

    /// Every n-th call.
    pub fn every(n: u64, fault: Fault) -> Self {
        Self::choose(move |call, _, _| (call % n == n - 1).then_some(fault))
    }

    /// All calls from the n-th on, for good.
    pub fn die_at(n: u64) -> Self {
        Self::choose(move |call, _, _| (call == n).then_some(Fault::Die))
    }
}

/// A backend that fails on purpose. Clones share the faults and the count of calls.
#[derive(Clone)]
pub struct Faulty<B> {
    inner: B,
    faults: Arc<Mutex<Faults>>,
    calls: Arc<AtomicU64>,
    dead: Arc<AtomicU64>,
}

impl<B> Faulty<B> {
    /// Fails calls on `inner` as `faults` says.
    pub fn new(inner: B, faults: Faults) -> Self {
        Self { inner, faults: Arc::new(Mutex::new(faults)), calls: Arc::default(), dead: Arc::default() }
    }

    /// How many calls were made.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    /// Fails by other rules from now on, counting from 0 again; what died lives again.
    pub fn set(&self, faults: Faults) {
        *self.faults.lock().unwrap_or_else(PoisonError::into_inner) = faults;
        self.calls.store(0, Ordering::SeqCst);
        self.dead.store(0, Ordering::SeqCst);
    }

    fn next(&self, verb: &'static str, key: &str) -> Result<Option<Fault>> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        let choose = self.faults.lock().unwrap_or_else(PoisonError::into_inner).choose.clone();
        let fault = choose(call, verb, key);
        if fault == Some(Fault::Die) {
            self.dead.store(1, Ordering::SeqCst);
        }
        if self.dead.load(Ordering::SeqCst) == 1 {
            return Err(Error::new(Kind::Other, verb, key).source("killed here by a test"));
        }
        match fault {
            Some(Fault::Before) => Err(Error::new(Kind::Unavailable, verb, key)),
            other => Ok(other),
        }
    }
}

/// Does what is left to do after a call whose bytes, if any, were dealt with.
async fn finish<T>(fault: Option<Fault>, verb: &'static str, key: &str, done: T) -> Result<T> {
    match fault {
        Some(Fault::After) => Err(Error::new(Kind::Unavailable, verb, key)),
        Some(Fault::Hang) => std::future::pending().await,
        _ => Ok(done),
    }
}

fn cut(fault: Option<Fault>, bytes: Bytes) -> Bytes {
    if fault == Some(Fault::Truncate) { bytes.slice(..bytes.len() / 2) } else { bytes }
}

#[async_trait]
impl<B: Backend> Backend for Faulty<B> {
    fn name(&self) -> String {
        self.inner.name()
    }
    async fn put(&self, key: &str, bytes: Bytes) -> Result<()> {
        let fault = self.next("put", key)?;
        if fault != Some(Fault::Forget) {
            self.inner.put(key, cut(fault, bytes)).await?;
        }
        finish(fault, "put", key, ()).await
    }
    async fn create(&self, key: &str, bytes: Bytes) -> Result<()> {
        let fault = self.next("create", key)?;
        if fault != Some(Fault::Forget) {
            self.inner.create(key, cut(fault, bytes)).await?;
        }
        finish(fault, "create", key, ()).await
    }
    async fn get(&self, key: &str, range: Option<(u64, u64)>) -> Result<Bytes> {
        let fault = self.next("get", key)?;
        let bytes = self.inner.get(key, range).await?;
        finish(fault, "get", key, cut(fault, bytes)).await
    }
    async fn head(&self, key: &str) -> Result<Object> {
        let fault = self.next("head", key)?;
        let object = self.inner.head(key).await?;
        finish(fault, "head", key, object).await
    }
    async fn list(&self, prefix: &str) -> Result<Vec<Object>> {
        let fault = self.next("list", prefix)?;
        let objects = self.inner.list(prefix).await?;
        finish(fault, "list", prefix, objects).await
    }
    async fn list_level(&self, prefix: &str) -> Result<Listing> {
        let fault = self.next("list", prefix)?;
        let listing = self.inner.list_level(prefix).await?;
        finish(fault, "list", prefix, listing).await
    }
    async fn delete(&self, key: &str) -> Result<()> {
        let fault = self.next("delete", key)?;
        if fault != Some(Fault::Forget) {
            self.inner.delete(key).await?;
        }
        finish(fault, "delete", key, ()).await
    }
    async fn sweep(&self) -> Result<()> {
        self.inner.sweep().await
    }
}
