//! What the programs that run inside guests share: the SVM endpoint as a driver sees it, memory that a
//! device writes too, raw system calls, and the way in which cases are run and told.
#![deny(unsafe_code)]

pub mod cpus;
pub mod diagnosis;
pub mod driver_latency;
pub mod endpoint;
pub mod expect;
pub mod model;
pub mod program;
pub mod registers;
pub mod report;
pub mod suite;
pub mod sys;
pub mod uio;
pub mod vfio;
pub mod wait;
