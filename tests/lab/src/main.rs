//! `cargo lab`: see `cargo lab --help`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use lab::cli::{Cli, Command};
use lab::commands;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = lab::process::end_children_on_signal().and_then(|()| match &cli.command {
        Command::Demo(options) => commands::demo::run(options),
        Command::Test(options) => commands::test::run(options),
        Command::Matrix(options) => commands::matrix::run(options),
        Command::VfioSelftests => commands::vfio_selftests::run(),
        Command::Soak(options) => commands::soak::run(options),
        Command::Shell(options) => commands::shell::run(options),
        Command::Kernel(options) => commands::kernel::run(options),
        Command::Doctor => commands::doctor::run(),
    });
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("[lab] error: {error:#}");
            ExitCode::from(3)
        }
    }
}
