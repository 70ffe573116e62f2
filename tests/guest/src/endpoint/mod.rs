//! The SVM endpoint as a driver sees it (its programming model is devices/src/svm/README.md).

mod descriptor;
mod device;
mod figures;
mod pci;
mod queue;
mod regs;

use std::ffi::OsString;
use std::fs::File;
use std::sync::Arc;

use anyhow::Result;

pub use crate::registers::Registers;
pub use descriptor::{Completion, DESCRIPTOR_WORDS, NO_DIFFERENCE, Operation, RECORD_BYTES, Reason, Status};
pub use device::{Counters, Device, Timeline, identify, reset, rest};
pub use figures::figures;
pub use pci::{ConfigSpace, PciEndpoint, find};
pub use queue::{Portal, Queue, QueueSetup, Records, Ticket, Window, poll_record};
pub use regs::{BAR_BYTES, ID, control, global, portal, window};

/// A way to reach an endpoint.
pub trait Endpoint {
    /// Binds this process's address space and maps the registers. One opener at a time.
    fn open(&self) -> Result<Session>;
    /// Maps the registers without binding anything.
    fn peek(&self) -> Result<Arc<dyn Registers>>;
    /// The function's configuration space.
    fn config(&self) -> Result<ConfigSpace>;
    /// Whether other processes reach the same endpoint.
    fn is_shared(&self) -> bool;
    /// The same endpoint for a process that was forked.
    fn again(&self) -> Result<Box<dyn Endpoint>>;
    /// Command line words that make another run of this program reach the same endpoint.
    fn arguments(&self) -> Vec<OsString>;
}

/// An open endpoint: while it lives, the PASID names this process's address space.
pub struct Session {
    /// BAR0.
    pub registers: Arc<dyn Registers>,
    /// What the driver bound.
    pub pasid: u32,
    /// Reads yield the number of interrupts so far, 4 bytes.
    pub interrupts: File,
}
