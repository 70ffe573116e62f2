//! Intel VT-d model.
#![forbid(unsafe_code)]

pub mod ats;
pub mod capability;
pub mod memory;
pub mod rules;
pub mod spec;
pub mod tables;
pub mod translate;
mod walk;

pub use capability::{Capability, CapabilityError, Profile};
