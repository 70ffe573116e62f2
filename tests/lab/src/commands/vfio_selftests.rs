//! `cargo lab vfio-selftests`: every case of the kernel's own VFIO selftests, in a guest.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::cache::Cache;
use crate::guests;
use crate::materials::{Initrd, Materials};

/// The test program that boots the guests.
const PROGRAM: &str = "vfio_selftests";
/// All of it, also where guests are emulated.
const LIMIT: Duration = Duration::from_secs(60 * 60);

/// Runs them. Their sums are shown by way to the IOMMU.
///
/// # Errors
/// The selftests cannot be built, or the world does not run.
pub fn run() -> Result<bool> {
    let cache = Cache::open()?;
    let program = guests::programs()?.into_iter().find(|program| program.name == PROGRAM);
    let program = program.with_context(|| format!("svmm-tests has no test {PROGRAM}"))?;
    let materials = Materials::prepare(&cache, Initrd::Tests)?;
    let mut workload = guests::workload(&materials);
    workload.env.push(("SVMM_MATRIX", "all".into()));
    guests::run(&materials, workload, &[program], &["--nocapture".to_owned()], LIMIT)
}
