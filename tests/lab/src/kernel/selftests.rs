//! The kernel's own tests of VFIO, `tools/testing/selftests/vfio`, from the source that the lab's kernel is made of.
//!
//! They are linked statically, so that they run in a guest that has no libraries, and kept beside the kernels: neither
//! is built again for the other.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::source::{self, Source};
use crate::cache::{self, Cache};
use crate::debian::{PrivateApt, host};
use crate::process::{output, run_logged};
use crate::ui::Progress;

/// The programs, each a test.
pub const PROGRAMS: [&str; 5] = [
    "vfio_dma_mapping_test",
    "vfio_dma_mapping_mmio_test",
    "vfio_iommufd_setup_test",
    "vfio_pci_device_test",
    "vfio_pci_driver_test",
];

/// The cache's folder for them.
const KIND: &str = "vfio-selftests";
/// Changes when the steps below change what they produce.
const RECIPE: &str = "1";
const FOLDER: &str = "tools/testing/selftests/vfio";
/// What of a source tree they are built from: a tenth of it.
const PARTS: &[&str] = &[
    "*/Makefile",
    "*/Kbuild",
    "*/Kconfig",
    "*/scripts",
    "*/include",
    "*/usr",
    "*/arch/x86/Makefile*",
    "*/arch/x86/include",
    "*/arch/x86/entry/syscalls",
    "*/arch/x86/tools",
    "*/drivers/dma",
    "*/drivers/net/ethernet/intel/igb",
    "*/tools/include",
    "*/tools/scripts",
    "*/tools/arch/x86/include",
    "*/tools/build",
    "*/tools/testing/selftests/lib.mk",
    "*/tools/testing/selftests/*.h",
    "*/tools/testing/selftests/vfio",
];

/// The folder with [`PROGRAMS`], built when it is not cached.
///
/// # Errors
/// A package is missing and the lab may not install it, the source cannot be had, or the build fails.
pub fn ensure(cache: &Cache) -> Result<PathBuf> {
    let recorded = source::recorded(cache)?;
    let cached = |source: &Source| Ok::<_, anyhow::Error>(cache.find(KIND, &key(source)?));
    if let Some(folder) = recorded.as_ref().map(cached).transpose()?.flatten() {
        return Ok(folder);
    }
    let _held = cache.lock(KIND)?;
    host::ensure(host::KERNEL_BUILD, cache)?;
    host::ensure(host::VFIO_SELFTESTS_BUILD, cache)?;
    let (source, apt) = match recorded {
        Some(tree @ Source::Tree(_)) => (tree, None),
        Some(package) => (package, Some(PrivateApt::open(cache)?)),
        None => {
            let apt = PrivateApt::open(cache)?;
            (source::newest(&apt)?, Some(apt))
        }
    };
    // Another lab may have built them meanwhile.
    if let Some(folder) = cached(&source)? {
        return Ok(folder);
    }
    cache.publish(KIND, &key(&source)?, |part| {
        let log = cache.root().join("vfio-selftests-build.log");
        let _ = fs::remove_file(&log);
        cache::remove(&cache.root().join("vfio-selftests-work"))?;
        let work = cache.folder("vfio-selftests-work")?;
        let tree = source.provide(apt.as_ref(), &work, PARTS, &log)?;
        build(&tree, &work, part, &log)?;
        cache::remove(&work)
    })
}

fn key(source: &Source) -> Result<String> {
    let compiler = output(Command::new("gcc").arg("--version"))?;
    let compiler = compiler.lines().next().unwrap_or_default();
    Ok(cache::key(&[RECIPE, &source.identity(), compiler]))
}

/// Builds first the headers that programs see, then the programs, and leaves those in `target`.
fn build(tree: &Path, work: &Path, target: &Path, log: &Path) -> Result<()> {
    let mut progress = Progress::start("the kernel's VFIO selftests");
    let (objects, products) = (work.join("objects"), work.join("products"));
    for folder in [&objects, &products] {
        fs::create_dir_all(folder)?;
    }
    let mut headers = make(tree);
    headers.arg(format!("O={}", objects.display())).arg("headers");
    run_logged(&mut headers, log, &mut progress, String::new)?;
    let mut programs = make(&tree.join(FOLDER));
    programs
        .arg(format!("OUTPUT={}", products.display()))
        .arg(format!("KHDR_INCLUDES=-isystem {}", objects.join("usr/include").display()))
        .arg("EXTRA_CFLAGS=-static");
    run_logged(&mut programs, log, &mut progress, String::new)?;
    for name in PROGRAMS {
        fs::copy(products.join(name), target.join(name))
            .with_context(|| format!("the kernel's VFIO selftests have no {name}"))?;
    }
    progress.done("");
    Ok(())
}

fn make(folder: &Path) -> Command {
    let mut make = Command::new("make");
    make.arg("-C").arg(folder).arg("ARCH=x86").env_remove("MAKEFLAGS").env_remove("MAKELEVEL");
    make
}
