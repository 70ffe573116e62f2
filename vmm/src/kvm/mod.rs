//! The host's KVM: the machine's shell ([`vm`]), its CPUs ([`vcpu`]), its interrupts ([`irq`], [`routing`]),
//! memory and files of assigned devices ([`slots`], [`vfio`]), and what kind of KVM this host has ([`probe`]).
//!
//! Unsafe code is allowed here because memory is given to the kernel and its shared pages are read; each block
//! says why it is sound.

pub(crate) mod irq;
pub(crate) mod probe;
pub(crate) mod routing;
pub(crate) mod slots;
pub(crate) mod vcpu;
pub(crate) mod vfio;
pub(crate) mod vm;

use std::io;

use crate::config::Complaint;

/// Where KVM is.
pub(crate) const DEVICE: &str = "/dev/kvm";

/// A KVM operation failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation}")]
pub(crate) struct Error {
    /// What was tried.
    pub(crate) operation: &'static str,
    /// The kernel's reason.
    #[source]
    pub(crate) source: io::Error,
}

impl Error {
    /// Wraps the reason of a failed ioctl: use with `map_err`.
    pub(crate) fn of(operation: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |error| Self { operation, source: error.into() }
    }

    /// The kernel lacks something.
    pub(crate) fn missing(operation: &'static str) -> Self {
        Self { operation, source: io::ErrorKind::Unsupported.into() }
    }
}

/// Opens KVM.
///
/// # Errors
/// It is not there, or this process may not use it.
pub(crate) fn open() -> Result<kvm_ioctls::Kvm, Complaint> {
    let kvm = kvm_ioctls::Kvm::new().map_err(|error| {
        let error = io::Error::from(error);
        match error.kind() {
            io::ErrorKind::NotFound => Complaint::new(
                DEVICE,
                "not there",
                "load kvm_intel or kvm_amd; in a virtual machine, turn nested virtualization on",
            ),
            io::ErrorKind::PermissionDenied => Complaint::new(
                DEVICE,
                "permission denied",
                "become a member of the group kvm, or run as root",
            ),
            _ => Complaint::new(DEVICE, error, "see `svmm doctor`"),
        }
    })?;
    if kvm.get_api_version() != 12 {
        return Err(Complaint::new(DEVICE, "does not speak the KVM API version 12", "see `svmm doctor`"));
    }
    Ok(kvm)
}
