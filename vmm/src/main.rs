//! `svmm`: a virtual machine monitor in which shared virtual memory works.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`cli`], [`usage`], [`config`] | what the user wants, what clap has against it, checked |
//! | [`machine`] | where everything is put together, and nothing else |
//! | [`layout`], [`memory`], [`cpus`] | the guest's address space, RAM, and CPUs with their APIC ids |
//! | [`iommu`], [`units`] | a VT-d unit as this machine has it, and all of them |
//! | [`vfio`] | devices of the host that the guest gets |
//! | [`kvm`] | virtual machine, CPUs, interrupts |
//! | [`boot`], [`acpi`] | how a kernel is started and what it is told |
//! | [`start_report`] | how long each step of the start took |
//! | [`event_loop`], [`terminal`], [`outcome`], [`stats`] | the run: console, signals, end, what was counted |
//! | [`doctor`] | what the host can do |

mod acpi;
mod boot;
mod cli;
mod config;
mod cpus;
mod doctor;
mod event_loop;
mod iommu;
mod kvm;
mod layout;
mod machine;
mod memory;
mod outcome;
mod start_report;
mod stats;
mod terminal;
mod units;
mod usage;
mod vfio;

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::{CommandFactory, Parser};

use crate::config::{Complaint, Config};
use crate::outcome::Outcome;
use crate::start_report::{StartReport, Step};

fn main() -> ExitCode {
    let report = StartReport::new(Instant::now());
    terminal::install_panic_hook();
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let cli = match cli::Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => {
            return complain(&usage::complaint(&error, &cli::Cli::command(), &arguments));
        }
        Err(help) => {
            // Whoever closed standard output does not want to read it.
            let _ = help.print();
            return ExitCode::SUCCESS;
        }
    };
    if let Err(complaint) = start_log(&cli.log) {
        return complain(&complaint);
    }
    match cli.command {
        cli::Command::Doctor(arguments) => match doctor::run(&arguments) {
            Ok(usable) => ExitCode::from(u8::from(!usable)),
            Err(complaint) => complain(&complaint),
        },
        cli::Command::Run(arguments) => match run(*arguments, report) {
            Ok(outcome) => {
                if matches!(outcome, Outcome::HostFailure(_)) {
                    eprintln!("svmm: guest: {outcome}; see `svmm doctor`");
                }
                log::info!("{outcome}");
                ExitCode::from(&outcome)
            }
            Err(complaint) => complain(&complaint),
        },
    }
}

fn run(arguments: cli::RunArgs, report: StartReport) -> Result<Outcome, Complaint> {
    let config = Config::try_from(arguments)?;
    report.done(Step::ArgumentsRead);
    event_loop::catch_signals()
        .map_err(|error| Complaint::new("host", config::reasons(&error), "raise its limits"))?;
    machine::Machine::build(config, Arc::new(report))?.run()
}

fn start_log(level: &str) -> Result<(), Complaint> {
    let filter = env_filter::Builder::new().try_parse(level).map(|_| ());
    filter.map_err(|error| {
        Complaint::new(format_args!("--log {level}"), error, "give off, error, warn, info, debug or trace")
    })?;
    env_logger::Builder::new().parse_filters(level).init();
    Ok(())
}

fn complain(complaint: &Complaint) -> ExitCode {
    eprintln!("svmm: {complaint}");
    ExitCode::from(outcome::USAGE)
}
