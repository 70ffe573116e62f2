//! Intel VT-d model.
#![forbid(unsafe_code)]

pub mod memory;
