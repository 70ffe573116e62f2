//! `cargo lab kernel`: builds the kernel when needed and tells where it is.

use anyhow::Result;

use crate::cache::Cache;
use crate::cli;
use crate::kernel::{self, source};

/// Prints the paths of the kernel's files.
///
/// # Errors
/// The kernel does not build.
pub fn run(options: &cli::Kernel) -> Result<bool> {
    let cache = Cache::open()?;
    if options.refresh {
        source::forget(&cache);
    }
    let kernel = kernel::ensure(&cache)?;
    if let Some(source) = source::recorded(&cache)? {
        println!("source   {}", source.identity());
    }
    println!("bzImage  {}", kernel.bz_image().display());
    println!("vmlinux  {}", kernel.vmlinux().display());
    println!("config   {}", kernel.config().display());
    Ok(true)
}
