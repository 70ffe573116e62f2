//! `cargo lab soak`: random work on the endpoint for half an hour.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::cache::Cache;
use crate::cli;
use crate::guests;
use crate::materials::{Initrd, Materials};

/// The test program that boots the guest.
const PROGRAM: &str = "soak";
/// Time for the boots, besides what the guest's own limit is.
const AROUND: Duration = Duration::from_secs(600);

/// Runs it.
///
/// # Errors
/// Something does not build, or the world does not run.
pub fn run(options: &cli::Soak) -> Result<bool> {
    let cache = Cache::open()?;
    let program = guests::programs()?.into_iter().find(|program| program.name == PROGRAM);
    let program = program.with_context(|| format!("svmm-tests has no test {PROGRAM}"))?;
    let materials = Materials::prepare(&cache, Initrd::Tests)?;
    eprintln!("[lab] world: {}", materials.world);
    let mut workload = guests::workload(&materials);
    workload.env.push(("SVMM_SOAK_SECONDS", options.seconds.to_string().into()));
    workload.env.push(("SVMM_SOAK_OPERATIONS", options.operations.to_string().into()));
    let limit = AROUND + Duration::from_secs(options.seconds) * 2;
    guests::run(&materials, workload, &[program], &["--nocapture".to_owned()], limit)
}
