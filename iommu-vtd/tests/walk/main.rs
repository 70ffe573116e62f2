//! Translation against tables: every condition, every reserved bit, and what the manual makes easy to get
//! wrong, in named rows.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod accessed_dirty;
mod conditions;
mod contended;
mod details;
mod differences;
mod legacy;
mod nested;
mod reserved;
mod second_stage;
mod world;
