//! Device models of svmm.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`bus`] | address decoding |
//! | [`dma_engine`] | a DMA engine that is no PCI function |
//! | [`exit`] | the port by which a guest program ends the machine |
//! | [`ioapic`] | the IOAPIC |
//! | [`ioat`] | a DMA engine that the kernel drives |
//! | [`irq`] | interrupt lines |
//! | [`pci`] | PCI functions and the root of bus 0 |
//! | [`reset`] | power-off, reset and panic |
//! | [`serial`] | the serial port |
//! | [`svm`] | the SVM endpoint |
//! | [`virtio`] | virtio devices: the PCI transport, the disk |
#![forbid(unsafe_code)]

pub mod bus;
pub mod dma_engine;
pub mod exit;
#[cfg(test)]
mod hooked;
pub mod ioapic;
pub mod ioat;
pub mod irq;
#[cfg(test)]
mod no_memory;
pub mod pci;
pub mod reset;
pub mod serial;
pub mod svm;
pub mod virtio;
