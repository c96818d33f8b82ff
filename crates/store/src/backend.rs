//! What a kind of store must offer, before limits and retries are put around it.

use async_trait::async_trait;
use bytes::Bytes;

use crate::{Error, Kind, Result};

/// One kind of store. Calls may fail or hang; [`crate::Store`] puts deadlines and retries around them.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Where it is, for people: `file:/srv/vault`. Never a secret.
    fn name(&self) -> String;
    /// Writes an object, whole and durably.
    async fn put(&self, key: &str, bytes: Bytes) -> Result<()>;
    /// Writes an object where there is none; `Exists` where there is one.
    async fn create(&self, key: &str, bytes: Bytes) -> Result<()>;
    /// Reads an object, or `length` bytes of it from `start` on. A range that reaches past the end is cut at the end.
    async fn get(&self, key: &str, range: Option<(u64, u64)>) -> Result<Bytes>;
    /// The size of an object.
    async fn head(&self, key: &str) -> Result<Object>;
    /// Every object below a prefix (a folder's name, without a slash at its end; empty for all), ordered by key.
    async fn list(&self, prefix: &str) -> Result<Vec<Object>>;
    /// The objects and folders directly below a prefix.
    async fn list_level(&self, prefix: &str) -> Result<Listing>;
    /// Deletes an object; one that is not there is no error.
    async fn delete(&self, key: &str) -> Result<()>;
    /// Removes what interrupted writes of processes that are gone have left. Where there is no such thing, nothing.
    async fn sweep(&self) -> Result<()> {
        Ok(())
    }
}

/// An object, as listed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Object {
    /// Its key.
    pub key: String,
    /// Its size in bytes.
    pub bytes: u64,
}

/// One level of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// The objects at this level, ordered by key.
    pub objects: Vec<Object>,
    /// The names (last parts only) of the folders at this level, ordered.
    pub folders: Vec<String>,
}

/// Longest key: S3 allows 1024 bytes, of which the prefix takes some.
const KEY_BYTES_MAX: usize = 900;
/// Longest part between slashes: what common filesystems allow.
const PART_BYTES_MAX: usize = 255;

/// Refuses keys that some store would change, or that would lead out of a folder.
pub(crate) fn check_key(verb: &'static str, key: &str) -> Result<()> {
    let part_ok = |part: &str| {
        !part.is_empty()
            && part.len() <= PART_BYTES_MAX
            && !part.starts_with('.')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    if key.len() <= KEY_BYTES_MAX && key.split('/').all(part_ok) {
        Ok(())
    } else {
        Err(Error::new(Kind::Invalid, verb, key))
    }
}

/// As [`check_key`], and takes the empty prefix.
pub(crate) fn check_prefix(verb: &'static str, prefix: &str) -> Result<()> {
    if prefix.is_empty() { Ok(()) } else { check_key(verb, prefix) }
}
