//! The lab: builds what a guest needs and decides where guests run.
//!
//! # Architecture
//!
//! A subcommand of [`commands`] asks [`kernel`], [`programs`] and [`image`] for build products,
//! puts them into a [`world::Workload`] and runs it in a [`world::World`]:
//! *here* when KVM runs guests at native speed, else *cloud*, a QEMU that emulates a nested-virt
//! cloud machine. Inside the cloud, `lab-cloud-init` reads the same [`job`] that the lab wrote.
//!
//! Everything built lives in [`cache`], keyed by what it was built from.
//!
//! # What it doesn't implement
//!
//! It configures nothing of the host: packages of another suite come through a private apt state
//! ([`debian::apt`]). It knows nothing of svmm's insides.
#![forbid(unsafe_code)]

pub mod cache;
pub mod cli;
pub mod commands;
pub mod debian;
pub mod guests;
pub mod image;
pub mod job;
pub mod kernel;
pub mod materials;
pub mod process;
pub mod programs;
pub mod qemu;
pub mod report;
pub mod structure;
pub mod ui;
pub mod world;
