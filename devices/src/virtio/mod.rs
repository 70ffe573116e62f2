//! Virtio devices (Virtual I/O Device Version 1.2; section numbers in this module are of that text).
//!
//! # Architecture
//!
//! | module | what it is |
//! | --- | --- |
//! | [`spec`] | layouts: features, status, the PCI capabilities, the common configuration |
//! | [`common`] | the common configuration as a state machine: feature negotiation, status, queue registers |
//! | [`core`] | what registers and worker share: start, notification, reset, interrupts, DEVICE_NEEDS_RESET |
//! | [`chain`] | a descriptor chain, read and checked |
//! | [`lane`] | DMA of the running device, session by session |
//! | [`ring`] | one split virtqueue |
//! | [`stop`] | why a device stops what it is at |
//! | `worker` | the thread that serves all queues of a device |
//! | [`device`] | what a kind of device gives: a description, and a service for its chains |
//! | [`pci`] | the PCI function |
//! | [`blk`] | the disk |
//!
//! # Programming notes
//!
//! Modern PCI transport only: BAR0 holds common configuration, ISR, device configuration and notifications, a page
//! each; BAR1 the MSI-X table. Vector numbers are free; there is no INTx, so a driver without MSI-X has to poll.
//! Offered always: VERSION_1, ACCESS_PLATFORM, INDIRECT_DESC, EVENT_IDX. Both of the first are insisted on: every
//! address that the device uses is one behind the IOMMU.
//!
//! What a driver can get wrong, and what follows:
//!
//! | mistake | consequence |
//! | --- | --- |
//! | a ring, or an indirect table, that cannot be accessed | IOMMU fault recorded; DEVICE_NEEDS_RESET |
//! | an available index that is ahead by more than the queue | DEVICE_NEEDS_RESET |
//! | a chain that is empty, too long, cut off, or mixes directions | DEVICE_NEEDS_RESET |
//! | a data buffer that cannot be accessed | IOMMU fault recorded; the request fails, as the device kind says |
//!
//! With bus mastering off the device waits; it goes on when bus mastering returns.
//!
//! # Threads and locks
//!
//! One worker per device. It enters the gate for each session, looks inside whether the device still runs as it did,
//! and leaves the gate before anything that may block (file I/O above all). Reset and loss of bus mastering take the
//! gate once, which is their drain. Locks: registers → gate → (port, state); the state lock is a leaf.
//!
//! # What it doesn't implement
//!
//! Packed rings, queue reset, INTx, notification data, shared memory regions, changes of configuration space, ATS.

pub mod blk;
pub mod chain;
pub mod common;
pub mod core;
pub mod device;
pub mod lane;
pub mod pci;
pub mod ring;
pub mod spec;
pub mod stop;
mod worker;

pub use device::{Description, Service};
pub use pci::{Interrupts, VirtioFunction};

#[cfg(test)]
mod tests;
