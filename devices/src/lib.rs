//! Device models of svmm.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`bus`] | address decoding |
//! | [`ioapic`] | the IOAPIC |
//! | [`irq`] | interrupt lines |
//! | [`pci`] | PCI functions and the root of bus 0 |
//! | [`svm`] | the SVM endpoint |
#![forbid(unsafe_code)]

pub mod bus;
pub mod ioapic;
pub mod irq;
pub mod pci;
pub mod svm;
