//! The copy beside the server: several threads read its files between `pg_backup_start` and `pg_backup_stop`.
//!
//! Pages are checked as they are read; one that fails was perhaps being written, and is read again. `pg_control` comes last.
//! The session that started the backup stays open to its end: the server gives the backup up when it closes.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mainstay_engine::{Error, Kind, NodeAccess, Progress, Result, SnapshotSink};
use mainstay_model::Bracket;
use tokio::task::JoinSet;

use super::own_log::OwnLog;
use super::{Copied, Job, clock, directory, joined, parse_label, parse_map, put, spec};
use crate::connect;
use crate::lsn::Lsn;
use crate::pages::{self, PAGE_BYTES, Page};
use crate::unpack::is_left_out;

const READ_BYTES: usize = 256 << 10;
const REREADS: usize = 10;
const REREAD_PAUSE: Duration = Duration::from_millis(20);
const CONTROL: &str = "global/pg_control";

/// The node's data directory, when this process can read it and it is that server's.
pub(super) fn data_dir(node: &NodeAccess, system_id: u64) -> Result<PathBuf> {
    let Some(data) = &node.data_dir else {
        return Err(Error::new(
            Kind::Unsupported,
            format!("read the files of {}: they are not on this machine", node.name),
        ));
    };
    let failed = |error| Error::io(format!("read {}", data.display()), error);
    let control = fs::read(data.join(CONTROL)).map_err(failed)?;
    let found = control.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
    let pid = fs::read_to_string(data.join("postmaster.pid")).map_err(failed)?;
    // postmaster.pid: pid, data directory, start time, port, …
    let port = pid.lines().nth(3).and_then(|line| line.trim().parse::<u16>().ok());
    if found != Some(system_id) || port != Some(node.port) {
        return Err(Error::new(
            Kind::Invalid,
            format!("{} is not the data directory of the server at port {}", data.display(), node.port),
        ));
    }
    Ok(data.clone())
}

pub(super) async fn copy(
    job: &Job<'_>,
    sql: &tokio_postgres::Client,
    data: PathBuf,
    own: &mut OwnLog,
) -> Result<Copied> {
    let label = connect::quote_text(&job.options.label);
    // A fast checkpoint, and a session that lives until the end.
    let what = "start the backup";
    let query = format!(
        "SELECT pg_backup_start({label}, true), CASE WHEN pg_is_in_recovery() THEN NULL \
         ELSE substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END"
    );
    let row = connect::row(sql, what, &query).await?;
    let start: Lsn = connect::column(&row, 0, what)?;
    let timeline = match row.get(1).and_then(|hex| u32::from_str_radix(hex, 16).ok()) {
        Some(timeline) => timeline,
        // A standby: the timeline that it replays.
        None => {
            let mut client = connect::replicate(job.access, job.node).await?;
            client
                .identify()
                .await
                .map_err(|error| crate::fault::replication("ask for the timeline", error))?
                .timeline
        }
    };
    own.begin(start, timeline);
    let work = {
        let (data, major) = (data.clone(), job.major);
        joined(tokio::task::spawn_blocking(move || list(&data, major)).await)?
    };
    job.progress.expect(work.files.iter().map(|file| file.bytes).sum());
    let shared = Arc::new(Shared {
        queue: Mutex::new(work.files.into()),
        stopped: AtomicBool::new(false),
        sink: Arc::clone(&job.sink),
        progress: Arc::clone(&job.progress),
        start,
        checksums: job.checksums,
    });
    // Ends the readers when this future is dropped.
    let guard = Stop(Arc::clone(&shared));
    for folder in &work.folders {
        let (sink, spec) = (Arc::clone(&job.sink), directory(folder));
        joined(tokio::task::spawn_blocking(move || sink.put(&spec, &mut io::empty()).map(drop)).await)?;
    }
    let mut readers = JoinSet::new();
    for _ in 0..job.options.jobs.max(1) {
        let shared = Arc::clone(&shared);
        readers.spawn_blocking(move || shared.work());
    }
    loop {
        let outcome = tokio::select! {
            outcome = readers.join_next() => outcome,
            error = own.failed() => return Err(error),
        };
        match outcome {
            Some(outcome) => joined(outcome)?,
            None => break,
        }
    }
    drop(guard);
    let control = {
        let data = data.clone();
        joined(tokio::task::spawn_blocking(move || control(&data)).await)?
    };
    put(job, CONTROL.into(), control).await?;
    let before = clock(sql).await?;
    let what = "stop the backup";
    let row = connect::row(sql, what, "SELECT lsn, labelfile, spcmapfile FROM pg_backup_stop(false)").await?;
    let after = clock(sql).await?;
    let stop: Lsn = connect::column(&row, 0, what)?;
    let label = row.get(1).unwrap_or("").to_owned();
    let map = row.get(2).unwrap_or("").to_owned();
    let labelled = parse_label(&label)
        .ok_or_else(|| Error::new(Kind::Damaged, "the server's backup label says no start"))?;
    if labelled != (start, timeline) {
        return Err(Error::new(Kind::Unreachable, "the source was promoted while it was copied")
            .hint("take the snapshot again"));
    }
    put(job, "backup_label".into(), label.into_bytes()).await?;
    if !map.is_empty() {
        put(job, "mainstay/tablespace_map".into(), map.clone().into_bytes()).await?;
    }
    Ok(Copied {
        start: (start, timeline),
        stop,
        tablespaces: parse_map(&map),
        at: Bracket::between(before, after),
    })
}

struct Work {
    folders: Vec<String>,
    files: Vec<WorkFile>,
}

struct WorkFile {
    path: String,
    from: PathBuf,
    bytes: u64,
    mode: u32,
}

/// All files to copy, the largest first, so that no thread is left alone with one at the end.
fn list(data: &Path, major: u32) -> Result<Work> {
    let mut work = Work { folders: Vec::new(), files: Vec::new() };
    walk(data, "", major, &mut work)?;
    work.files.sort_by_key(|file| std::cmp::Reverse(file.bytes));
    Ok(work)
}

fn walk(folder: &Path, inside: &str, major: u32, work: &mut Work) -> Result<()> {
    let failed = |error| Error::io(format!("list {}", folder.display()), error);
    let mut entries = match fs::read_dir(folder) {
        // A database that was dropped meanwhile; the log says so.
        Err(error) if error.kind() == io::ErrorKind::NotFound && inside.contains('/') => return Ok(()),
        other => other.map_err(failed)?.collect::<io::Result<Vec<_>>>().map_err(failed)?,
    };
    entries.sort_by_key(fs::DirEntry::file_name);
    let names: Vec<String> =
        entries.iter().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    for entry in entries {
        let Ok(name) = entry.file_name().into_string() else {
            return Err(Error::new(
                Kind::Unsupported,
                format!("a file whose name is not UTF-8 in {}", folder.display()),
            ));
        };
        let path = if inside.is_empty() { name.clone() } else { format!("{inside}/{name}") };
        if is_left_out(&path)
            || path == CONTROL
            || path == "backup_label"
            || path == "tablespace_map"
            || is_unlogged(&name, &names)
        {
            continue;
        }
        // A tablespace's link is followed, and nothing else is: pg_wal may be one.
        let follow = inside == "pg_tblspc" || path == "pg_wal";
        let data = if follow { fs::metadata(entry.path()) } else { fs::symlink_metadata(entry.path()) };
        let data = match data {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other.map_err(failed)?,
        };
        if data.is_dir() {
            // Another major's folder may lie in the same tablespace.
            let is_version = inside.starts_with("pg_tblspc/") && !inside["pg_tblspc/".len()..].contains('/');
            if is_version && !name.starts_with(&format!("PG_{major}_")) {
                continue;
            }
            work.folders.push(path.clone());
            walk(&entry.path(), &path, major, work)?;
        } else if data.is_file() {
            let mode = data.permissions().mode() & 0o7777;
            work.files.push(WorkFile { path, from: entry.path(), bytes: data.len(), mode });
        } else if data.is_symlink() {
            return Err(Error::new(Kind::Unsupported, format!("a link in the data directory: {path}")));
        }
    }
    Ok(())
}

/// Whether a file is a fork of an unlogged relation other than its init fork: a restore begins those anew.
fn is_unlogged(name: &str, beside: &[String]) -> bool {
    let digits = name.bytes().take_while(u8::is_ascii_digit).count();
    let (relation, fork) = name.split_at(digits);
    digits > 0
        && !fork.starts_with("_init")
        && beside.binary_search_by(|other| other.as_str().cmp(&format!("{relation}_init"))).is_ok()
}

struct Shared {
    queue: Mutex<VecDeque<WorkFile>>,
    stopped: AtomicBool,
    sink: Arc<dyn SnapshotSink>,
    progress: Arc<dyn Progress>,
    start: Lsn,
    checksums: bool,
}

struct Stop(Arc<Shared>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.stopped.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn work(&self) -> Result<()> {
        loop {
            let next = self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(work) = next else { return Ok(()) };
            self.progress.check()?;
            let file = match File::open(&work.from) {
                // Dropped meanwhile; the log says so.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(|error| Error::io(format!("open {}", work.from.display()), error))?,
            };
            let block = pages::first_block(&work.path);
            let mut reader = PageReader {
                shared: self,
                file,
                at: 0,
                block,
                path: &work.path,
                bad: None,
                held: Vec::new(),
                given: 0,
            };
            let outcome = self.sink.put(&spec(&work.path, work.mode), &mut reader);
            match (outcome, reader.bad) {
                (_, Some(bad)) => return Err(bad),
                (outcome, None) => outcome.map(drop)?,
            }
        }
    }
}

/// Reads a file in whole pages, straight into the buffer of whoever stores it, and checks them there.
struct PageReader<'a> {
    shared: &'a Shared,
    file: File,
    at: u64,
    block: Option<u32>,
    path: &'a str,
    bad: Option<Error>,
    /// A page that was read for a buffer smaller than one.
    held: Vec<u8>,
    given: usize,
}

impl Read for PageReader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.shared.stopped.load(Ordering::Relaxed) {
            return Err(io::Error::other("the snapshot was given up"));
        }
        if self.given < self.held.len() {
            let n = into.len().min(self.held.len() - self.given);
            into[..n].copy_from_slice(&self.held[self.given..self.given + n]);
            self.given += n;
            return Ok(n);
        }
        if into.is_empty() {
            return Ok(0);
        }
        if self.block.is_none() {
            let most = into.len().min(READ_BYTES);
            let n = self.file.read_at(&mut into[..most], self.at)?;
            self.at += n as u64;
            self.shared.progress.advance(n as u64);
            return Ok(n);
        }
        if into.len() < PAGE_BYTES {
            let mut page = vec![0; PAGE_BYTES];
            let n = self.pages(&mut page)?;
            page.truncate(n);
            self.held = page;
            self.given = 0;
            return if n == 0 { Ok(0) } else { self.read(into) };
        }
        let most = (into.len() / PAGE_BYTES * PAGE_BYTES).min(READ_BYTES);
        self.pages(&mut into[..most])
    }
}

impl PageReader<'_> {
    /// Fills `into`, a whole number of pages, as far as the file goes. A page that is only half there is being added: the log has it.
    fn pages(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < into.len() {
            match self.file.read_at(&mut into[done..], self.at + done as u64)? {
                0 => break,
                n => done += n,
            }
        }
        let whole = done / PAGE_BYTES * PAGE_BYTES;
        if self.shared.checksums
            && let Some(first) = self.block
        {
            for (index, page) in into[..whole].chunks_exact_mut(PAGE_BYTES).enumerate() {
                let at = self.at + (index * PAGE_BYTES) as u64;
                self.check(page, at, first.wrapping_add((at / PAGE_BYTES as u64) as u32))?;
            }
        }
        self.at += whole as u64;
        self.shared.progress.advance(whole as u64);
        Ok(whole)
    }

    fn check(&mut self, page: &mut [u8], at: u64, block: u32) -> io::Result<()> {
        for _ in 0..REREADS {
            let Page::Bad(_) = pages::judge(page, block) else { return Ok(()) };
            std::thread::sleep(REREAD_PAUSE);
            if self.file.read_at(page, at)? < PAGE_BYTES {
                // Truncated meanwhile; the log says so.
                return Ok(());
            }
        }
        match pages::judge(page, block) {
            // Written while it was read, every time: the log since the start has the whole page.
            Page::Bad(lsn) if lsn >= self.shared.start => Ok(()),
            Page::Bad(lsn) => {
                let what = format!(
                    "{}: the checksum of block {block} (LSN {lsn}) is wrong, and stays so",
                    self.path
                );
                let hint = "the source itself is damaged there: check its disk, and restore this relation from a snapshot before";
                self.bad = Some(Error::new(Kind::Damaged, what).hint(hint));
                Err(io::Error::new(io::ErrorKind::InvalidData, "a damaged page"))
            }
            Page::New | Page::Good => Ok(()),
        }
    }
}

/// `pg_control`, read until its checksum is right: it may be read while it is written.
fn control(data: &Path) -> Result<Vec<u8>> {
    for _ in 0..50 {
        let bytes = fs::read(data.join(CONTROL)).map_err(|error| Error::io("read pg_control", error))?;
        if crate::control::is_whole(&bytes) {
            return Ok(bytes);
        }
        std::thread::sleep(REREAD_PAUSE);
    }
    Err(Error::new(Kind::Damaged, "pg_control: its checksum is wrong, and stays so"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_engine::Quiet;
    use mainstay_engine_kit::memory::MemorySnapshot;

    #[test]
    fn unlogged_relations_keep_their_init_fork_alone() {
        let beside: Vec<String> = ["16400", "16400_fsm", "16400_init", "16401"].map(str::to_owned).into();
        assert!(
            is_unlogged("16400", &beside)
                && is_unlogged("16400_fsm", &beside)
                && is_unlogged("16400.1", &beside)
        );
        assert!(
            !is_unlogged("16400_init", &beside)
                && !is_unlogged("16401", &beside)
                && !is_unlogged("PG_VERSION", &beside)
        );
    }

    const START: Lsn = Lsn(0x300_0000);

    fn page(lsn: Lsn) -> Vec<u8> {
        let mut page = vec![0; PAGE_BYTES];
        page[..4].copy_from_slice(&((lsn.0 >> 32) as u32).to_le_bytes());
        page[4..8].copy_from_slice(&(lsn.0 as u32).to_le_bytes());
        page[14] = 0x20;
        let sum = pages::checksum(&page, 0).unwrap();
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        page
    }

    fn torn(lsn: Lsn) -> Vec<u8> {
        let mut page = page(lsn);
        page[5000] ^= 1;
        page
    }

    /// Reads a relation's first page, which is `on_disk`, as `read` has it.
    fn read<T>(on_disk: &[u8], read: impl FnOnce(&mut PageReader<'_>) -> T) -> (T, Option<Error>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("1259");
        fs::write(&path, on_disk).unwrap();
        let shared = Shared {
            queue: Mutex::default(),
            stopped: AtomicBool::new(false),
            sink: MemorySnapshot::new(),
            progress: Arc::new(Quiet),
            start: START,
            checksums: true,
        };
        let mut reader = PageReader {
            shared: &shared,
            file: File::open(&path).unwrap(),
            at: 0,
            block: Some(0),
            path: "base/5/1259",
            bad: None,
            held: Vec::new(),
            given: 0,
        };
        (read(&mut reader), reader.bad)
    }

    fn whole(reader: &mut PageReader<'_>) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        reader.read_to_end(&mut all).map(|_| all)
    }

    #[test]
    fn a_torn_page_is_forgiven_where_the_log_has_it_whole() {
        let newer = torn(START);
        let (got, bad) = read(&newer, whole);
        assert!(got.unwrap() == newer && bad.is_none());
        let (got, bad) = read(&torn(Lsn(START.0 - 1)), whole);
        let bad = bad.unwrap();
        assert!(got.is_err() && bad.kind == Kind::Damaged && bad.what.contains("base/5/1259"), "{bad}");
    }

    #[test]
    fn a_page_that_was_being_written_is_delivered_as_it_became() {
        let (before, after) = (torn(Lsn(1)), page(Lsn(2)));
        let check = |reader: &mut PageReader<'_>| {
            let mut into = before.clone();
            reader.check(&mut into, 0, 0).map(|()| into)
        };
        let (got, bad) = read(&after, check);
        assert!(got.unwrap() == after && bad.is_none());
    }
}
