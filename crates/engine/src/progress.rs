//! Progress of long work, and the wish to stop it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Error, Kind, Result};

/// Where long work says how far it is, and asks whether to go on. Cheap to call; from any thread.
pub trait Progress: Send + Sync {
    /// A new stage begins: `copy files`, `replay log`.
    fn stage(&self, name: &str);
    /// How many bytes this stage will be; 0 if not known.
    fn expect(&self, bytes: u64);
    /// That many more bytes are done.
    fn advance(&self, bytes: u64);
    /// Whether somebody asked to stop.
    fn cancelled(&self) -> bool {
        false
    }
    /// An error if somebody asked to stop.
    fn check(&self) -> Result<()> {
        if self.cancelled() { Err(Error::new(Kind::Cancelled, "stopped on request")) } else { Ok(()) }
    }
}

/// Progress that nobody looks at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quiet;

impl Progress for Quiet {
    fn stage(&self, _: &str) {}
    fn expect(&self, _: u64) {}
    fn advance(&self, _: u64) {}
}

/// Somebody's progress, for one of several that work side by side: it can be cancelled alone.
#[derive(Clone)]
pub struct Stoppable {
    progress: Arc<dyn Progress>,
    stopped: Arc<AtomicBool>,
}

impl Stoppable {
    /// Not cancelled yet. Clones are cancelled together.
    pub fn new(progress: Arc<dyn Progress>) -> Self {
        Self { progress, stopped: Arc::default() }
    }

    /// Cancels it.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

impl Progress for Stoppable {
    fn stage(&self, name: &str) {
        self.progress.stage(name);
    }

    fn expect(&self, bytes: u64) {
        self.progress.expect(bytes);
    }

    fn advance(&self, bytes: u64) {
        self.progress.advance(bytes);
    }

    fn cancelled(&self) -> bool {
        self.stopped.load(Ordering::Relaxed) || self.progress.cancelled()
    }
}

impl std::fmt::Debug for Stoppable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stoppable").field("stopped", &self.stopped).finish_non_exhaustive()
    }
}
