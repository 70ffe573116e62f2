//! The unit from outside: what a driver does to its registers and rings, and what devices then see.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod boot;
mod caches;
mod checklist;
mod drain;
mod driver;
mod flows;
mod hostile;
mod page_requests;
mod queue;
mod saved;
