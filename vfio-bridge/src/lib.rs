//! A guest's IOMMU for assigned devices, carried out by the host's iommufd and VFIO.
#![deny(unsafe_code)]

pub mod backend;
mod bindings;
pub mod caps;
mod device;
pub mod fault_queue;
mod hwpt;
mod invalidate;
pub mod ioas;
pub mod kernel;
pub mod memory;
mod object;
pub mod spec;
#[allow(unsafe_code, reason = "system calls: see the module")]
pub mod sys;
mod tables;
#[cfg(feature = "testkit")]
pub mod testkit;

pub use backend::NestedIommu;
