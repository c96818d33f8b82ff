//! Object storage behind one type: a folder, S3 and whatever speaks it, or memory.
//!
//! A [`Store`] holds immutable objects under keys (`a/b/c`). Its promises, whatever lies beneath:
//! - an object is there as a whole or not at all, and durable when a call that wrote it has returned;
//! - [`Store::create`] makes an object only where there is none, also when sixteen try at once; where the outcome of a call is
//!   not known (a broken connection), the object is read back;
//! - no call waits for ever: every attempt has a deadline, every call a limit of attempts, with growing pauses;
//! - what was written is listed at once.
//!
//! [`Store::probe`] tries these promises and refuses a store that cannot keep them. Deletion is never conditional and overwriting is
//! for nobody but a retry of the same bytes.
//!
//! All input and output runs on a small runtime of this crate's own, so that connections outlive the caller's runtime, and
//! [`wait`] can be called from any thread.

mod backend;
mod count;
mod error;
mod faulty;
mod folder;
mod memory;
mod probe;
mod retry;
mod runtime;
mod s3;
mod spec;

pub use backend::{Backend, Listing, Object};
pub use count::{Counting, Counts};
pub use error::{Error, Kind, Result};
pub use faulty::{Fault, Faults, Faulty};
pub use folder::Folder;
pub use memory::Memory;
pub use probe::Probed;
pub use retry::{Limits, Store};
pub use runtime::{spawn, spawn_blocking, wait};
pub use spec::{Secret, StoreSpec};

/// Makes rustls's *ring* the provider of cryptography for this process, once; every TLS client of Mainstay calls it first.
pub fn install_crypto_provider() {
    // An error says that one is installed already, which is what is wanted.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
