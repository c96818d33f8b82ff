//! S3, and what speaks its protocol.
//!
//! Retries are ours alone: the client's own would hide whether a create took effect. Payloads are signed, so that what arrives
//! damaged is refused by the server.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{
    ClientOptions, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions,
    PutPayload, RetryConfig,
};

use crate::{Backend, Error, Kind, Listing, Object, Result, StoreSpec};

struct S3 {
    client: Arc<AmazonS3>,
    name: String,
    prefix: String,
}

/// Opens a bucket. Sends nothing.
pub(crate) fn open(spec: &StoreSpec, bucket: &str, prefix: &str) -> Result<impl Backend> {
    crate::install_crypto_provider();
    let name = spec.url.to_string();
    let options = ClientOptions::new()
        .with_connect_timeout(Duration::from_secs(10))
        // Each attempt has a deadline of ours, which knows how much it moves.
        .with_timeout_disabled()
        .with_pool_max_idle_per_host(16);
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_region(spec.region.as_deref().unwrap_or("us-east-1"))
        .with_client_options(options)
        .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() });
    if let Some(endpoint) = &spec.endpoint {
        builder = builder.with_endpoint(endpoint).with_allow_http(endpoint.starts_with("http://"));
    }
    if let Some(key) = &spec.access_key {
        builder = builder.with_access_key_id(&key.0);
    }
    if let Some(key) = &spec.secret_key {
        builder = builder.with_secret_access_key(&key.0);
    }
    let client = builder.build().map_err(|e| Error::new(Kind::Invalid, "open", &name).source(e))?;
    Ok(S3 { client: Arc::new(client), name, prefix: prefix.to_owned() })
}

impl S3 {
    fn path(&self, key: &str) -> Path {
        match (self.prefix.is_empty(), key.is_empty()) {
            (true, _) => Path::from(key),
            (false, true) => Path::from(self.prefix.as_str()),
            (false, false) => Path::from(format!("{}/{key}", self.prefix)),
        }
    }

    fn key(&self, path: &Path) -> String {
        let path = path.as_ref();
        match path.strip_prefix(&self.prefix) {
            Some(rest) if !self.prefix.is_empty() => rest.trim_start_matches('/').to_owned(),
            _ => path.to_owned(),
        }
    }

    fn object(&self, meta: &ObjectMeta) -> Object {
        Object { key: self.key(&meta.location), bytes: meta.size }
    }
}

/// Sorts the client's errors into kinds.
fn error(verb: &'static str, key: &str, source: object_store::Error) -> Error {
    use object_store::Error as E;
    let kind = match &source {
        E::NotFound { .. } => Kind::NotFound,
        E::AlreadyExists { .. } | E::Precondition { .. } => Kind::Exists,
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => Kind::Denied,
        E::NotSupported { .. } | E::NotImplemented { .. } => Kind::Unfit,
        E::InvalidPath { .. } | E::UnknownConfigurationKey { .. } => Kind::Invalid,
        // Connections that break and servers' own errors all come as this; of a listing also what the server refuses, as text alone.
        other if says(other, &["status code: 403", "status code: 401"]) => Kind::Denied,
        other if says(other, &["status code: 404"]) => Kind::NotFound,
        _ => Kind::Unavailable,
    };
    Error::new(kind, verb, key).source(source)
}

/// Whether an error, or what lies under it, says one of these.
fn says(error: &object_store::Error, texts: &[&str]) -> bool {
    let mut next: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = next {
        let said = error.to_string();
        if texts.iter().any(|text| said.contains(text)) {
            return true;
        }
        next = error.source();
    }
    false
}

#[async_trait]
impl Backend for S3 {
    fn name(&self) -> String {
        self.name.clone()
    }
    async fn put(&self, key: &str, bytes: Bytes) -> Result<()> {
        let put = self.client.put(&self.path(key), PutPayload::from(bytes)).await;
        put.map(drop).map_err(|e| error("put", key, e))
    }
    async fn create(&self, key: &str, bytes: Bytes) -> Result<()> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let put = self.client.put_opts(&self.path(key), PutPayload::from(bytes), options).await;
        put.map(drop).map_err(|e| error("create", key, e))
    }
    async fn get(&self, key: &str, range: Option<(u64, u64)>) -> Result<Bytes> {
        let range = range.map(|(start, length)| GetRange::Bounded(start..start.saturating_add(length)));
        let options = GetOptions { range, ..GetOptions::default() };
        let got = self.client.get_opts(&self.path(key), options).await.map_err(|e| error("get", key, e))?;
        let expected = got.range.end - got.range.start;
        let bytes = got.bytes().await.map_err(|e| error("get", key, e))?;
        if bytes.len() as u64 != expected {
            return Err(Error::new(Kind::Unavailable, "get", key).source("the answer broke off"));
        }
        Ok(bytes)
    }
    async fn head(&self, key: &str) -> Result<Object> {
        let meta = self.client.head(&self.path(key)).await.map_err(|e| error("head", key, e))?;
        Ok(self.object(&meta))
    }
    async fn list(&self, prefix: &str) -> Result<Vec<Object>> {
        let path = self.path(prefix);
        let metas = self.client.list(Some(&path)).map_ok(|meta| self.object(&meta)).try_collect::<Vec<_>>();
        let mut objects = metas.await.map_err(|e| error("list", prefix, e))?;
        objects.sort();
        Ok(objects)
    }
    async fn list_level(&self, prefix: &str) -> Result<Listing> {
        let path = self.path(prefix);
        let listed =
            self.client.list_with_delimiter(Some(&path)).await.map_err(|e| error("list", prefix, e))?;
        let mut objects: Vec<_> = listed.objects.iter().map(|meta| self.object(meta)).collect();
        let last = |path: &Path| path.as_ref().rsplit('/').next().unwrap_or("").to_owned();
        let mut folders: Vec<_> = listed.common_prefixes.iter().map(last).collect();
        objects.sort();
        folders.sort();
        Ok(Listing { objects, folders })
    }
    async fn delete(&self, key: &str) -> Result<()> {
        match self.client.delete(&self.path(key)).await.map_err(|e| error("delete", key, e)) {
            Err(gone) if gone.kind == Kind::NotFound => Ok(()),
            other => other,
        }
    }
}
