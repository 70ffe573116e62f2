//! Everything that needs `unsafe`: mappings that a device writes too, registers, system calls.
#![allow(unsafe_code, reason = "memory shared with a device, registers and raw system calls")]

mod bar;
mod call;
mod map;
mod pages;
mod swap;
mod userfault;

pub use bar::Bar;
pub use call::{Child, copy_from_self, copy_to_self, fork_and, mount, poll_readable, share_file, unmount};
pub use map::{Mapping, Protection, Sharing};
pub use pages::{PageMap, PageState};
pub use swap::Swap;
pub use userfault::{UserFaults, Watch};

/// Size of a page; x86 has no other base size.
pub const PAGE: usize = 4096;

/// `PAGE` as an address difference.
pub const PAGE_BYTES: u64 = 4096;
