//! Page requests, answers, changes of bindings, and devices that are reset or taken out, against each other in many
//! interleavings: no group is lost or answered twice, and what is blocked stays so.
//!
//! Locks and calls of the kernel are points at which another thread may go on. Compiled with `--cfg shuttle` only:
//! `cargo race`.
#![cfg(shuttle)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod bindings;
#[path = "../common/mod.rs"]
mod common;
#[path = "../common/machine.rs"]
mod machine;
mod unit;

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner};

/// Runs a race under random schedules, and under schedules with few preemptions at random places. As many of each as
/// `RACE_ITERATIONS` says, if it is set.
pub(crate) fn explore(iterations: usize, preemptions: usize, race: impl Fn() + Send + Sync + Copy + 'static) {
    let mut config = Config::new();
    // Walks of an unoptimized build.
    config.stack_size = 1 << 18;
    let wanted = std::env::var("RACE_ITERATIONS").ok().and_then(|n| n.parse().ok());
    let iterations = wanted.unwrap_or(iterations);
    Runner::new(RandomScheduler::new(iterations), config.clone()).run(race);
    Runner::new(PctScheduler::new(preemptions, iterations), config).run(race);
}
