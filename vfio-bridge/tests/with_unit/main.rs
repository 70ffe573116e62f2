//! Behind a real model: what a guest puts into its tables and queues reaches the kernel, and a host's faults go through
//! a VT-d unit's page request queue.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod bindings;
#[path = "../common/mod.rs"]
mod common;
mod hostile;
#[path = "../common/machine.rs"]
mod machine;
mod page_requests;
mod shadow;
