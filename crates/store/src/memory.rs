//! A store in memory, for tests.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{Backend, Error, Kind, Listing, Object, Result};

/// Objects in a map. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    objects: Arc<Mutex<BTreeMap<String, Bytes>>>,
}

impl Memory {
    /// Changes an object's bytes in place, as a failing disk does. Nothing when there is none.
    pub fn damage(&self, key: &str, change: impl FnOnce(&mut Vec<u8>)) {
        if let Some(bytes) = self.lock().get_mut(key) {
            let mut changed = bytes.to_vec();
            change(&mut changed);
            *bytes = changed.into();
        }
    }

    /// Another store with the same objects, that goes its own way from here on.
    #[must_use]
    pub fn fork(&self) -> Self {
        let objects = self.lock().clone();
        Self { objects: Arc::new(Mutex::new(objects)) }
    }

    /// All keys.
    pub fn keys(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Bytes>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Backend for Memory {
    fn name(&self) -> String {
        "memory:".to_owned()
    }
    async fn put(&self, key: &str, bytes: Bytes) -> Result<()> {
        self.lock().insert(key.to_owned(), bytes);
        Ok(())
    }
    async fn create(&self, key: &str, bytes: Bytes) -> Result<()> {
        let mut objects = self.lock();
        if objects.contains_key(key) {
            return Err(Error::new(Kind::Exists, "create", key));
        }
        objects.insert(key.to_owned(), bytes);
        Ok(())
    }
    async fn get(&self, key: &str, range: Option<(u64, u64)>) -> Result<Bytes> {
        let objects = self.lock();
        let bytes = objects.get(key).ok_or_else(|| Error::new(Kind::NotFound, "get", key))?;
        let Some((start, length)) = range else { return Ok(bytes.clone()) };
        let start = usize::try_from(start).unwrap_or(usize::MAX).min(bytes.len());
        let end = start.saturating_add(usize::try_from(length).unwrap_or(usize::MAX)).min(bytes.len());
        Ok(bytes.slice(start..end))
    }
    async fn head(&self, key: &str) -> Result<Object> {
        let objects = self.lock();
        let bytes = objects.get(key).ok_or_else(|| Error::new(Kind::NotFound, "head", key))?;
        Ok(Object { key: key.to_owned(), bytes: bytes.len() as u64 })
    }
    async fn list(&self, prefix: &str) -> Result<Vec<Object>> {
        let inside =
            |key: &&String| prefix.is_empty() || key.strip_prefix(prefix).is_some_and(|r| r.starts_with('/'));
        let objects = self.lock();
        let object = |(key, bytes): (&String, &Bytes)| Object { key: key.clone(), bytes: bytes.len() as u64 };
        Ok(objects.iter().filter(|(key, _)| inside(key)).map(object).collect())
    }
    async fn list_level(&self, prefix: &str) -> Result<Listing> {
        let skip = if prefix.is_empty() { 0 } else { prefix.len() + 1 };
        let mut listing = Listing::default();
        for object in self.list(prefix).await? {
            match object.key[skip..].split_once('/') {
                None => listing.objects.push(object),
                Some((folder, _)) if listing.folders.last().is_none_or(|last| last != folder) => {
                    listing.folders.push(folder.to_owned());
                }
                Some(_) => {}
            }
        }
        listing.folders.sort();
        listing.folders.dedup();
        Ok(listing)
    }
    async fn delete(&self, key: &str) -> Result<()> {
        self.lock().remove(key);
        Ok(())
    }
}
