//! The SVM endpoint: an accelerator that works on a process's own addresses.
//!
//! Its programming model is the `README.md` beside this file; section numbers in this module are of that text.
//!
//! # Architecture
//!
//! | module | what it is |
//! | --- | --- |
//! | [`spec`] | layouts: registers, descriptor, completion record |
//! | [`descriptor`] | from a descriptor to an operation |
//! | [`engine`] | operations on memory, stopping and going on at any byte |
//! | [`atc`] | the device-TLB, and a counter in front of the IOMMU |
//! | [`pri`] | page requests that are outstanding |
//! | [`stats`] | counters and the timeline |
//! | [`queue`] | a queue: its ring, its registers, what disable and reset do to it |
//! | [`worker`] | the thread that works a queue off |
//! | [`engines`] | engines, and who gets the next one |
//! | [`portal`] | portals and windows: where descriptors come in |
//! | [`command`] | drain and abort |
//! | [`misbehaviour`] | what it does wrong when told to |
//! | [`stray`] | requests that no descriptor asked for, and the removal of the function |
//! | [`regs`] | the register pages |
//! | [`device`] | what all of them share, and its switches and resets |
//! | [`function`] | the PCI function and [`Endpoint`](iommu_core::Endpoint) |
//!
//! A queue has one thread. It holds an engine, the queue's gate and a session, in this order, while it touches memory,
//! and the gate while it makes page requests; it holds none of them while it waits. Reset and the loss of bus
//! mastering take each gate once, which is their drain. A device-TLB invalidation visits the ports and needs no
//! gate, so it completes while a descriptor waits for a page.
//!
//! Locks: (command or window) → queue; gate → port; the page request lock is a leaf and never held across a call out.
//!
//! # What it doesn't implement
//!
//! Execute and privileged requests, interrupt coalescing, batches in batches.

pub mod atc;
pub mod command;
pub mod descriptor;
pub mod device;
pub mod engine;
pub mod engines;
pub mod function;
pub mod misbehaviour;
pub mod portal;
pub mod pri;
pub mod queue;
pub mod regs;
pub mod spec;
pub mod stats;
pub mod stray;
pub mod worker;

pub use device::SvmConfig;
pub use function::{SvmError, SvmFunction};
pub use stats::SvmReading;

#[cfg(test)]
mod tests;
