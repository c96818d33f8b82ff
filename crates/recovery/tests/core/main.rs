//! Recovery over a fake engine and a vault in memory: what is restored is what was there, whatever happened on the way.

mod damaged;
mod fake;
mod faults;
mod lab;
mod local;
mod long;
mod paths;
