//! The local runtime: all that Mainstay keeps on one machine, and the servers that it runs there.

mod error;
mod files;
mod host;
mod process;
mod spawn;

pub use error::{Error, Result};
pub use host::Local;
