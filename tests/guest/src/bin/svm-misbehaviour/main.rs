//! What Linux does when the SVM endpoint misbehaves: each case switches one kind of misbehaviour on, makes the device
//! work, looks at what the kernel makes of it, and sees that everything goes on afterwards.
//!
//! The kinds and what is to be expected stand in devices/src/svm/misbehaviour/README.md, how each case was seen failing in
//! the README beside this. Output and exit status are those of `svm-selftest`.
#![deny(unsafe_code)]

mod bench;
mod board;
mod cases;
mod kernel_log;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use guest::program;
use guest::suite::Work;

use bench::Bench;
use board::Flaw;
use cases::Case;

/// Judges what the kernel does when the SVM endpoint misbehaves. Exit status: 0 all passed, 1 some failed, 2 could not run.
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    common: program::Options,
    /// Run the cases about what the command line of svmm switched on
    #[arg(long)]
    planned: bool,
    /// Give the endpoint a flaw instead, which every case must notice
    #[arg(long, value_name = "FLAW", default_value = "none")]
    flaw: Flaw,
}

fn main() -> ExitCode {
    program::exit_code(run(&Options::parse()))
}

fn run(options: &Options) -> Result<bool> {
    let cases = if options.planned { cases::planned() } else { cases::all() };
    let Some(chosen) = options.common.choose(cases)? else { return Ok(true) };
    let work = |case: &Case| work(case, options.flaw);
    options.common.run("svm-misbehaviour", &chosen, work, &|| Ok(0))
}

fn work<'a>(case: &Case, flaw: Flaw) -> Work<'a> {
    let run = case.run;
    Box::new(move |seed, notes| Bench::new(seed, flaw, notes)?.judge(run))
}
