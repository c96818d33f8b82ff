//! Redis: snapshot and follow by joining as a replica, restore by being the master.

pub mod stream;
