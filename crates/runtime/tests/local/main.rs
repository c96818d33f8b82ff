//! The local runtime with real processes (`sleep`), among them Mainstay itself killed at any moment.

mod environment;
mod host;
mod sandbox;
mod sleeper;
mod swap;
