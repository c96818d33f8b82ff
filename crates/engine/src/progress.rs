//! Progress of long work, and the wish to stop it.

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
