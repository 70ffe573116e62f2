//! `cargo lab shell`: an interactive guest.

use std::time::Duration;

use anyhow::Result;

use crate::cache::Cache;
use crate::cli;
use crate::materials::{Initrd, Materials};
use crate::world::Terminal;

/// A quiet boot, then a shell (see `tests/guest`, guest-init).
const COMMAND_LINE: &str = "console=ttyS0 quiet svmm.run=/bin/sh";

/// Exit codes of svmm (`svmm run --help`): powered off, left by Ctrl-A x, or the shell's own status.
fn left_well(code: i32) -> bool {
    matches!(code, 0 | 6 | 64..=127)
}

/// Boots the guest on the user's terminal.
///
/// # Errors
/// Something does not build, or the world does not run.
pub fn run(guest: &cli::Guest) -> Result<bool> {
    let materials = Materials::prepare(&Cache::open()?, Initrd::Shell)?;
    eprintln!("[lab] world: {}", materials.world);
    eprintln!("[lab] Ctrl-A x leaves the guest");
    let mut workload = materials.workload();
    workload.commands = vec![Materials::svmm_run(guest, COMMAND_LINE)];
    let codes = materials.world.run(&workload, Terminal::Interactive, Duration::MAX)?;
    Ok(codes.iter().all(|code| left_well(*code)))
}
