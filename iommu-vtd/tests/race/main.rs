//! Devices against a driver's invalidations, under many interleavings of their threads: after a wait descriptor
//! has completed, no session uses a translation that was invalidated, and no interrupt is sent by an old entry.
//!
//! Locks, atomics and every read of a table are points at which another thread may go on. Compiled with
//! `--cfg shuttle` only: `cargo race`.
#![cfg(shuttle)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod interrupts;
mod translations;
mod world;

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner};

/// Runs a race under random schedules, and under schedules with few preemptions at random places.
pub(crate) fn explore(race: impl Fn() + Send + Sync + Copy + 'static) {
    let mut config = Config::new();
    // Walks of an unoptimized build.
    config.stack_size = 1 << 18;
    let iterations = std::env::var("RACE_ITERATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(300);
    Runner::new(RandomScheduler::new(iterations), config.clone()).run(race);
    Runner::new(PctScheduler::new(3, iterations), config).run(race);
}
