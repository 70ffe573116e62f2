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

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use guest::suite::{self, Entry, Plan};
use guest::{endpoint, model, report, sys, wait};

use bench::Bench;
use cases::{Case, Needs};
use endpoint::{Counters, Endpoint, PciEndpoint};
use rehearsal::{Flaw, Rehearsal};

/// Judges an SVM endpoint from inside a guest. Exit status: 0 all passed, 1 some failed, 2 could not run.
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
    ensure!(!chosen.is_empty(), "no case is called like that; --list lists them");
    let registers = endpoint.peek()?;
    let entries = (0..options.repeat).flat_map(|_| chosen.iter()).map(|case| entry(endpoint.as_ref(), case));
    suite::run(&Plan {
        program: "svm-selftest",
        entries: entries.collect(),
        seed: options.seed,
        json: options.json,
        page_requests: &|| Ok(Counters::read(registers.as_ref()).page_requests),
    })
}

fn entry<'a>(endpoint: &'a dyn Endpoint, case: &Case) -> Entry<'a> {
    let run = case.run;
    let work = move |seed, notes: &mut Vec<String>| {
        let mut bench = Bench { endpoint, random: model::Random::new(seed), notes: std::mem::take(notes) };
        let outcome = run(&mut bench);
        *notes = bench.notes;
        outcome
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
