//! Tests of the engine.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod chains;
mod channel;
mod pci;
mod random;
mod recovery;
mod rig;
