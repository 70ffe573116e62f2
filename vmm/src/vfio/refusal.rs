//! What a user is told when the host refuses something.

use std::fmt;

use iommu_core::HostError;
use rustix::process::{Resource, getrlimit};
use vfio_bridge::advice::advice;

use super::sysfs::Sysfs;
use crate::config::{Complaint, Named, reasons};

/// The node of iommufd.
pub(crate) const IOMMUFD: &str = "/dev/iommu";

/// A complaint, and whether it is about something that is not there at all.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) complaint: Complaint,
    absent: bool,
}

impl From<Complaint> for Refusal {
    fn from(complaint: Complaint) -> Self {
        Self { complaint, absent: false }
    }
}

impl Refusal {
    pub(super) fn new(
        thing: impl fmt::Display,
        reason: impl fmt::Display,
        remedy: impl fmt::Display,
    ) -> Self {
        Complaint::new(thing, reason, remedy).into()
    }

    /// A refusal of the host's; `device` is whose.
    pub(crate) fn of(thing: &str, device: Option<&Named>, error: &HostError) -> Self {
        let sysfs = Sysfs::default();
        let address = device.and_then(|device| match device {
            Named::Address(address) => Some(address.clone()),
            Named::Path(path) => sysfs.address_of(path),
            Named::Inherited(_) => None,
        });
        let held = || address.map(|address| sysfs.held_with(&address)).unwrap_or_default();
        Self {
            complaint: explain(thing, error, held),
            absent: error.source.raw_os_error() == Some(libc::ENOENT),
        }
    }

    /// Of several, after one another: the first that is not about something absent, for another way was tried then.
    pub(crate) fn most_telling(all: Vec<Self>) -> Option<Complaint> {
        let at = all.iter().position(|refusal| !refusal.absent).unwrap_or(0);
        all.into_iter().nth(at).map(|refusal| refusal.complaint)
    }
}

/// **Pure**, but for the limit of locked memory. `held` names devices of the same group that a host driver has.
fn explain(thing: &str, error: &HostError, held: impl FnOnce() -> Vec<(String, String)>) -> Complaint {
    let mut reason = reasons(error);
    let mut remedy = advice(error).unwrap_or("see `svmm doctor --vfio DEVICE`").to_owned();
    match error.source.raw_os_error() {
        Some(libc::EPERM) => {
            let held: Vec<_> = held().iter().map(|(other, driver)| format!("{other} ({driver})")).collect();
            if !held.is_empty() {
                reason = format!("{reason}: the host itself uses devices of the same IOMMU group");
                remedy = format!("bind these to vfio-pci or to no driver: {}", held.join(", "));
            }
        }
        Some(libc::ENOMEM) => {
            if let Some(limit) = getrlimit(Resource::Memlock).current {
                remedy = format!("{remedy}; it is {} KiB", limit >> 10);
            }
        }
        Some(libc::ENOTTY) => {
            reason = format!("{reason}: not the file of a VFIO device, or a kernel before Linux 6.6");
            remedy = "give a device's file below /dev/vfio/devices, and /dev/iommu".into();
        }
        _ => {}
    }
    Complaint::new(thing, reason, remedy)
}

/// The kernel has VFIO, but no files of single devices.
pub(super) fn no_device_file(thing: &str) -> Refusal {
    let remedy = "the host's kernel needs CONFIG_VFIO_DEVICE_CDEV, of Linux 6.6 or later";
    let complaint = Complaint::new(thing, "VFIO has no file for the device", remedy);
    Refusal { complaint, absent: true }
}

/// The device is behind no IOMMU.
pub(super) fn no_group(thing: &str) -> Refusal {
    Refusal::new(thing, "the device is in no IOMMU group", "turn the host's IOMMU on (intel_iommu=on)")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(operation: &'static str, errno: i32) -> HostError {
        let source = std::io::Error::from_raw_os_error(errno);
        HostError { operation, object: "it".into(), still_bound: false, source }
    }

    /// (operation, errno, what is said)
    #[test]
    fn refusals_have_reason_and_remedy() {
        let held = || vec![("0000:6a:02.0".to_owned(), "idxd".to_owned())];
        for (operation, errno, expected) in [
            (
                "bind to the iommufd",
                libc::EPERM,
                "bind these to vfio-pci or to no driver: 0000:6a:02.0 (idxd)",
            ),
            ("bind to the iommufd", libc::EBUSY, "another program, or a host driver, is using"),
            ("map guest memory", libc::ENOMEM, " KiB"),
            ("bind to the iommufd", libc::ENOTTY, "a kernel before Linux 6.6; give a device's file"),
            ("something new", libc::EIO, "see `svmm doctor --vfio DEVICE`"),
            ("open", libc::ENOENT, "CONFIG_IOMMUFD"),
            ("open a device", libc::EACCES, "give this user access"),
        ] {
            let said = explain("--vfio x", &error(operation, errno), held).to_string();
            assert!(said.starts_with("--vfio x: ") && said.contains(expected), "{operation} {errno}: {said}");
            assert!(!said.contains('\n'), "{said}");
        }
        let alone = explain("--vfio x", &error("bind to the iommufd", libc::EPERM), Vec::new).to_string();
        assert!(alone.contains("a host driver holds a device of the same IOMMU group"), "{alone}");
    }

    #[test]
    fn what_is_there_and_refused_tells_more_than_what_is_absent() {
        let refusal = |thing: &str, errno| Refusal::of(thing, None, &error("open", errno));
        let thing = |all| Refusal::most_telling(all).map(|complaint| complaint.thing);
        assert_eq!(thing(vec![]), None);
        assert_eq!(thing(vec![refusal("a", libc::ENOENT), refusal("b", libc::ENOENT)]).as_deref(), Some("a"));
        assert_eq!(thing(vec![refusal("a", libc::ENOENT), refusal("b", libc::EPERM)]).as_deref(), Some("b"));
        assert_eq!(thing(vec![refusal("a", libc::EACCES), refusal("b", libc::EPERM)]).as_deref(), Some("a"));
    }
}
