//! `svmm doctor`: what this host can do, and what to do about what is missing.

mod vfio;

use std::path::Path;

use crate::cli::{DoctorArgs, Probe};
use crate::config::{Complaint, parse_iommufd, parse_name};
use crate::kvm::probe::{self, Kind};

/// Prints findings; whether a guest can be run here, or be given the device that is asked about.
///
/// # Errors
/// The question is none.
pub(crate) fn run(arguments: &DoctorArgs) -> Result<bool, Complaint> {
    let Some(device) = &arguments.vfio else { return Ok(host(arguments.probe)) };
    let iommufd = arguments.iommufd.as_deref().map(parse_iommufd).transpose()?;
    Ok(vfio::run(&parse_name(device)?, iommufd.as_ref()))
}

fn host(only: Option<Probe>) -> bool {
    let kvm = probe::kvm();
    let usable = matches!(kvm.kind, Kind::Native | Kind::Nested);
    if only == Some(Probe::Kvm) {
        println!("kvm {} {}", kvm.kind, kvm.details);
        return usable;
    }
    println!("kvm      {} ({})", kvm.kind, kvm.details);
    if let Some(remedy) = remedy(kvm.kind) {
        println!("         -> {remedy}");
    }
    for (name, path, use_) in [
        ("iommufd", "/dev/iommu", "assigned devices with nested translation"),
        ("vfio", "/dev/vfio", "assigned devices"),
    ] {
        let state =
            if Path::new(path).exists() { "present" } else { "absent: not needed for emulated devices" };
        println!("{name:<8} {state} ({path}, for {use_})");
    }
    usable
}

fn remedy(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Native | Kind::Nested => None,
        Kind::Emulating => {
            Some("too slow to boot a guest: run svmm in a machine with hardware virtualization")
        }
        Kind::Absent => {
            Some("load kvm_intel or kvm_amd; in a virtual machine, turn nested virtualization on")
        }
        Kind::Refused => Some("become a member of the group kvm, or run as root"),
    }
}
