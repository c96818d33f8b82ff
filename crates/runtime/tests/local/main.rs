//! The local runtime with real processes (`sleep`), among them Mainstay itself killed at any moment.

mod environment;
mod fake;
mod host;
mod killed;
mod sandbox;
mod sleeper;
mod swap;
