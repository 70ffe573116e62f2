//! A DMA engine as Linux's `ioatdma` drives it: Intel's I/OAT ("CBDMA", "QuickData"), version 3.3 of the interface.
//!
//! It is for kernels and VFIO user programs: it copies memory at the addresses that its function has without PASID,
//! untranslated, so that a driver of the kernel's own works behind the remapping unit in all of its modes.
//!
//! # Architecture
//!
//! | module | what it is |
//! | --- | --- |
//! | [`spec`] | layouts: registers, descriptor |
//! | [`state`] | a channel's registers, and what becomes of descriptors: values in, values out |
//! | [`channel`] | that state between vCPUs and a thread |
//! | [`worker`] | the thread that does a channel's descriptors |
//! | [`regs`] | the register page |
//! | [`device`] | what all of them share |
//! | [`function`] | the PCI function |
//!
//! A channel has one thread, from its first descriptor on. It holds the channel's gate while it touches memory or
//! sends an interrupt, for at most 64 KiB of a copy. Reset, abort, a new chain and the loss of bus mastering take the
//! gate once, which is their drain.
//!
//! Errors are told in CHANERR of the channel and, for all channels together, in CHANERR_INT in configuration space.
//!
//! Locks: gate → port; gate → the channel's state → configuration space, a leaf.
//!
//! # What it doesn't implement
//!
//! Any operation but copying (no DMA capability is advertised, so that drivers ask for nothing else), interrupt
//! coalescing, MSI and INTx, direct cache access, descriptor prefetch, advanced error reporting. DMAUNCERRSTS reads 0:
//! it is about parity and the like, which do not fail here. What software relies on was taken from Linux's driver and
//! its VFIO selftests; where neither cares, the model does something bounded.

pub mod channel;
pub mod device;
pub mod function;
pub mod regs;
pub mod spec;
pub mod state;
pub mod worker;

pub use device::IoatConfig;
pub use function::{IoatError, IoatFunction};

#[cfg(test)]
mod tests;
