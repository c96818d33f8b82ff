//! From frames to durable packs, and from lines to durable parts of an index, with bounded memory.
//!
//! Threads that read and compress append frames to one open pack. A full pack goes over a short queue to threads that encrypt, hash and upload it;
//! when these fall behind, appending waits. A line of the index waits until every pack that it speaks of is durable, and then goes into the next
//! part; so what parts say is true, whenever the process is killed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::index::{Line, PackInfo, Part, pack_key, seal_part, write_line};
use crate::{Error, Result, Vault};

/// A pack is closed when it has as many bytes of frames.
pub(crate) const PACK_BYTES: usize = 16 << 20;
/// Packs that wait to be encrypted.
const QUEUE_PACKS_MAX: usize = 1;
/// Threads that encrypt and upload, each with one pack in clear and one in cipher.
const UPLOADERS: usize = 2;
/// A part is written when so many bytes of lines are ready, or after a while.
const PART_BYTES: usize = 2 << 20;
const PART_INTERVAL: Duration = Duration::from_secs(30);

/// Where a snapshot's packs and parts go.
pub(crate) struct Pipeline {
    shared: Arc<Shared>,
    open: Mutex<Open>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    vault: Vault,
    /// The incarnation's prefix, and the snapshot's folder.
    prefix: String,
    folder: String,
    attempt: String,
    stop: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next_pack: u64,
    /// All durable packs, ours and adopted, by number.
    packs: BTreeMap<u64, PackInfo>,
    /// Ours that are not durable yet.
    on_their_way: BTreeSet<u64>,
    /// Durable, and in no part yet.
    unwritten: Vec<u64>,
    /// Lines that wait, with the largest number of a pack of ours that they speak of.
    waiting: Vec<(Option<u64>, Vec<u8>)>,
    waiting_bytes: usize,
    parts: Vec<Part>,
    part_begun: Option<Instant>,
    writing: bool,
    bytes_stored: u64,
    failure: Option<Error>,
    failed: bool,
    spare: Vec<Vec<u8>>,
}

struct Open {
    /// `None` when no more can be appended.
    queue: Option<SyncSender<Job>>,
    pack: Option<Job>,
}

/// A pack to be encrypted and uploaded.
struct Job {
    n: u64,
    frames: Vec<u8>,
    content: u64,
}

/// What a finished pipeline has written.
pub(crate) struct Written {
    pub parts: Vec<Part>,
    pub packs: Vec<PackInfo>,
    pub bytes_stored: u64,
}

impl Pipeline {
    /// Starts the threads. `attempt` is 8 hexadecimal digits.
    pub fn start(vault: &Vault, prefix: &str, folder: &str, attempt: &str) -> Result<Self> {
        let shared = Arc::new(Shared {
            vault: vault.clone(),
            prefix: prefix.to_owned(),
            folder: folder.to_owned(),
            attempt: attempt.to_owned(),
            stop: AtomicBool::new(false),
            state: Mutex::default(),
        });
        let (queue, jobs) = sync_channel(QUEUE_PACKS_MAX);
        let jobs = Arc::new(Mutex::new(jobs));
        let mut threads = Vec::new();
        for _ in 0..UPLOADERS {
            let (shared, jobs) = (Arc::clone(&shared), Arc::clone(&jobs));
            let thread = std::thread::Builder::new().name("mainstay-pack".into());
            threads.push(
                thread
                    .spawn(move || upload_all(&shared, &jobs))
                    .map_err(|e| Error::io("start a thread", e))?,
            );
        }
        let open = Mutex::new(Open { queue: Some(queue), pack: None });
        Ok(Self { shared, open, threads: Mutex::new(threads) })
    }

    /// Appends a frame that holds `content` bytes; says in which pack and where. Waits while the uploads are behind.
    pub fn append(&self, frame: &[u8], content: u64) -> Result<(u64, u64)> {
        let mut open = lock(&self.open);
        self.shared.check()?;
        if open.queue.is_none() {
            return Err(Error::Invalid("the snapshot was finished already".into()));
        }
        let pack = open.pack.get_or_insert_with(|| self.shared.new_pack());
        let place = (pack.n, pack.frames.len() as u64);
        pack.frames.extend_from_slice(frame);
        pack.content += content;
        if pack.frames.len() >= PACK_BYTES {
            Self::close(&mut open)?;
        }
        Ok(place)
    }

    fn close(open: &mut Open) -> Result<()> {
        let (Some(pack), Some(queue)) = (open.pack.take(), &open.queue) else { return Ok(()) };
        queue.send(pack).map_err(|_| Error::Invalid("the threads that upload packs are gone".into()))
    }

    /// A number for a pack that is in the vault already.
    pub fn adopt(&self, pack: &PackInfo) -> u64 {
        let mut state = self.shared.state();
        let n = state.next_pack;
        state.next_pack += 1;
        state.packs.insert(n, PackInfo { n, ..pack.clone() });
        state.unwritten.push(n);
        n
    }

    /// Takes a line for the index. `needs` is the largest number of the packs of ours that it speaks of.
    pub fn line(&self, needs: Option<u64>, line: &Line) -> Result<()> {
        let bytes = write_line(line);
        {
            let mut state = self.shared.state();
            state.part_begun.get_or_insert_with(Instant::now);
            state.waiting_bytes += bytes.len();
            state.waiting.push((needs, bytes));
        }
        self.shared.write_part(false)
    }

    /// Whether uploading has failed, and how: for those who are about to give more.
    pub fn check(&self) -> Result<()> {
        self.shared.check()
    }

    /// Waits until all is durable. Blocks.
    pub fn finish(&self) -> Result<Written> {
        {
            let mut open = lock(&self.open);
            Self::close(&mut open)?;
            open.queue = None;
        }
        self.join();
        self.shared.check()?;
        while !self.shared.state().waiting.is_empty() {
            self.shared.write_part(true)?;
        }
        let state = self.shared.state();
        Ok(Written {
            parts: state.parts.clone(),
            packs: state.packs.values().cloned().collect(),
            bytes_stored: state.bytes_stored,
        })
    }

    /// Stops as soon as what is under way is done. Blocks.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        {
            let mut open = lock(&self.open);
            open.pack = None;
            open.queue = None;
        }
        self.join();
    }

    fn join(&self) {
        for thread in lock(&self.threads).drain(..) {
            if thread.join().is_err() {
                self.shared.fail(Error::Invalid("a thread that uploads packs panicked".into()));
            }
        }
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        // Threads end when the queue does; nobody waits for them here.
        self.shared.stop.store(true, Ordering::SeqCst);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn check(&self) -> Result<()> {
        let mut state = self.state();
        if !state.failed {
            return Ok(());
        }
        Err(state.failure.take().unwrap_or_else(|| Error::Invalid("the snapshot failed before".into())))
    }

    fn fail(&self, error: Error) {
        let mut state = self.state();
        if !state.failed {
            state.failed = true;
            state.failure = Some(error);
        }
    }

    fn new_pack(&self) -> Job {
        let mut state = self.state();
        let n = state.next_pack;
        state.next_pack += 1;
        state.on_their_way.insert(n);
        let frames = state.spare.pop().unwrap_or_else(|| Vec::with_capacity(PACK_BYTES + (512 << 10)));
        Job { n, frames, content: 0 }
    }

    fn upload(&self, mut job: Job, buffer: &mut Vec<u8>) -> Result<()> {
        let id = format!("{}-{:016x}", self.attempt, rand::random::<u64>());
        self.vault.keys().encrypt_content_into(&job.frames, buffer)?;
        let cipher = Bytes::from(std::mem::take(buffer));
        let info = PackInfo {
            n: job.n,
            id,
            bytes: cipher.len() as u64,
            packed: job.frames.len() as u64,
            content: job.content,
            hash: blake3::hash(&cipher).to_hex().to_string(),
        };
        job.frames.clear();
        self.state().spare.push(job.frames);
        let (store, key, given) =
            (self.vault.store().clone(), pack_key(&self.prefix, &info.id), cipher.clone());
        mainstay_store::wait(async move { store.put(&key, given).await })?;
        // Nobody else has it any more, so that this is no copy.
        *buffer = Vec::from(cipher);
        let mut state = self.state();
        state.bytes_stored += info.bytes;
        state.on_their_way.remove(&info.n);
        state.unwritten.push(info.n);
        state.packs.insert(info.n, info);
        drop(state);
        self.write_part(false)
    }

    /// Writes a part of what is ready, if that is enough or old enough, or `all` is wanted. One at a time: who comes while another writes
    /// goes away.
    fn write_part(&self, all: bool) -> Result<()> {
        let (number, lines) = {
            let mut state = self.state();
            let due = all
                || state.waiting_bytes >= PART_BYTES
                || state.part_begun.is_some_and(|begun| begun.elapsed() >= PART_INTERVAL);
            if state.writing || !due {
                return Ok(());
            }
            let lines = state.take_ready();
            if lines.is_empty() {
                return Ok(());
            }
            state.writing = true;
            (state.parts.len(), lines)
        };
        let written = self.put_part(number, &lines);
        let mut state = self.state();
        state.writing = false;
        let part = written?;
        state.bytes_stored += part.bytes;
        state.parts.push(part);
        Ok(())
    }

    fn put_part(&self, number: usize, lines: &[u8]) -> Result<Part> {
        let stem = format!("index-{number:05}");
        let (part, cipher) = seal_part(self.vault.keys(), &self.folder, &stem, lines)?;
        let (store, key) = (self.vault.store().clone(), format!("{}/{}", self.folder, part.name));
        mainstay_store::wait(async move { store.put(&key, cipher).await })?;
        Ok(part)
    }
}

impl State {
    /// The lines that speak of durable packs only, after the packs that no part has named yet; nothing if there is no such line. What
    /// is more than a part holds stays.
    fn take_ready(&mut self) -> Vec<u8> {
        let first_missing = self.on_their_way.first().copied();
        let ready =
            |needs: &Option<u64>| first_missing.is_none_or(|missing| needs.is_none_or(|n| n < missing));
        let mut lines = Vec::new();
        let mut left = Vec::new();
        for (needs, line) in self.waiting.drain(..) {
            if ready(&needs) && lines.len() < PART_BYTES * 2 {
                lines.extend_from_slice(&line);
            } else {
                left.push((needs, line));
            }
        }
        self.waiting = left;
        self.waiting_bytes -= lines.len();
        // Also where nothing was ready: it is asked again at the next pack, not at every line.
        self.part_begun = (!self.waiting.is_empty()).then(Instant::now);
        if lines.is_empty() {
            return lines;
        }
        let mut part = Vec::with_capacity(lines.len() + self.unwritten.len() * 200);
        for n in self.unwritten.drain(..) {
            if let Some(pack) = self.packs.get(&n) {
                part.extend_from_slice(&write_line(&Line::Pack(pack.clone())));
            }
        }
        part.extend_from_slice(&lines);
        part
    }
}

fn upload_all(shared: &Shared, jobs: &Mutex<Receiver<Job>>) {
    let mut buffer = Vec::with_capacity(PACK_BYTES + (1 << 20));
    loop {
        let job = lock(jobs).recv();
        let Ok(job) = job else { return };
        // After a failure or a stop the queue is emptied, so that nobody waits for it.
        if shared.stop.load(Ordering::SeqCst) || shared.state().failed {
            continue;
        }
        if let Err(error) = shared.upload(job, &mut buffer) {
            shared.fail(error);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
