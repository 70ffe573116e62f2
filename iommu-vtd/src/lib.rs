//! Intel VT-d model.
#![forbid(unsafe_code)]

pub mod ats;
pub mod capability;
pub mod event;
pub mod fault;
pub mod invalidation;
pub mod memory;
pub mod page_request;
pub mod queue;
pub mod regs;
pub mod rules;
pub mod spec;
pub mod tables;
#[cfg(feature = "testkit")]
pub mod testkit;
pub mod translate;
pub mod unit;
mod walk;

pub use capability::{Capability, CapabilityError, Profile};
pub use unit::{Unit, UnitConfig};
