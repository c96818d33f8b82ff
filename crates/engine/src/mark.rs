//! `mark` and `hold`: barriers across engines.
//!
//! A fleet point is exact when every member but at most one is held, the last one is marked meanwhile, and the logs prove that the
//! held ones stood still: then no write that follows another can be on the wrong side of the cut.

use std::time::Duration;

use async_trait::async_trait;
use mainstay_model::{Bracket, Lane, Position};

use crate::{Access, Result};

/// Engines that can say "here" in their own log.
#[async_trait]
pub trait Mark: Send + Sync {
    /// Writes barrier `id` (`[a-z0-9-]{1,60}`) into the log, or observes a place, and says which position that is.
    ///
    /// # Errors
    /// `Unreachable`, `Refused`, `Server`.
    async fn mark(&self, access: &Access, id: &str) -> Result<Marked>;
}

/// A position that was marked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marked {
    /// The cut: what is below is in, what is behind is out.
    pub position: Position,
    /// When the cut was made, by the source's clock.
    pub at: Bracket,
}

/// Engines that can keep writes waiting.
#[async_trait]
pub trait Hold: Send + Sync {
    /// Keeps all writes of the cluster waiting, for at most `limit`, after which the server lets go by itself. Writers wait, none fails.
    ///
    /// # Errors
    /// `Refused` when somebody else holds the cluster now; `Deadline` when not all nodes could be held within `limit` (then
    /// nothing stays held). Dropping the [`Held`] lets go as soon as may be.
    async fn hold(&self, access: &Access, limit: Duration) -> Result<Box<dyn Held>>;

    /// Whether `log`, all of a lane between the place read when the hold began and the place read before it ended, holds nothing but
    /// what engines write by themselves (pings, acknowledgement requests). `carry` is the adapter's state at its start.
    fn is_quiet(&self, lane: &Lane, carry: &str, log: &[u8]) -> bool;
}

/// A cluster whose writes wait.
#[async_trait]
pub trait Held: Send {
    /// The places read once every node stood still.
    fn marked(&self) -> &Marked;
    /// Reads the places again, checks that roles and owners are what they were, and lets go.
    ///
    /// # Errors
    /// `Unreachable`, `Server`: then the point is not exact.
    async fn release(self: Box<Self>) -> Result<Released>;
}

/// How a hold ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Released {
    /// The places just before letting go.
    pub position: Position,
    /// How long writes waited at the longest.
    pub stall: Duration,
    /// `None` if every node stood still throughout, with the same roles and owners; otherwise why not.
    pub broken: Option<String>,
}
