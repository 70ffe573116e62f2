//! Device models of svmm.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`bus`] | address decoding |
//! | [`irq`] | interrupt lines |
#![forbid(unsafe_code)]

pub mod bus;
pub mod irq;
