//! Following the fake engine into a vault in memory: restarts, kills, failovers, holes, two at once, stores that fail.

mod bench;
mod faults;
mod points;
mod turns;
