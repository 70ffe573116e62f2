//! `vfio-bridge` judged on the SVM endpoint by Linux's iommufd and VFIO: copies of second-stage tables, over iommufd and
//! over legacy containers. And what is believed of iommufd, judged on Linux's mock devices.
//!
//! The program gives the endpoint to `vfio-pci`. It plays a virtual machine with a unit: its memory is what a guest's
//! would be, and its tables say where a device's addresses lead. Output and exit status are those of `svm-selftest`.
#![deny(unsafe_code)]

mod cases;
mod mock;
mod peers;
mod rig;
mod tables;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use guest::suite::Work;
use guest::{endpoint, program, vfio};

use cases::{Bench, Case};
use rig::Place;

/// Judges vfio-bridge on an SVM endpoint from inside a guest. Exit status: 0 all passed, 1 some failed, 2 could not run.
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
    let place = Place::take(&endpoint::find()?)?;
    options.run("bridge-test", &chosen, |case| work(&place, case), &|| Ok(0))
}

fn work<'a>(place: &'a Place, case: &Case) -> Work<'a> {
    let run = case.run;
    Box::new(move |seed, notes| run(&mut Bench::new(place, seed, notes)))
}
