//! `svmm`: a virtual machine monitor in which shared virtual memory works.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`cli`], [`config`] | what the user wants, checked |
//! | [`machine`] | where everything is put together, and nothing else |
//! | [`layout`], [`memory`] | the guest's address space and RAM |
//! | [`kvm`] | virtual machine, CPUs, interrupts |
//! | [`boot`], [`acpi`] | how a kernel is started and what it is told |
//! | [`event_loop`], [`terminal`], [`outcome`] | the run: console, signals, end |
//! | [`doctor`] | what the host can do |

mod boot;
mod cli;
mod config;
mod doctor;
mod kvm;
mod layout;
mod memory;
mod outcome;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    match cli.command {
        cli::Command::Doctor(arguments) => ExitCode::from(u8::from(!doctor::run(arguments.probe))),
        cli::Command::Run(_) => ExitCode::from(outcome::USAGE),
    }
}
