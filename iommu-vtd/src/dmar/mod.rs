//! Chapter 8: the bytes of the ACPI DMAR table. **Pure.**
//!
//! A VMM fills a [`Dmar`] and puts its ACPI header (signature [`SIGNATURE`], revision [`REVISION`]) before
//! [`Dmar::body`].

mod body;
mod check;
mod scope;
mod table;
#[cfg(test)]
mod tests;

pub use check::DmarError;
pub use scope::{DeviceScope, ScopeKind};
pub use table::{Andd, Atsr, Dmar, Drhd, REVISION, Rmrr, SIGNATURE, Satc};
