//! Interrupt remapping from outside: messages in, messages or fault records out.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod bench;
mod commands;
mod conditions;
mod differences;
mod drain;
mod formats;
mod history;
mod model;
mod posting;
