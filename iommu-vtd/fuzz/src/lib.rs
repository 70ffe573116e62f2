//! What the fuzz targets share: a unit in use in a small machine, and the ways a guest has to it.
//!
//! A target's input is a list of steps. What is judged besides "no panic, and every call comes back" stands in
//! the targets: promises that hold for any guest.
#![forbid(unsafe_code)]

mod bench;
mod input;
mod watched;

pub use bench::{Bench, LAYOUT, Layout, profile};
pub use input::{Offset, PageRequestInput, RequestInput};
pub use watched::Watched;
