//! The nouns: fleets, clusters, nodes, versions, sizes, instants, places. No IO, no async, no wire format of its own.

mod bytes;
mod duration;
mod fleet;
mod place;
mod schedule;
mod time;
mod version;

pub use bytes::*;
pub use duration::*;
pub use fleet::*;
pub use place::{Branch, Epoch, Lane, Offset, Place, Position};
pub use schedule::*;
pub use time::{BadInstant, Bracket, Instant};
pub use version::*;
