//! The initial file system of a test guest.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::Archive;
use crate::cache::Cache;
use crate::programs;

/// Builds the guest's programs and packs them; returns the archive's path.
///
/// # Errors
/// A program does not build, or the cache cannot be written.
pub fn build(cache: &Cache) -> Result<PathBuf> {
    let init = programs::binary("guest", "guest-init")?;
    let selftest = programs::binary("guest", "svm-selftest")?;
    let target = cache.folder("image")?.join("guest.cpio");
    pack(&init, &selftest, &target)?;
    Ok(target)
}

fn pack(init: &Path, selftest: &Path, target: &Path) -> Result<()> {
    let mut archive = Archive::new();
    for folder in ["proc", "sys", "tmp", "run"] {
        archive.folder(folder);
    }
    archive.host_file("/init", init)?;
    archive.host_file("/bin/svm-selftest", selftest)?;
    archive.write(target)
}
