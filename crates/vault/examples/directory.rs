//! A directory into a vault, and out of it again: the vault alone, without an engine, as `bench/` measures it.
//!
//! `directory put VAULT KEYS DIR JOBS` and `directory get VAULT KEYS DIR JOBS`. VAULT and KEYS are folders, made where there are none. Each `put` is a
//! snapshot that builds on the one before; `get` places the newest one in DIR, which must not hold any of its files. Files below PostgreSQL's
//! `base/` and `global/` are cut in pages, as its adapter does; all others by their content. What it did goes to stdout as one line of JSON.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use mainstay_engine::{Cut, FileKind, FileSpec, Quiet, SnapshotSink, SnapshotSource, Taken};
use mainstay_model::{Bracket, Instant, Lane, Place, Position};
use mainstay_store::{Store, StoreSpec};
use mainstay_vault::{ClusterVault, SnapshotWriter, Vault};

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const INCARNATION: &str = "directory";

#[tokio::main]
async fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [verb, vault, keys, dir, jobs] = args.as_slice() else {
        return Err("directory put|get VAULT KEYS DIR JOBS".into());
    };
    let store = Store::open(&StoreSpec::folder(std::path::absolute(vault)?))?;
    let opened = Vault::open_or_create(store, &[], Path::new(keys)).await?;
    let cluster = opened.vault.cluster("bench", "local", "directory");
    let (dir, jobs) = (PathBuf::from(dir), jobs.parse()?);
    let begun = std::time::Instant::now();
    let told = match verb.as_str() {
        "put" => put(&cluster, dir, jobs).await?,
        "get" => get(&cluster, dir, jobs).await?,
        other => return Err(format!("{other}: put or get").into()),
    };
    writeln!(io::stdout(), "{{\"seconds\":{:.3},{told}}}", begun.elapsed().as_secs_f64())?;
    Ok(())
}

async fn put(cluster: &ClusterVault, dir: PathBuf, jobs: usize) -> Outcome<String> {
    let writer = cluster.begin(INCARNATION, "directory").await?;
    let mut found = Vec::new();
    walk(&dir, "", &mut found)?;
    // The largest first, so that no thread is left alone with one at the end.
    found.sort_by_key(|(_, _, bytes)| std::cmp::Reverse(*bytes));
    let queue = Arc::new(Mutex::new(VecDeque::from(found)));
    let threads: Vec<_> = (0..jobs.max(1))
        .map(|_| {
            let (queue, writer) = (Arc::clone(&queue), Arc::clone(&writer));
            tokio::task::spawn_blocking(move || store_all(&queue, &writer))
        })
        .collect();
    for thread in threads {
        thread.await??;
    }
    let now = Instant::now();
    let here = Position::single(Lane::new("none"), Place::new("1", 0));
    let taken = Taken {
        position: here.clone(),
        started: here,
        at: Bracket::exactly(now),
        incarnation: Some(INCARNATION.into()),
        version: "1".into(),
        branches: Vec::new(),
        meta: serde_json::Value::Null,
    };
    let record = writer.commit(taken).await?;
    Ok(format!(
        "\"bytes_read\":{},\"bytes_new\":{},\"bytes_stored\":{}",
        record.bytes_read, record.bytes_new, record.bytes_stored
    ))
}

async fn get(cluster: &ClusterVault, dir: PathBuf, jobs: usize) -> Outcome<String> {
    let snapshots = cluster.snapshots().await?;
    let newest = snapshots.last().ok_or("the vault holds no snapshot")?;
    let reader = cluster.open_snapshot(&newest.id).await?;
    let bytes = tokio::task::spawn_blocking(move || {
        let files = reader.files()?.into_iter().map(|(file, _)| (file.path.clone(), dir.join(file.path)));
        reader.place(&files.collect::<Vec<_>>(), None, jobs, &Quiet)
    });
    Ok(format!("\"bytes_placed\":{}", bytes.await??))
}

type Found = (FileSpec, PathBuf, u64);

fn walk(folder: &Path, inside: &str, found: &mut Vec<Found>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if inside.is_empty() { name } else { format!("{inside}/{name}") };
        let metadata = entry.metadata()?;
        let mode = metadata.permissions().mode() & 0o7777;
        if metadata.is_dir() {
            walk(&entry.path(), &path, found)?;
            found.push((
                FileSpec { path, kind: FileKind::Directory, mode, cut: Cut::Whole },
                entry.path(),
                0,
            ));
        } else if metadata.is_file() {
            let pages = path.starts_with("base/") || path.starts_with("global/");
            let cut = if pages { Cut::Pages(8192) } else { Cut::Content };
            found.push((FileSpec { path, kind: FileKind::Regular, mode, cut }, entry.path(), metadata.len()));
        }
    }
    Ok(())
}

fn store_all(queue: &Mutex<VecDeque<Found>>, writer: &Arc<SnapshotWriter>) -> Outcome<()> {
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some((spec, from, _)) = next else { return Ok(()) };
        match spec.kind {
            FileKind::Regular => writer.put(&spec, &mut File::open(from)?)?,
            _ => writer.put(&spec, &mut io::empty())?,
        };
    }
}
