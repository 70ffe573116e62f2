//! `cargo lab doctor`: what this host can do, and what to do about what it cannot.

use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::cache::Cache;
use crate::debian::host;
use crate::process::find_program;
use crate::world::{Kvm, choice};
use crate::{kernel, programs, qemu};

/// Memory below which the cloud world with a 6 GiB guest is not possible.
const MEMORY_GIB: u64 = 8;
/// What a kernel build takes at most, and all products together.
const DISK_GIB: u64 = 6;

/// One line of the diagnosis.
struct Finding {
    what: &'static str,
    state: String,
    /// What to do; empty when nothing is missing.
    remedy: String,
}

impl Finding {
    fn new(what: &'static str, state: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what, state: state.into(), remedy: remedy.into() }
    }
}

/// Looks at everything and prints what it found.
///
/// # Errors
/// The cache folder cannot be made.
pub fn run() -> Result<bool> {
    let cache = Cache::open()?;
    let findings = [
        kvm(),
        iommufd(),
        vfio_devices(),
        kernel_tools(),
        rust_tools(),
        qemu_state(&cache),
        kernel_state(&cache)?,
        memory(),
        disk(&cache),
    ];
    for finding in &findings {
        println!("  {:<24}{}", finding.what, finding.state);
        if !finding.remedy.is_empty() {
            println!("  {:<24}-> {}", "", finding.remedy);
        }
    }
    println!("  {:<24}{}", "cache folder", cache.root().display());
    Ok(true)
}

fn kvm() -> Finding {
    let probe = programs::binary("vmm", "svmm").and_then(|svmm| Kvm::probe(&svmm));
    match probe {
        Ok(kvm) if kvm.choice() == choice::Choice::Here => Finding::new("KVM", kvm.to_string(), ""),
        Ok(kvm) => Finding::new(
            "KVM",
            kvm.to_string(),
            "guests run in the cloud world (QEMU); for speed use a host with /dev/kvm",
        ),
        Err(error) => Finding::new(
            "KVM",
            format!("not known: {error:#}"),
            format!("set {}=cloud or =here", choice::VARIABLE),
        ),
    }
}

fn iommufd() -> Finding {
    if Path::new("/dev/iommu").exists() {
        Finding::new("iommufd", "present", "")
    } else {
        Finding::new(
            "iommufd",
            "absent",
            "only for assigned devices: a kernel with CONFIG_IOMMUFD, then `modprobe iommufd`",
        )
    }
}

/// Devices that are bound to vfio-pci.
fn vfio_devices() -> Finding {
    let bound: Vec<String> = fs::read_dir("/sys/bus/pci/drivers/vfio-pci")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.contains(':'))
        .collect();
    if bound.is_empty() {
        let remedy = "only for assigned devices: bind one to vfio-pci by its driver_override";
        Finding::new("VFIO devices", "none", remedy)
    } else {
        Finding::new("VFIO devices", bound.join(" "), "")
    }
}

fn kernel_tools() -> Finding {
    let missing = host::missing(host::KERNEL_BUILD);
    if missing.is_empty() {
        return Finding::new("tools to build a kernel", "present", "");
    }
    let state = format!("missing: {}", missing.join(" "));
    Finding::new("tools to build a kernel", state, host::install_command(&missing))
}

fn rust_tools() -> Finding {
    let missing: Vec<&str> =
        ["rustfmt", "cargo-clippy"].into_iter().filter(|name| find_program(name).is_none()).collect();
    if missing.is_empty() {
        return Finding::new("rustfmt and clippy", "present", "");
    }
    let state = format!("missing: {}", missing.join(" "));
    Finding::new("rustfmt and clippy", state, "rustup component add rustfmt clippy")
}

fn qemu_state(cache: &Cache) -> Finding {
    match qemu::find(cache) {
        Ok(Some(qemu)) => {
            let state = format!("{} at {}", qemu.version(), qemu.program().display());
            Finding::new("QEMU >= 10", state, "")
        }
        Ok(None) => Finding::new(
            "QEMU >= 10",
            "absent",
            "nothing: the lab fetches it into its cache when the cloud world needs it",
        ),
        Err(error) => Finding::new("QEMU >= 10", format!("{error:#}"), "correct the variable"),
    }
}

fn kernel_state(cache: &Cache) -> Result<Finding> {
    Ok(match kernel::cached(cache).unwrap_or(None) {
        Some(kernel) => {
            let source = kernel::source::recorded(cache)?;
            let source = source.map_or_else(String::new, |source| source.identity());
            let state = format!("{source}, built in {}", kernel.folder.display());
            Finding::new("kernel", state, "")
        }
        None => Finding::new("kernel", "not built", "cargo lab kernel (some minutes, once)"),
    })
}

fn memory() -> Finding {
    let info = rustix::system::sysinfo();
    let gib = (u64::from(info.mem_unit) * info.totalram) >> 30;
    let remedy = if gib < MEMORY_GIB {
        format!("{MEMORY_GIB} GiB or more for tests with large guests")
    } else {
        String::new()
    };
    Finding::new("memory", format!("{gib} GiB"), remedy)
}

fn disk(cache: &Cache) -> Finding {
    let Ok(stat) = rustix::fs::statvfs(cache.root()) else {
        return Finding::new("disk", "not known", "");
    };
    let gib = (stat.f_bavail * stat.f_frsize) >> 30;
    let remedy = if gib < DISK_GIB {
        format!("{DISK_GIB} GiB free, or SVMM_LAB_CACHE on another disk")
    } else {
        String::new()
    };
    Finding::new("disk for the cache", format!("{gib} GiB free"), remedy)
}
