//! `cargo lab shell`: an interactive guest.

use std::time::Duration;

use anyhow::Result;

use crate::cache::Cache;
use crate::cli;
use crate::materials::Materials;
use crate::world::Terminal;

/// What the guest's kernel and init are told: quiet boot, then a shell.
const COMMAND_LINE: &str = "console=ttyS0 quiet -- shell";

/// Boots the guest on the user's terminal.
///
/// # Errors
/// Something does not build, or the world does not run.
pub fn run(guest: &cli::Guest) -> Result<bool> {
    let materials = Materials::prepare(&Cache::open()?)?;
    eprintln!("[lab] world: {}", materials.world);
    eprintln!("[lab] Ctrl-A x leaves the guest");
    let mut workload = materials.workload();
    workload.commands = vec![Materials::svmm_run(guest, COMMAND_LINE)];
    let codes = materials.world.run(&workload, Terminal::Interactive, Duration::MAX)?;
    Ok(codes == [0])
}
