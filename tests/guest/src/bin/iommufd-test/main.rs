//! Linux's iommufd judged on the SVM endpoint, with raw ioctls: address spaces, second-stage and nested page
//! tables, invalidations, fault queues, dirty tracking.
//!
//! The program gives the endpoint to `vfio-pci`. It plays a virtual machine: its memory is what a guest's would
//! be, first-stage tables stand in it, and the kernel's own driver programs the IOMMU. Output and exit status are
//! those of `svm-selftest`.
#![deny(unsafe_code)]

mod bench;
mod cases;
mod driver;
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

use anyhow::{Context, Result, ensure};
use clap::Parser;
use guest::endpoint;
use guest::model::Random;
use guest::suite::{self, Entry, Plan};
use guest::wait;

use bench::Bench;
use cases::{Case, Needs};

/// Judges iommufd on an SVM endpoint from inside a guest. Exit status: 0 all passed, 1 some failed, 2 could not run.
#[derive(Parser)]
struct Options {
    /// Run only cases whose names hold one of these; may be given several times
    #[arg(long, value_name = "TEXT")]
    filter: Vec<String>,
    /// Leave out the cases that need page requests, for an endpoint without PRI
    #[arg(long)]
    no_pri: bool,
    /// List the cases and end
    #[arg(long)]
    list: bool,
    /// Run everything this many times
    #[arg(long, value_name = "N", default_value_t = 1)]
    repeat: usize,
    /// Seed of all random numbers
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Print one JSON object instead of TAP
    #[arg(long)]
    json: bool,
    /// How long one descriptor may take
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    patience: u64,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("Bail out! {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(options: &Options) -> Result<bool> {
    wait::set_patience(options.patience);
    let chosen = choose(options);
    if options.list {
        for case in &chosen {
            println!("{}{}", case.name, if case.needs == Needs::PageRequests { " [pri]" } else { "" });
        }
        return Ok(true);
    }
    ensure!(!chosen.is_empty(), "no case is called like that; --list lists them");
    sys::lift_memory_lock().context("cannot lift the limit of locked memory")?;
    let node = driver::give_to_vfio(&endpoint::find()?)?;
    let asked = Rc::new(Cell::new(0));
    let entries = (0..options.repeat).flat_map(|_| chosen.iter()).map(|case| entry(&node, &asked, case));
    suite::run(&Plan {
        program: "iommufd-test",
        entries: entries.collect(),
        seed: options.seed,
        json: options.json,
        page_requests: &|| Ok(asked.get()),
    })
}

fn entry<'a>(node: &'a Path, asked: &'a Rc<Cell<u64>>, case: &Case) -> Entry<'a> {
    let run = case.run;
    let work = move |seed, notes: &mut Vec<String>| {
        run(&mut Bench { node, random: Random::new(seed), notes, asked: asked.clone() })
    };
    Entry {
        name: case.name,
        needs_page_requests: case.needs == Needs::PageRequests,
        provokes: case.provokes,
        work: Box::new(work),
    }
}

fn choose(options: &Options) -> Vec<Case> {
    let named =
        |case: &Case| options.filter.is_empty() || options.filter.iter().any(|text| case.name.contains(text));
    let possible = |case: &Case| !(options.no_pri && case.needs == Needs::PageRequests);
    cases::all().into_iter().filter(|case| named(case) && possible(case)).collect()
}
