//! Device models of svmm.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`bus`] | address decoding |
//! | [`irq`] | interrupt lines |
//! | [`pci`] | PCI functions and the root of bus 0 |
#![forbid(unsafe_code)]

pub mod bus;
pub mod irq;
pub mod pci;
