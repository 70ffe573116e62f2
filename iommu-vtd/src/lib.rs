//! Intel VT-d model.
#![forbid(unsafe_code)]

pub mod capability;
pub mod event;
pub mod invalidation;
pub mod memory;
pub mod regs;
pub mod spec;

pub use capability::{Capability, CapabilityError, Profile};
