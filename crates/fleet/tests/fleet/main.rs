//! The fleet file from the outside: what is read, what is refused and how it is said, what is generated.

mod engines;
mod fuzz;
mod generated;
mod mistakes;
mod reading;
