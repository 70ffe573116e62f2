//! Shared-virtual-memory selftest: judges the SVM endpoint, the IOMMU and the kernel's drivers from
//! a program's point of view.
//!
//! Each line of its output is about one case: `ok N - name # pr=PAGE-REQUESTS us=DURATION`. Case by
//! case the endpoint is opened, which binds this process's address space to a PASID, and closed.
//! `# timeline {...}` is one page request in microseconds since the device's miss, `# totals {...}`
//! sums everything up.
#![deny(unsafe_code)]

mod bench;
mod cases;
mod rehearsal;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use guest::driver_latency::DriverLatency;
use guest::report::FIGURE;
use guest::suite::Work;
use guest::{endpoint, model, program, report, sys, wait};

use bench::{Bench, Soak};
use cases::Case;
use endpoint::{Counters, Endpoint, PciEndpoint};
use rehearsal::{Flaw, Rehearsal};

/// Judges an SVM endpoint from inside a guest. Exit status: 0 all passed, 1 some failed, 2 could not run.
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    common: program::Options,
    /// Run against a model of the endpoint in this process instead; with a flaw, some case must notice
    #[arg(long, value_name = "FLAW", num_args = 0..=1, default_missing_value = "none", global = true)]
    rehearse: Option<Flaw>,
    /// Let a rehearsal change settings of this machine for a while: swap, huge pages, merging of pages, groups
    #[arg(long, global = true)]
    change_machine: bool,
    /// Never do less than a case is meant to because the machine is slow
    #[arg(long)]
    thorough: bool,
    /// How many operations the case `soak` does at least
    #[arg(long, value_name = "N", default_value_t = 1000)]
    operations: u64,
    /// How long the case `soak` goes on at least
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    soak: u64,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Subcommand)]
enum Role {
    /// The other process of a case with several
    #[command(hide = true)]
    Child {
        /// What to do
        role: String,
    },
}

fn main() -> ExitCode {
    program::exit_code(run(&Options::parse()))
}

fn run(options: &Options) -> Result<bool> {
    let Some(chosen) = options.common.choose(cases::all())? else { return Ok(true) };
    let endpoint: Box<dyn Endpoint> = match options.rehearse {
        Some(flaw) => Box::new(Rehearsal::new(flaw)?),
        None => Box::new(PciEndpoint::find()?),
    };
    if let Some(Role::Child { role }) = &options.role {
        if let Err(error) = cases::run_child(endpoint.as_ref(), role) {
            println!("{error:#}");
            return Ok(false);
        }
        return Ok(true);
    }
    let registers = endpoint.peek()?;
    let page_requests = || Ok(Counters::read(registers.as_ref()).page_requests);
    let may_measure = options.common.is_tap() && options.rehearse.is_none();
    let measured = may_measure.then(DriverLatency::start).flatten();
    let work = |case: &Case| work(options, endpoint.as_ref(), case);
    let passed = options.common.run("svm-selftest", &chosen, work, &page_requests)?;
    if may_measure {
        endpoint::figures(registers.as_ref()).iter().for_each(|line| println!("{FIGURE}{line}"));
    }
    if let Some(measured) = measured {
        measured.lines().iter().for_each(|line| println!("{FIGURE}{line}"));
    }
    Ok(passed)
}

fn work<'a>(options: &Options, endpoint: &'a dyn Endpoint, case: &Case) -> Work<'a> {
    let (run, may_change_machine) = (case.run, options.change_machine || endpoint.is_shared());
    let thorough = options.thorough;
    let soak = Soak { operations: options.operations, time: Duration::from_secs(options.soak) };
    Box::new(move |seed, notes| {
        let (random, notes_before) = (model::Random::new(seed), std::mem::take(notes));
        let mut bench = Bench { endpoint, random, may_change_machine, thorough, soak, notes: notes_before };
        let outcome = run(&mut bench);
        *notes = bench.notes;
        outcome
    })
}
