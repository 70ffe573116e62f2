//! Intel VT-d model.
#![forbid(unsafe_code)]

pub mod capability;
pub mod memory;
pub mod spec;

pub use capability::{Capability, CapabilityError, Profile};
