//! A unit with assigned functions: what their host is told, and when.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod bounds;
#[allow(dead_code, reason = "shared with the tests of units without hosts")]
#[path = "../unit/driver.rs"]
mod driver;
mod events;
mod failures;
mod history;
mod hostile;
mod legacy;
mod waits;
mod world;
