//! Black-box tests: boot guests under svmm and judge what they print.
//!
//! The tests need svmm, a kernel and the guest's initial file system; `cargo lab test` builds these,
//! chooses a world in which KVM works, and tells the tests by environment variables (see
//! [`guest::Materials`]). Plain `cargo test` leaves them out.
#![forbid(unsafe_code)]

pub mod chain;
pub mod expect;
pub mod footprint;
pub mod guest;
pub mod image;
pub mod kselftest;
mod standstill;
