//! A guest's IOMMU for assigned devices, carried out by the host's.
#![deny(unsafe_code)]

pub mod kernel;
pub mod memory;
#[allow(unsafe_code, reason = "system calls: see the module")]
pub mod sys;
