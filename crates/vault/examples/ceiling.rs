//! How fast each stage of the vault's pipeline could be on this machine, over the files of a folder: read, hash, compress, encrypt, write.
//!
//! `cargo run --release -p mainstay-vault --example ceiling -- FOLDER [WORK]`: reads FOLDER, writes into WORK (a temporary folder of it, by default in
//! FOLDER's parent) and prints a table. One thread each, the whole pipeline with all of its threads. Nothing is asserted: it measures.
#![expect(clippy::print_stdout, reason = "it prints a table")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mainstay_engine::{Cut, FileKind, FileSpec, Quiet, SnapshotSink, SnapshotSource, Taken};
use mainstay_model::{Bracket, Position};
use mainstay_store::{Folder, Limits, Store};
use mainstay_vault::Vault;

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const BLOCK: usize = 256 << 10;
const PAGE: usize = 8192;

fn main() -> Outcome<()> {
    let mut args = std::env::args().skip(1).map(PathBuf::from);
    let folder = args.next().ok_or("usage: ceiling FOLDER [WORK]")?;
    let parent =
        args.next().or_else(|| folder.parent().map(Path::to_owned)).ok_or("there is no folder to work in")?;
    let work = parent.join(format!("ceiling-{}", std::process::id()));
    fs::create_dir_all(&work)?;
    let measured = measure(&folder, &work);
    fs::remove_dir_all(&work)?;
    measured
}

fn measure(folder: &Path, work: &Path) -> Outcome<()> {
    let mut files = Vec::new();
    walk(folder, &mut files)?;
    let bytes: u64 = files.iter().map(|(_, size)| size).sum();
    println!("{} files, {:.2} GiB; GiB/s of content", files.len(), gib(bytes));

    row("read (as cached as it is)", bytes, stage(&files, |_| Ok(()))?);
    row("read (cached)", bytes, stage(&files, |_| Ok(()))?);
    let reading = stage(&files, |_| Ok(()))?;
    let key = [7; 32];
    let hashing = stage(&files, |block| {
        for page in block.chunks(PAGE) {
            std::hint::black_box(blake3::keyed_hash(&key, page));
        }
        Ok(())
    })?;
    row("hash of 8 KiB pages (and two reads)", bytes, hashing.saturating_sub(reading));
    let mut compressor = zstd::bulk::Compressor::new(3)?;
    let mut packed = 0;
    let compressing = stage(&files, |block| {
        packed += compressor.compress(block)?.len() as u64;
        Ok(())
    })?;
    row("zstd 3 in frames of 256 KiB", bytes, compressing.saturating_sub(reading));
    println!("  compresses {:.2} : 1", bytes as f64 / packed.max(1) as f64);

    let recipient = age::x25519::Identity::generate().to_public();
    let (pack, count) = (vec![42; 16 << 20], 16);
    let begun = Instant::now();
    let mut cipher = Vec::new();
    for _ in 0..count {
        cipher.clear();
        let encryptor = age::Encryptor::with_recipients(std::iter::once(&recipient as _))?;
        let mut writer = encryptor.wrap_output(&mut cipher)?;
        writer.write_all(&pack)?;
        writer.finish()?;
    }
    row("age (of packed bytes)", count * (16 << 20), begun.elapsed());
    let begun = Instant::now();
    for n in 0..count {
        let mut file = File::create(work.join(format!("write-{n}")))?;
        // In pieces, as the store does: see `WRITE_BYTES` there.
        for piece in cipher.chunks(512 << 10) {
            file.write_all(piece)?;
        }
        file.sync_all()?;
    }
    row("write with fsync (of packed bytes)", count * (16 << 20), begun.elapsed());

    whole(folder, &files, bytes, work)
}

/// The vault itself: a first snapshot, a second one of the same, and a restore.
fn whole(folder: &Path, files: &[(PathBuf, u64)], bytes: u64, work: &Path) -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let store = Store::with(Folder::open(work.join("vault"))?, Limits::default());
    let vault = runtime.block_on(Vault::create(store, &[], &work.join("keys")))?.vault;
    let cluster = vault.cluster("bench", "local", "files");
    let mut last = None;
    for name in ["vault: first snapshot", "vault: second, nothing changed"] {
        let begun = Instant::now();
        let writer = runtime.block_on(cluster.begin("1", "ceiling"))?;
        let next = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| -> Outcome<()> {
            let put = || -> Outcome<()> {
                while let Some((path, _)) = files.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
                {
                    let name = path.strip_prefix(folder)?.to_string_lossy().into_owned();
                    let cut = Cut::Pages(8192);
                    let spec = FileSpec { path: name, kind: FileKind::Regular, mode: 0o600, cut };
                    writer.put(&spec, &mut File::open(path)?)?;
                }
                Ok(())
            };
            let other = scope.spawn(put);
            put()?;
            other.join().map_err(|_| "a thread panicked")?
        })?;
        let taken = Taken {
            position: Position::default(),
            started: Position::default(),
            at: Bracket::exactly(mainstay_model::Instant::now()),
            incarnation: None,
            version: String::new(),
            branches: Vec::new(),
            meta: serde_json::Value::Null,
        };
        let record = runtime.block_on(writer.commit(taken))?;
        row(name, bytes, begun.elapsed());
        println!("  new {:.3} GiB, stored {:.3} GiB", gib(record.bytes_new), gib(record.bytes_stored));
        last = Some(record);
    }
    let Some(record) = last else { return Ok(()) };
    let begun = Instant::now();
    let reader = runtime.block_on(cluster.open_snapshot(&record.id))?;
    let target = work.join("restored");
    let places: Vec<_> =
        reader.files()?.into_iter().map(|(spec, _)| (spec.path.clone(), target.join(&spec.path))).collect();
    reader.place(&places, None, 2, &Quiet)?;
    row("vault: restore, synced", bytes, begun.elapsed());
    let status = fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or("VmHWM: unknown");
    println!("peak memory {}", peak.trim_start_matches("VmHWM:").trim());
    Ok(())
}

fn stage(files: &[(PathBuf, u64)], mut work: impl FnMut(&[u8]) -> Outcome<()>) -> Outcome<Duration> {
    let begun = Instant::now();
    let mut block = vec![0; BLOCK];
    for (path, _) in files {
        let mut file = File::open(path)?;
        loop {
            let n = file.read(&mut block)?;
            if n == 0 {
                break;
            }
            work(&block[..n])?;
        }
    }
    Ok(begun.elapsed())
}

fn walk(folder: &Path, files: &mut Vec<(PathBuf, u64)>) -> Outcome<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.is_dir() {
            walk(&entry.path(), files)?;
        } else if metadata.is_file() {
            files.push((entry.path(), metadata.len()));
        }
    }
    Ok(())
}

fn row(name: &str, bytes: u64, took: Duration) {
    use std::sync::atomic::{AtomicU64, Ordering};
    static BEFORE: AtomicU64 = AtomicU64::new(0);
    let now = processor_ticks();
    // Ticks are hundredths of a second. On a loaded machine they say more than the clock does.
    let processor = (now - BEFORE.swap(now, Ordering::Relaxed)) as f64 / 100.0;
    let seconds = took.as_secs_f64();
    let rate = gib(bytes) / seconds.max(1e-9);
    println!("{name:<36} {rate:>8.2} GiB/s {seconds:>8.2} s {processor:>8.2} s of processors");
}

/// What this process has used of the processors, in ticks.
fn processor_ticks() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    after_name.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum()
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1_u64 << 30) as f64
}
