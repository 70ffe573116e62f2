//! Everything that needs `unsafe`: mappings that a device writes too, registers, system calls.
#![allow(unsafe_code, reason = "memory shared with a device, registers and raw system calls")]

mod bar;
mod call;
mod map;

pub use bar::Bar;
pub use call::{copy_from_self, copy_to_self, fork_and, poll_readable, share_file};
pub use map::{Mapping, Protection, Sharing};

/// Size of a page; x86 has no other base size.
pub const PAGE: usize = 4096;

/// `PAGE` as an address difference.
pub const PAGE_BYTES: u64 = 4096;
