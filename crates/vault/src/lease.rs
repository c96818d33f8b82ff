//! Leases: one at a time does a thing, by create-only objects alone.
//!
//! `leases/NAME/GENERATION/BEAT`: a holder creates the next beat before its time to live is over. Whoever wants the lease and sees no beat for
//! that long, by its own monotonic clock, creates the first beat of the next generation; the store lets one alone succeed. So generations only grow, no
//! two clocks are compared, and no store's compare-and-swap is needed. A holder that ends says so in its last beat; one on
//! this very machine that is gone is seen at once.
//!
//! A lease cannot fence: a holder that was paused goes on until it looks. It looks before whatever must not be done by two
//! ([`Lease::beat`]), and readers of a log drop what a generation wrote past its successor's first place.

use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mainstay_store::Kind;
use serde::{Deserialize, Serialize};

use crate::process::{Life, Process};
use crate::sealed::{seal, unseal};
use crate::{Error, Result, Vault};

/// A lease that is held, and beats by itself. Dropping it stops the beats without a word to the store; whoever waits then waits for the time
/// to live, or, in this process, sees that it was let go.
pub struct Lease {
    inner: Arc<Inner>,
    beats: tokio::task::JoinHandle<()>,
    _mark: Mark,
}

/// That this process holds a lease of that nonce, as long as it lives.
struct Mark(String);

impl Mark {
    fn new(nonce: &str) -> Self {
        held().get_or_insert_default().insert(nonce.to_owned());
        Self(nonce.to_owned())
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        held().get_or_insert_default().remove(&self.0);
    }
}

struct Inner {
    vault: Vault,
    name: String,
    generation: u64,
    ttl: Duration,
    note: Note,
    state: tokio::sync::Mutex<u64>,
    last: Mutex<Instant>,
    lost: AtomicBool,
}

/// What a beat says.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Note {
    holder: String,
    process: Process,
    nonce: String,
    released: bool,
}

/// The nonces of the leases that this process holds.
static HELD: Mutex<Option<HashSet<String>>> = Mutex::new(None);

/// How often a lease is tried for when others are faster, and how often it is looked at within its time to live.
const TRIES_MAX: u32 = 8;
const LOOKS: u32 = 8;

impl Lease {
    /// Takes a lease whose generation is larger than `floor`.
    pub(crate) async fn take(
        vault: Vault,
        name: &str,
        holder: &str,
        ttl: Duration,
        floor: u64,
    ) -> Result<Self> {
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
            return Err(Error::Invalid(format!("`{name}` is no name for a lease")));
        }
        vault.confirm().await?;
        let nonce = hex::encode(rand::random::<[u8; 8]>());
        // Before anybody in this process can see a beat of it and take us for gone.
        let mark = Mark::new(&nonce);
        let note = Note { holder: holder.to_owned(), process: Process::ours(), nonce, released: false };
        for _ in 0..TRIES_MAX {
            let newest = newest_beat(&vault, name).await?;
            let generation = match newest {
                None => 1,
                Some(beat) => {
                    wait_for_its_end(&vault, name, beat, ttl).await?;
                    beat.0 + 1
                }
            };
            let generation = generation.max(floor + 1);
            let key = beat_key(name, generation, 0);
            let begun = Instant::now();
            match vault.store().create(&key, seal(vault.keys(), &key, "lease", false, &note)?).await {
                Ok(()) => return Ok(Self::begin(vault, name, generation, ttl, note, begun, mark).await),
                Err(error) if error.kind == Kind::Exists => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Error::Held { lease: name.to_owned(), holder: "others, one after the other".into() })
    }

    async fn begin(
        vault: Vault,
        name: &str,
        generation: u64,
        ttl: Duration,
        note: Note,
        begun: Instant,
        mark: Mark,
    ) -> Self {
        // Older generations are not needed any more; what is left of them does no harm.
        if let Ok(beats) = list_beats(&vault, name).await {
            for (old, beat) in beats.into_iter().filter(|(g, _)| *g < generation) {
                let _ = vault.store().delete(&beat_key(name, old, beat)).await;
            }
        }
        let inner = Arc::new(Inner {
            vault,
            name: name.to_owned(),
            generation,
            ttl,
            note,
            state: tokio::sync::Mutex::new(0),
            last: Mutex::new(begun),
            lost: AtomicBool::new(false),
        });
        let beating = Arc::clone(&inner);
        let beats = mainstay_store::spawn(async move {
            while !beating.lost.load(Ordering::SeqCst) {
                tokio::time::sleep(beating.ttl / 3).await;
                if let Err(error) = beating.beat().await {
                    tracing::warn!(lease = beating.name, %error, "a beat of a lease failed");
                }
            }
        });
        Self { inner, beats, _mark: mark }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The generation: larger than that of every holder before.
    pub fn generation(&self) -> u64 {
        self.inner.generation
    }

    /// How long it lasts without a beat.
    pub fn ttl(&self) -> Duration {
        self.inner.ttl
    }

    /// Says that we are alive, and looks whether we were taken for dead. A task of the lease's own does so every third of the time to
    /// live; call it before something that must not be done by two.
    ///
    /// # Errors
    /// `LeaseLost` when somebody took it over; the store's.
    pub async fn beat(&self) -> Result<()> {
        self.inner.beat().await
    }

    /// Whether somebody took it over, or may have: no beat of ours succeeded within the time to live.
    pub fn lost(&self) -> bool {
        self.inner.lost()
    }

    /// Gives it up, so that the next one need not wait.
    ///
    /// # Errors
    /// The store's; the lease then ends by itself after its time to live.
    pub async fn release(self) -> Result<()> {
        self.inner.release().await
    }

    /// Gives it up from where nothing can be waited for.
    pub(crate) fn release_later(self) {
        let inner = Arc::clone(&self.inner);
        drop(self);
        mainstay_store::spawn(async move {
            let _ = inner.release().await;
        });
    }
}

impl Inner {
    fn lost(&self) -> bool {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        self.lost.load(Ordering::SeqCst) || last.elapsed() > self.ttl
    }

    async fn beat(&self) -> Result<()> {
        self.write_beat(&self.note).await
    }

    async fn release(&self) -> Result<()> {
        if self.lost.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        self.write_beat(&Note { released: true, ..self.note.clone() }).await
    }

    async fn write_beat(&self, note: &Note) -> Result<()> {
        let lost = || Error::LeaseLost { lease: self.name.clone() };
        let mut beat = self.state.lock().await;
        if self.lost.load(Ordering::SeqCst) && !note.released {
            return Err(lost());
        }
        let begun = Instant::now();
        let key = beat_key(&self.name, self.generation, *beat + 1);
        let bytes = seal(self.vault.keys(), &key, "lease", false, note)?;
        match self.vault.store().create(&key, bytes).await {
            Ok(()) => {}
            // The key is ours alone: what is there is a beat of ours whose outcome was not known.
            Err(error) if error.kind == Kind::Exists => {}
            Err(error) => return Err(error.into()),
        }
        *beat += 1;
        let newest = newest_beat(&self.vault, &self.name).await?;
        if newest.is_some_and(|(generation, _)| generation > self.generation) {
            self.lost.store(true, Ordering::SeqCst);
            // Nobody needs our last words; whoever took over may have cleaned up before they were written.
            let _ = self.vault.store().delete(&key).await;
            return Err(lost());
        }
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = begun;
        let _ = self.vault.store().delete(&beat_key(&self.name, self.generation, *beat - 1)).await;
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.beats.abort();
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &self.inner;
        f.debug_struct("Lease").field("name", &inner.name).field("generation", &inner.generation).finish()
    }
}

/// Whether anybody holds the lease: told at once where that can be, else by watching for `ttl`.
pub(crate) async fn is_held(vault: &Vault, name: &str, ttl: Duration) -> Result<bool> {
    let Some(beat) = newest_beat(vault, name).await? else { return Ok(false) };
    match wait_for_its_end(vault, name, beat, ttl).await {
        Ok(()) => Ok(false),
        Err(Error::Held { .. }) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Removes what is left of a lease that nobody will take again.
pub(crate) async fn forget(vault: &Vault, name: &str) -> Result<()> {
    for (generation, beat) in list_beats(vault, name).await? {
        vault.store().delete(&beat_key(name, generation, beat)).await?;
    }
    Ok(())
}

/// Removes what is left of all leases whose names begin so and that nobody holds.
pub(crate) async fn forget_dead(vault: &Vault, beginning: &str) -> Result<()> {
    let names = vault.store().list_level("leases").await?.folders;
    let dead = names.iter().filter(|name| name.starts_with(beginning)).map(|name| async move {
        match is_held(vault, name, crate::writer::ATTEMPT_TTL).await? {
            true => Ok(()),
            false => forget(vault, name).await,
        }
    });
    // All at once, since each of another machine takes a while to be sure of.
    futures::future::join_all(dead).await.into_iter().collect()
}

/// Returns when the holder is known to be gone, and fails with `Held` when it is known to be alive.
async fn wait_for_its_end(vault: &Vault, name: &str, beat: (u64, u64), ttl: Duration) -> Result<()> {
    let key = beat_key(name, beat.0, beat.1);
    let note: Option<Note> = match vault.store().get(&key).await {
        Ok(bytes) => unseal(vault.keys(), &key, "lease", &bytes).ok(),
        Err(error) if error.kind == Kind::NotFound => None,
        Err(error) => return Err(error.into()),
    };
    let holder = note.as_ref().map_or_else(|| "somebody".to_owned(), |note| note.holder.clone());
    let alive = || Error::Held { lease: name.to_owned(), holder: holder.clone() };
    if let Some(note) = &note {
        if note.released {
            return Ok(());
        }
        match note.process.life() {
            Life::Dead => return Ok(()),
            Life::Ours if !held().get_or_insert_default().contains(&note.nonce) => return Ok(()),
            Life::Ours | Life::Alive => return Err(alive()),
            Life::Unknown => {}
        }
    }
    let seen = Instant::now();
    while seen.elapsed() < ttl {
        tokio::time::sleep((ttl / LOOKS).max(Duration::from_millis(1))).await;
        if newest_beat(vault, name).await? != Some(beat) {
            return Err(alive());
        }
    }
    Ok(())
}

async fn newest_beat(vault: &Vault, name: &str) -> Result<Option<(u64, u64)>> {
    Ok(list_beats(vault, name).await?.into_iter().max())
}

async fn list_beats(vault: &Vault, name: &str) -> Result<Vec<(u64, u64)>> {
    let prefix = format!("leases/{name}");
    let objects = vault.store().list(&prefix).await?;
    Ok(objects.iter().filter_map(|object| parse_beat(&object.key[prefix.len() + 1..])).collect())
}

fn parse_beat(text: &str) -> Option<(u64, u64)> {
    let (generation, beat) = text.split_once('/')?;
    Some((u64::from_str_radix(generation, 16).ok()?, u64::from_str_radix(beat, 16).ok()?))
}

fn beat_key(name: &str, generation: u64, beat: u64) -> String {
    format!("leases/{name}/{generation:08x}/{beat:08x}")
}

fn held() -> MutexGuard<'static, Option<HashSet<String>>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}
