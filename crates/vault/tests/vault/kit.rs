//! What the tests share: small clusters of files, vaults on any store, snapshots and comparisons in one call.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use mainstay_engine::{Cut, FileKind, FileSpec, Quiet, SnapshotSink, SnapshotSource, Taken};
use mainstay_model::{Bracket, Instant, Keep, Lane, Place, Position};
use mainstay_store::{Backend, Limits, Store};
use mainstay_vault::{ClusterVault, Result, SnapshotRecord, SnapshotWriter, Vault};

/// Runs a future, from a test that is not async itself: snapshots are written and read by blocking calls.
pub fn now<T>(future: impl Future<Output = T>) -> T {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| tokio::runtime::Runtime::new().unwrap()).block_on(future)
}

/// A home with a vault in it.
pub struct Kit {
    pub home: tempfile::TempDir,
    pub vault: Vault,
}

impl Kit {
    /// A vault on any backend, with keys in a home of its own.
    pub fn on(backend: impl Backend) -> Self {
        let home = tempfile::tempdir().unwrap();
        let store = Store::with(backend, Limits::hasty());
        let opened = now(Vault::create(store, &[], &home.path().join("keys"))).unwrap();
        assert!(opened.made_identity.is_some());
        Self { home, vault: opened.vault }
    }

    pub fn keys(&self) -> PathBuf {
        self.home.path().join("keys")
    }

    pub fn cluster(&self) -> ClusterVault {
        self.vault.cluster("shop", "local", "orders")
    }

    /// The same vault through another backend.
    pub fn through(&self, backend: impl Backend) -> ClusterVault {
        let store = Store::with(backend, Limits::hasty());
        now(Vault::open(store, &self.keys())).unwrap().cluster("shop", "local", "orders")
    }

    /// The same vault on a host that has the bundle, and not the identity. The folder is its home.
    pub fn without_identity(&self, backend: impl Backend) -> (tempfile::TempDir, Vault) {
        let host = tempfile::tempdir().unwrap();
        let bundle = host.path().join(self.vault.id());
        std::fs::create_dir(&bundle).unwrap();
        std::fs::copy(self.keys().join(self.vault.id()).join("host.key"), bundle.join("host.key")).unwrap();
        let vault = now(Vault::open(Store::with(backend, Limits::hasty()), host.path())).unwrap();
        assert!(!vault.can_restore());
        (host, vault)
    }
}

/// A cluster's files, by path.
pub type Files = BTreeMap<String, (FileSpec, Vec<u8>)>;

pub fn spec(path: &str, cut: Cut) -> FileSpec {
    FileSpec { path: path.into(), kind: FileKind::Regular, mode: 0o600, cut }
}

/// Bytes that compress about as well as a database's: half of each page repeats.
pub fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let word = if (out.len() / 64) % 2 == 0 { state } else { 0x2020_2020_6f6c_6568 };
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.truncate(length);
    out
}

pub const PAGE: u32 = 8192;

/// A small cluster with every kind of file that there is.
pub fn sample() -> Files {
    let mut files = Files::new();
    let mut add = |spec: FileSpec, content: Vec<u8>| files.insert(spec.path.clone(), (spec, content));
    add(spec("base/1/1000", Cut::Pages(PAGE)), bytes(1, 3 << 20));
    let mut holes = bytes(2, 1 << 20);
    holes[100_000..700_000].fill(0);
    add(spec("base/1/1001", Cut::Pages(PAGE)), holes);
    add(spec("base/1/1002", Cut::Pages(PAGE)), Vec::new());
    add(spec("base/1/1003", Cut::Pages(PAGE)), vec![0; 64 << 10]);
    for n in 0..40 {
        add(spec(&format!("base/1/2{n:03}"), Cut::Pages(PAGE)), bytes(100 + n, 8192 * (n as usize % 5) + 77));
    }
    add(spec("dump.rdb", Cut::Content), bytes(3, 2_500_000));
    add(spec("pg_wal/000000010000000000000001", Cut::Whole), bytes(4, 1 << 20));
    add(FileSpec { mode: 0o640, ..spec("backup_label", Cut::Whole) }, b"START WAL LOCATION".to_vec());
    let kind = FileKind::Directory;
    add(FileSpec { path: "pg_notify".into(), kind, mode: 0o700, cut: Cut::Whole }, Vec::new());
    let kind = FileKind::Symlink { target: "../elsewhere".into() };
    add(FileSpec { path: "pg_tblspc".into(), kind, mode: 0o777, cut: Cut::Whole }, Vec::new());
    files
}

/// The least that has every kind of cut, a hole, and frames of its own and shared ones.
pub fn tiny() -> Files {
    let mut files = Files::new();
    let mut add = |spec: FileSpec, content: Vec<u8>| files.insert(spec.path.clone(), (spec, content));
    let mut holes = bytes(1, 300_000);
    holes[100_000..200_000].fill(0);
    add(spec("base/1/1000", Cut::Pages(PAGE)), holes);
    add(spec("base/1/1001", Cut::Pages(PAGE)), bytes(2, 5000));
    add(spec("dump.rdb", Cut::Content), bytes(3, 300_000));
    add(spec("label", Cut::Whole), b"START WAL LOCATION".to_vec());
    let kind = FileKind::Directory;
    add(FileSpec { path: "empty".into(), kind, mode: 0o700, cut: Cut::Whole }, Vec::new());
    files
}

pub fn taken(offset: u64) -> Taken {
    let at = Position::single(Lane::new("wal"), Place::new("1", offset));
    Taken {
        started: at.clone(),
        position: at,
        at: Bracket::exactly(Instant::now()),
        incarnation: Some("7001".into()),
        version: "15.10".into(),
        branches: Vec::new(),
        meta: serde_json::json!({"tablespaces": []}),
    }
}

/// Gives the files to a writer, from two threads.
pub fn put_all(writer: &SnapshotWriter, files: &Files) -> mainstay_engine::Result<()> {
    let all: Vec<_> = files.values().collect();
    let half = all.len() / 2;
    std::thread::scope(|scope| {
        let put = |some: &[&(FileSpec, Vec<u8>)]| {
            some.iter().try_for_each(|(spec, content)| writer.put(spec, &mut &content[..]).map(drop))
        };
        let (first, second) = all.split_at(half);
        let other = scope.spawn(move || put(second));
        let mine = put(first);
        other.join().unwrap().and(mine)
    })
}

/// A whole snapshot.
pub fn snapshot(cluster: &ClusterVault, files: &Files) -> Result<SnapshotRecord, String> {
    let text =
        |e: &dyn std::error::Error| format!("{e} {}", e.source().map(|s| s.to_string()).unwrap_or_default());
    let writer = now(cluster.begin("7001", "test")).map_err(|e| text(&e))?;
    put_all(&writer, files).map_err(|e| text(&e))?;
    now(writer.commit(taken(1))).map_err(|e| text(&e))
}

/// Reads every file of a snapshot and compares.
pub fn compare_reads(cluster: &ClusterVault, id: &str, files: &Files) -> mainstay_engine::Result<()> {
    let reader = now(cluster.open_snapshot(id))?;
    let mut expect: Vec<_> =
        files.values().map(|(spec, content)| (spec.clone(), content.len() as u64)).collect();
    expect.sort_by(|a, b| a.0.path.cmp(&b.0.path));
    assert_eq!(reader.files()?, expect);
    for (spec, content) in files.values().filter(|(spec, _)| spec.kind == FileKind::Regular) {
        let mut read = Vec::new();
        if let Err(error) = reader.open(&spec.path)?.read_to_end(&mut read) {
            return Err(error.downcast().unwrap());
        }
        assert!(read == *content, "{}", spec.path);
    }
    Ok(())
}

/// As [`compare_reads`], and then restores all of it to a disk and compares again.
pub fn compare(cluster: &ClusterVault, id: &str, files: &Files) -> mainstay_engine::Result<()> {
    compare_reads(cluster, id, files)?;
    let reader = now(cluster.open_snapshot(id))?;
    let disk = tempfile::tempdir().unwrap();
    let places: Vec<_> =
        files.keys().map(|path| (path.clone(), disk.path().join("data").join(path))).collect();
    reader.place(&places, None, 3, &Quiet)?;
    compare_disk(&disk.path().join("data"), files);
    Ok(())
}

/// Compares a folder with what it must hold.
pub fn compare_disk(root: &Path, files: &Files) {
    use std::os::unix::fs::PermissionsExt;
    for (path, (spec, content)) in files {
        let disk = root.join(path);
        let metadata = std::fs::symlink_metadata(&disk).unwrap();
        match &spec.kind {
            FileKind::Regular => assert!(std::fs::read(&disk).unwrap() == *content, "{path}"),
            FileKind::Directory => assert!(metadata.is_dir(), "{path}"),
            FileKind::Symlink { target } => {
                assert_eq!(std::fs::read_link(&disk).unwrap(), Path::new(target));
                continue;
            }
        }
        assert_eq!(metadata.permissions().mode() & 0o7777, spec.mode, "{path}");
    }
}

/// Keeps one snapshot, and nothing else.
pub fn keep_one() -> Keep {
    let zero = Duration::ZERO;
    Keep { within: zero, daily: 0, weekly: 0, monthly: 0, yearly: 0, least: 1, log: zero }
}
