//! What a unit is to offer, in words: presets, names for command lines, and the dependencies between features.
//!
//! [`crate::Capability`] turns a checked profile into the registers of chapter 11.

mod behind;
mod fields;
mod needs;
mod options;
mod parse;

pub use behind::Dropped;
pub use fields::{LargestPage, Profile};
pub use needs::ProfileError;
pub(crate) use needs::check;
pub use options::{PRESETS, Preset, help};
pub use parse::Platform;
