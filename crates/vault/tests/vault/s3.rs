//! A real S3 server, started here; stores that break their promises.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use mainstay_store::{Backend, Kind, Limits, Listing, Memory, Object, Secret, Store, StoreSpec};
use mainstay_vault::{Vault, VerifyOptions};

use crate::kit::{bytes, compare, now, sample, snapshot};
use crate::prunes::prune;

/// A server on a free port, with one bucket, that is stopped when this is dropped.
struct Server {
    child: Child,
    _folder: tempfile::TempDir,
    endpoint: String,
}

impl Server {
    fn start() -> Self {
        let binary = engine("versitygw/bin/versitygw");
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("data/bucket")).unwrap();
        // Another process may take the port between looking and listening; then the server ends at once, and another port is tried.
        for _ in 0..20 {
            let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let mut child = Command::new(&binary)
                .args([
                    "--access",
                    "test-key",
                    "--secret",
                    "test-secret",
                    "--port",
                    &format!("127.0.0.1:{port}"),
                ])
                .args(["posix", &folder.path().join("data").to_string_lossy()])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let deadline = Instant::now() + Duration::from_secs(60);
            while child.try_wait().unwrap().is_none() {
                assert!(Instant::now() < deadline, "the S3 server does not answer");
                if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                    return Self { child, _folder: folder, endpoint: format!("http://127.0.0.1:{port}") };
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        panic!("no free port was found for the S3 server");
    }

    fn store(&self, secret: &str) -> Store {
        let spec = StoreSpec {
            url: "s3://bucket/deep/vault".parse().unwrap(),
            base_dir: PathBuf::from("/"),
            endpoint: Some(self.endpoint.clone()),
            region: None,
            access_key: Some(Secret("test-key".into())),
            secret_key: Some(Secret(secret.into())),
        };
        Store::open(&spec).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program that `scripts/engines` installs.
fn engine(path: &str) -> PathBuf {
    let mut folders: Vec<PathBuf> =
        std::env::var_os("MAINSTAY_ENGINES").map(PathBuf::from).into_iter().collect();
    folders.push("/var/cache/mainstay/engines".into());
    if let Some(home) = std::env::var_os("HOME") {
        folders.push(PathBuf::from(home).join(".cache/mainstay/engines"));
    }
    let found = folders.iter().map(|folder| folder.join(path)).find(|program| program.exists());
    found.unwrap_or_else(|| panic!("{path} is not installed: run scripts/engines"))
}

#[test]
fn a_vault_lives_on_s3() {
    let server = Server::start();
    let keys = tempfile::tempdir().unwrap();
    let store = server.store("test-secret");
    let vault = now(Vault::create(store.clone(), &[], keys.path())).unwrap().vault;
    let cluster = vault.cluster("shop", "local", "orders");
    let mut files = sample();
    let first = snapshot(&cluster, &files).unwrap();
    compare(&cluster, &first.id, &files).unwrap();
    files.get_mut("base/1/1000").unwrap().1[8192 * 7] ^= 1;
    let second = snapshot(&cluster, &files).unwrap();
    assert_eq!(second.bytes_new, 8192);
    assert_eq!(now(vault.clusters()).unwrap(), [("shop".into(), "local".into(), "orders".into())]);
    prune(&cluster);
    prune(&cluster);
    assert_eq!(now(cluster.snapshots()).unwrap().len(), 1);
    compare(&cluster, &second.id, &files).unwrap();
    let verified = now(vault.verify(&VerifyOptions::default())).unwrap();
    assert_eq!((verified.damaged, verified.leftovers), (vec![], 0));
    // Nothing of a probe is left.
    assert!(now(store.list("")).unwrap().iter().all(|object| !object.key.starts_with("probe-")));
    let error = now(server.store("wrong").list("")).unwrap_err();
    assert_eq!(error.kind, Kind::Denied);
    assert!(!format!("{error:?} {:?}", server.store("wrong")).contains("wrong\""));
}

#[test]
fn more_objects_than_a_page_are_listed() {
    let server = Server::start();
    let store = server.store("test-secret");
    let body = Bytes::from(bytes(1, 10));
    now(async {
        let puts = (0..1100).map(|n| {
            let (store, body, key) = (store.clone(), body.clone(), format!("many/{}/{n:04}", n % 3));
            async move { store.put(&key, body).await }.boxed()
        });
        futures::stream::iter(puts).buffer_unordered(8).for_each(|put| async { put.unwrap() }).await;
    });
    let listed = now(store.list("many")).unwrap();
    assert_eq!(listed.len(), 1100);
    assert!(listed.is_sorted());
    assert_eq!(now(store.list_level("many")).unwrap().folders, ["0", "1", "2"]);
    assert_eq!(now(store.list("man")).unwrap(), []);
    now(store.delete("many/0/0000")).unwrap();
    now(store.delete("many/0/0000")).unwrap();
    assert_eq!(now(store.get("many/0/0000")).unwrap_err().kind, Kind::NotFound);
    assert_eq!(now(store.head("many/0/0000")).unwrap_err().kind, Kind::NotFound);
    assert_eq!(now(store.create("many/0/0003", "x")).unwrap_err().kind, Kind::Exists);
}

/// A store that breaks one promise.
struct Broken {
    inner: Memory,
    how: How,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum How {
    CreatesAlways,
    IgnoresRanges,
    ListsNothing,
    KeepsDeleted,
}

#[async_trait]
impl Backend for Broken {
    fn name(&self) -> String {
        "broken:".into()
    }
    async fn put(&self, key: &str, bytes: Bytes) -> mainstay_store::Result<()> {
        self.inner.put(key, bytes).await
    }
    async fn create(&self, key: &str, bytes: Bytes) -> mainstay_store::Result<()> {
        match self.how {
            How::CreatesAlways => self.inner.put(key, bytes).await,
            _ => self.inner.create(key, bytes).await,
        }
    }
    async fn get(&self, key: &str, range: Option<(u64, u64)>) -> mainstay_store::Result<Bytes> {
        self.inner.get(key, range.filter(|_| self.how != How::IgnoresRanges)).await
    }
    async fn head(&self, key: &str) -> mainstay_store::Result<Object> {
        self.inner.head(key).await
    }
    async fn list(&self, prefix: &str) -> mainstay_store::Result<Vec<Object>> {
        match self.how {
            How::ListsNothing => Ok(Vec::new()),
            _ => self.inner.list(prefix).await,
        }
    }
    async fn list_level(&self, prefix: &str) -> mainstay_store::Result<Listing> {
        self.inner.list_level(prefix).await
    }
    async fn delete(&self, key: &str) -> mainstay_store::Result<()> {
        match self.how {
            How::KeepsDeleted => Ok(()),
            _ => self.inner.delete(key).await,
        }
    }
}

#[test]
fn stores_that_cannot_keep_their_promises_are_refused() {
    for how in [How::CreatesAlways, How::IgnoresRanges, How::ListsNothing, How::KeepsDeleted] {
        let memory = Memory::default();
        let keys = tempfile::tempdir().unwrap();
        let store = Store::with(Broken { inner: memory.clone(), how }, Limits::hasty());
        let error = now(Vault::create(store, &[], keys.path())).unwrap_err();
        let mainstay_vault::Error::Store(error) = error else { panic!("{how:?}: {error}") };
        assert_eq!(error.kind, Kind::Unfit, "{how:?}");
        assert!(!memory.keys().contains(&"format.json".to_owned()));
    }
}
