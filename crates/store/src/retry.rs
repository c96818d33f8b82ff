//! [`Store`]: a backend with deadlines, limited retries, and creates whose outcome is always known.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mainstay_model::VaultUrl;
use tokio::time::Instant;

use crate::backend::{check_key, check_prefix};
use crate::runtime::run;
use crate::{Backend, Error, Folder, Kind, Listing, Memory, Object, Result, StoreSpec};

/// A store that is ready for use. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    backend: Arc<dyn Backend>,
    limits: Limits,
}

/// How long and how often a call is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Attempts in all.
    pub attempts: u32,
    /// The pause after the first failed attempt; it doubles with each, up to `pause_max`, less a random part of it.
    pub pause: Duration,
    /// The longest pause.
    pub pause_max: Duration,
    /// The deadline of one attempt that moves no bytes to speak of.
    pub deadline: Duration,
    /// What an attempt gets on top, for each MiB that it moves.
    pub deadline_per_mib: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            attempts: 7,
            pause: Duration::from_millis(100),
            pause_max: Duration::from_secs(5),
            deadline: Duration::from_secs(30),
            deadline_per_mib: Duration::from_secs(4),
        }
    }
}

impl Limits {
    /// No pauses and short deadlines: for tests with a failing store.
    pub fn hasty() -> Self {
        Self {
            pause: Duration::from_millis(1),
            pause_max: Duration::from_millis(2),
            deadline: Duration::from_secs(10),
            ..Self::default()
        }
    }
}

impl Store {
    /// Opens what the spec says. Where there is no folder, the first write makes it (0700); a bucket must exist. Touches no object.
    ///
    /// # Errors
    /// `Invalid` for settings that make no sense, `Denied`, `Other` where there is no folder but something else.
    pub fn open(spec: &StoreSpec) -> Result<Self> {
        match &spec.url {
            VaultUrl::File(path) => {
                Ok(Self::with(Folder::open(spec.base_dir.join(path))?, Limits::default()))
            }
            VaultUrl::S3 { bucket, prefix } => {
                Ok(Self::with(crate::s3::open(spec, bucket, prefix)?, Limits::default()))
            }
        }
    }

    /// A store in memory, for tests.
    pub fn memory() -> Self {
        Self::with(Memory::default(), Limits::default())
    }

    /// A store on any backend.
    pub fn with(backend: impl Backend, limits: Limits) -> Self {
        Self { backend: Arc::new(backend), limits }
    }

    /// The same store under other limits.
    #[must_use]
    pub fn limited(&self, limits: Limits) -> Self {
        Self { backend: Arc::clone(&self.backend), limits }
    }

    /// Where it is, for people.
    pub fn name(&self) -> String {
        self.backend.name()
    }

    /// Writes an object, whole and durably. Meant for keys that are used once: writing the same bytes again is harmless.
    ///
    /// # Errors
    /// As the backend's, after the last attempt.
    pub async fn put(&self, key: &str, bytes: impl Into<Bytes>) -> Result<()> {
        check_key("put", key)?;
        let (this, key, bytes) = (self.clone(), key.to_owned(), bytes.into());
        let size = bytes.len() as u64;
        run(async move { this.attempts("put", &key, size, || this.backend.put(&key, bytes.clone())).await })
            .await
    }

    /// Writes an object where there is none. Bytes must be unlike those of any other writer (a nonce in them): an attempt of unknown outcome
    /// is read back, and what is found equal was ours.
    ///
    /// # Errors
    /// `Exists` when somebody else's is there.
    pub async fn create(&self, key: &str, bytes: impl Into<Bytes>) -> Result<()> {
        check_key("create", key)?;
        let (this, key, bytes) = (self.clone(), key.to_owned(), bytes.into());
        run(async move { this.create_known(&key, bytes).await }).await
    }

    async fn create_known(&self, key: &str, bytes: Bytes) -> Result<()> {
        let mut pause = Pauses::new(self.limits);
        let mut unknown = false;
        loop {
            let size = bytes.len() as u64;
            let made = self.deadline("create", key, size, self.backend.create(key, bytes.clone())).await;
            match made {
                Ok(()) => return Ok(()),
                // After an attempt that broke off, what exists may be what it wrote.
                Err(error) if error.kind == Kind::Exists && unknown => {
                    let found = self.attempts("get", key, size, || self.backend.get(key, None)).await?;
                    return if found == bytes { Ok(()) } else { Err(error) };
                }
                Err(error) if error.kind.is_transient() => {
                    unknown = true;
                    pause.next(error).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads an object.
    ///
    /// # Errors
    /// `NotFound`, and as the backend's after the last attempt.
    pub async fn get(&self, key: &str) -> Result<Bytes> {
        check_key("get", key)?;
        let (this, key) = (self.clone(), key.to_owned());
        run(async move {
            this.attempts("get", &key, GET_BYTES_EXPECTED, || this.backend.get(&key, None)).await
        })
        .await
    }

    /// Reads at most `length` bytes of an object from `start` on; fewer only where it ends.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn get_range(&self, key: &str, start: u64, length: u64) -> Result<Bytes> {
        check_key("get", key)?;
        let (this, key) = (self.clone(), key.to_owned());
        run(async move {
            this.attempts("get", &key, length, || this.backend.get(&key, Some((start, length)))).await
        })
        .await
    }

    /// The size of an object.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn head(&self, key: &str) -> Result<Object> {
        check_key("head", key)?;
        let (this, key) = (self.clone(), key.to_owned());
        run(async move { this.attempts("head", &key, 0, || this.backend.head(&key)).await }).await
    }

    /// Every object below a folder's name (`c/shop`; empty for all), ordered by key.
    ///
    /// # Errors
    /// As the backend's, after the last attempt.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Object>> {
        check_prefix("list", prefix)?;
        let (this, prefix) = (self.clone(), prefix.to_owned());
        run(async move {
            this.attempts("list", &prefix, LIST_BYTES_EXPECTED, || this.backend.list(&prefix)).await
        })
        .await
    }

    /// The objects and folders directly below a folder's name.
    ///
    /// # Errors
    /// As the backend's, after the last attempt.
    pub async fn list_level(&self, prefix: &str) -> Result<Listing> {
        check_prefix("list", prefix)?;
        let (this, prefix) = (self.clone(), prefix.to_owned());
        run(async move { this.attempts("list", &prefix, 0, || this.backend.list_level(&prefix)).await }).await
    }

    /// Deletes an object; one that is not there is no error.
    ///
    /// # Errors
    /// As the backend's, after the last attempt.
    pub async fn delete(&self, key: &str) -> Result<()> {
        check_key("delete", key)?;
        let (this, key) = (self.clone(), key.to_owned());
        run(async move { this.attempts("delete", &key, 0, || this.backend.delete(&key)).await }).await
    }

    /// Removes what interrupted writes of processes that are gone have left in a folder.
    ///
    /// # Errors
    /// As the backend's, after the last attempt.
    pub async fn sweep(&self) -> Result<()> {
        let this = self.clone();
        run(async move { this.attempts("sweep", "", LIST_BYTES_EXPECTED, || this.backend.sweep()).await })
            .await
    }

    /// Tries whether the store keeps the promises that a vault needs, under a folder `probe-…` of its own that it removes.
    ///
    /// # Errors
    /// `Unfit`, with the promise that was broken.
    pub async fn probe(&self) -> Result<crate::Probed> {
        crate::probe::probe(self).await
    }

    async fn attempts<T, F>(
        &self,
        verb: &'static str,
        key: &str,
        size: u64,
        call: impl Fn() -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let mut pause = Pauses::new(self.limits);
        loop {
            match self.deadline(verb, key, size, call()).await {
                Err(error) if error.kind.is_transient() => pause.next(error).await?,
                done => return done,
            }
        }
    }

    async fn deadline<T>(
        &self,
        verb: &'static str,
        key: &str,
        size: u64,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let mib = u32::try_from(size >> 20).unwrap_or(u32::MAX);
        let limit = self.limits.deadline + self.limits.deadline_per_mib.saturating_mul(mib);
        let until = Instant::now() + limit;
        match tokio::time::timeout_at(until, call).await {
            Ok(done) => done,
            Err(_) => Err(Error::new(Kind::Deadline, verb, key)),
        }
    }
}

/// Whole objects are read without asking for their size first; none is larger than this by much.
const GET_BYTES_EXPECTED: u64 = 32 << 20;
/// Listing a large vault takes many requests.
const LIST_BYTES_EXPECTED: u64 = 64 << 20;

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.name()).finish()
    }
}

/// Counts attempts and sleeps between them.
struct Pauses {
    limits: Limits,
    made: u32,
}

impl Pauses {
    fn new(limits: Limits) -> Self {
        Self { limits, made: 1 }
    }

    /// Sleeps before the next attempt, or gives the error back when there is none left.
    async fn next(&mut self, error: Error) -> Result<()> {
        if self.made >= self.limits.attempts {
            return Err(error);
        }
        let doubled = self.limits.pause.saturating_mul(1 << (self.made - 1).min(16));
        let longest = doubled.min(self.limits.pause_max);
        tracing::debug!(attempt = self.made, verb = error.verb, key = error.key, "trying the store again");
        self.made += 1;
        // Half of it at random, so that many callers do not come back at once.
        tokio::time::sleep(longest.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
        Ok(())
    }
}
