//! Linux's iommufd judged on the SVM endpoint, with raw ioctls: address spaces, second-stage and nested page
//! tables, invalidations, fault queues, dirty tracking.
//!
//! The program gives the endpoint to `vfio-pci`. It plays a virtual machine: its memory is what a guest's would
//! be, first-stage tables stand in it, and the kernel's own driver programs the IOMMU. Output and exit status are
//! those of `svm-selftest`.
#![deny(unsafe_code)]

mod bench;
mod cases;
mod fault_queue;
mod memory;
mod rig;
mod sys;
mod tables;
mod view;

use std::cell::Cell;
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;

use anyhow::Result;
use clap::Parser;
use guest::model::Random;
use guest::suite::Work;
use guest::{endpoint, program, vfio};

use bench::Bench;
use cases::Case;

/// Judges iommufd on an SVM endpoint from inside a guest. Exit status: 0 all passed, 1 some failed, 2 could not run.
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    common: program::Options,
}

fn main() -> ExitCode {
    program::exit_code(run(&Options::parse().common))
}

fn run(options: &program::Options) -> Result<bool> {
    let Some(chosen) = options.choose(cases::all())? else { return Ok(true) };
    vfio::lift_memory_lock()?;
    let node = vfio::give_to_vfio(&endpoint::find()?)?;
    let asked = Rc::new(Cell::new(0));
    options.run("iommufd-test", &chosen, |case| work(&node, &asked, case), &|| Ok(asked.get()))
}

fn work<'a>(node: &'a Path, asked: &'a Rc<Cell<u64>>, case: &Case) -> Work<'a> {
    let run = case.run;
    Box::new(move |seed, notes| {
        run(&mut Bench { node, random: Random::new(seed), notes, asked: asked.clone() })
    })
}
