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

use anyhow::Result;
use clap::{Parser, Subcommand};
use guest::report::FIGURE;
use guest::suite::Work;
use guest::{driver_latency, endpoint, model, program, report, sys, wait};

use bench::Bench;
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
    let measured = options.common.is_tap() && options.rehearse.is_none() && driver_latency::start();
    let passed =
        options.common.run("svm-selftest", &chosen, |case| work(endpoint.as_ref(), case), &page_requests)?;
    if measured {
        driver_latency::lines().iter().for_each(|line| println!("{FIGURE}{line}"));
    }
    Ok(passed)
}

fn work<'a>(endpoint: &'a dyn Endpoint, case: &Case) -> Work<'a> {
    let run = case.run;
    Box::new(move |seed, notes| {
        let mut bench = Bench { endpoint, random: model::Random::new(seed), notes: std::mem::take(notes) };
        let outcome = run(&mut bench);
        *notes = bench.notes;
        outcome
    })
}
