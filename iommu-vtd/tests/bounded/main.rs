//! Decoding and walking never panic, never read outside the entry they are at, and come to an end: shown by going
//! through all inputs where there are few, and through very many where there are not.
//!
//! `BOUNDED_CASES=10000000 cargo test --release -p iommu-vtd --test bounded` goes on for longer.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod decode;
mod dream;
mod walk;
