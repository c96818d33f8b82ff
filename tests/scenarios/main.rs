//! Whole fleets on real servers, from outside.

#[path = "../support/mod.rs"]
mod support;

mod away;
mod cancelled;
mod failover;
mod gone;
mod in_place;
mod increments;
mod kills;
mod main_job;
mod once;
mod refusals;
mod two_daemons;
