//! An assigned PCI function: a device of the host's, as a guest sees it.
//!
//! The guest's view is made once, from what the device says when it is taken in (`picture`): registers that steer
//! the host's side of things (BARs, interrupts, reset, power, address translation services) are this crate's own, and
//! only bytes that are known to be harmless lead to the device. So nothing that VFIO leaves reachable by accident, such
//! as the real PASID capability, can be reached.
//!
//! | module | what it holds |
//! | --- | --- |
//! | `ways` | what is needed of the machine: memory slots, interrupts, the IOMMU's side of a reset |
//! | `walk` | the two lists of capabilities, as they are found |
//! | `picture` `extended` | configuration space as the guest finds it, and where things are in it |
//! | `bars` | sizes, what is mapped, where it is shown |
//! | `peers` | other devices' way to what the BARs show |
//! | `survey` | what a device is like, before it is one |
//! | `vectors` `msi` | MSI-X and MSI: what is masked, what is pending, which event leads where |
//! | `intx` | the interrupt line, for drivers that use no messages |
//! | `warnings` | what a guest may fill a log with: little |
//! | `events` | what a machine's event loop has to wait for |
//! | `assigned` | [`AssignedFunction`]: all of it together |
//!
//! Not there: I/O BARs, expansion ROM, real power states, virtual functions
//! of the guest's own.

mod assigned;
mod bars;
mod events;
mod extended;
mod intx;
mod msi;
mod peers;
mod picture;
mod survey;
mod vectors;
mod walk;
mod warnings;
mod ways;

pub use assigned::{AssignedFunction, Notice};
pub use ways::{Connections, HostSide, InterruptShortcuts, MemorySlots, Shortcut, Shown};
