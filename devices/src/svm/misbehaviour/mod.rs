//! Misbehaviour on demand (the `README.md` beside this file): a switchboard by which the endpoint does wrong what hardware gets wrong, so that
//! error paths of drivers and IOMMUs can be tested.
//!
//! # Architecture
//!
//! | module | what it is |
//! | --- | --- |
//! | [`kind`] | what can go wrong: names, arguments |
//! | [`plan`] | what is to go wrong, how often, and the text that says so |
//! | [`dice`] | random numbers that a seed repeats |
//! | [`board`] | the switchboard: what is on, and whether it happens now |
//! | [`registers`] | the switchboard in the global page |
//! | [`answers`] | what is done to invalidations, page requests and responses |
//!
//! Requests that no descriptor asked for, and the removal of the function, are in [`stray`](super::stray).
//!
//! While nothing is on, each place where something could happen costs one relaxed load, and no such place is on the way
//! of an access that the device-TLB knows. The board's lock is a leaf.

pub mod answers;
pub mod board;
pub mod dice;
pub mod kind;
pub mod plan;
pub mod registers;

pub use answers::STRAY_GROUP;
pub use board::Misbehaviour;
pub use kind::Kind;
pub use plan::{How, Plan, PlanError, Setting};
