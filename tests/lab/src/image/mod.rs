//! Initial file systems for guests and for the cloud machine.

pub mod cpio;
pub mod guest;

pub use cpio::Archive;
