//! Every path with each of its calls failing, once and for good. Which calls there are is not written down twice: each
//! kind that a history makes when nothing fails is made to fail in it, and together the histories make all that the
//! crate has of a kernel.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod calls;
#[path = "../common/mod.rs"]
mod common;
mod function;
mod nested;
#[allow(dead_code, reason = "a part is used here")]
#[path = "../common/function.rs"]
mod rig;
mod shadow;
