//! The kit itself: that its log is as strict as the real one, that failures come where they are asked for, that records from
//! anywhere are read without harm.

mod log;
mod records;
mod unreliable;
