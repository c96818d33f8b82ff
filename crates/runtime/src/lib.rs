//! The local runtime: all that Mainstay keeps on one machine, and the servers that it runs there.

mod cluster;
mod environment;
mod error;
mod files;
mod home;
mod host;
mod lock;
mod ports;
mod process;
mod sandbox;
mod spawn;
pub mod swap;
mod users;

pub use environment::{Engines, Environment, Up};
pub use error::{Error, Result};
pub use home::Home;
pub use host::Local;
pub use lock::Lock;
pub use sandbox::{Sandbox, SandboxCluster, SandboxRecord};
