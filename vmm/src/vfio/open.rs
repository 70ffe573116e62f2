//! Opens devices and the host's iommufd; whatever the host refuses becomes a complaint.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, RawFd};
use std::path::Path;
use std::sync::Arc;

use iommu_core::{Capabilities, HostError, SourceId};
use rustix::process::{Resource, getrlimit};
use vfio_bridge::NestedIommu;
use vfio_bridge::advice::advice;
use vfio_bridge::caps::Offer;
use vfio_bridge::meter::Metered;
use vfio_bridge::sys::{Cdev, FunctionHandle, Iommufd, inherited};

use super::sysfs::Sysfs;
use crate::config::{Complaint, Named, Placement, VfioSpec, reasons};
use crate::kvm::vfio::{KvmVfio, Member};
use crate::layout::slot;
use crate::memory::GuestRam;

/// A device that is bound to the iommufd, blocked, and known to KVM.
pub(crate) struct Device {
    /// What logs call it.
    pub(crate) id: String,
    /// What the guest knows it by.
    pub(crate) source: SourceId,
    /// Device number on the guest's bus.
    pub(crate) slot: u8,
    pub(crate) placement: Placement,
    pub(crate) offer: Offer,
    pub(crate) function: FunctionHandle,
    pub(crate) member: Member,
}

/// All assigned devices of a machine.
#[derive(Default)]
pub(crate) struct Devices {
    /// By the number of the unit that they are behind.
    pub(crate) hosts: BTreeMap<Option<usize>, Arc<NestedIommu>>,
    pub(crate) devices: Vec<Device>,
    /// Counts what the host is asked, if there are devices.
    pub(crate) meter: Option<Metered>,
}

/// What is opened with.
pub(crate) struct Opener<'a> {
    /// The number of an open `/dev/iommu`, if it is not to be opened here.
    pub(crate) iommufd: Option<RawFd>,
    /// Where devices start on the guest's bus.
    pub(crate) first_slot: u8,
    pub(crate) ram: &'a GuestRam,
    pub(crate) kvm: &'a KvmVfio,
}

impl Devices {
    /// Opens `specs`, and lets their IOMMU at the guest's memory.
    ///
    /// # Errors
    /// The host refused.
    pub(crate) fn open(specs: Vec<VfioSpec>, opener: &Opener<'_>) -> Result<Self, Complaint> {
        let mut all = Self::default();
        if specs.is_empty() {
            return Ok(all);
        }
        let iommufd = open_iommufd(opener.iommufd)?;
        let metered = Metered::new(Arc::new(iommufd.clone()));
        all.meter = Some(metered.clone());
        let through = (&iommufd, &metered);
        for (slot, spec) in (opener.first_slot..).zip(specs) {
            all.add(slot, spec, through, opener)?;
        }
        Ok(all)
    }

    fn add(
        &mut self,
        slot: u8,
        spec: VfioSpec,
        (iommufd, metered): (&Iommufd, &Metered),
        opener: &Opener<'_>,
    ) -> Result<(), Complaint> {
        let thing = format!("--vfio {}", spec.device);
        let cdev = open_device(&spec.device, iommufd)?;
        let refused = |error: &HostError| complaint(&thing, Some(&spec.device), error);
        let file = cdev
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| Complaint::new(&thing, error, "raise the limit of open files (ulimit -n)"))?;
        let member = opener.kvm.add(file);
        let function = cdev.function();
        let (host, first) = self.host(spec.placement.unit, metered)?;
        let source = SourceId::from_bdf(0, slot, 0);
        let offer =
            host.add_device(source, metered.device(Box::new(cdev))).map_err(|error| refused(&error))?;
        if first {
            host.add_memory(opener.ram).map_err(|error| refused(&error))?;
        }
        let VfioSpec { id, placement, .. } = spec;
        self.devices.push(Device { id, source, slot, placement, offer, function, member });
        Ok(())
    }

    /// The host's side of a unit; whether it is the very first, which has no memory yet.
    fn host(
        &mut self,
        unit: Option<usize>,
        metered: &Metered,
    ) -> Result<(Arc<NestedIommu>, bool), Complaint> {
        if let Some(host) = self.hosts.get(&unit) {
            return Ok((host.clone(), false));
        }
        let first = self.hosts.is_empty();
        let host = match self.hosts.values().next() {
            Some(other) => other.sibling(),
            None => NestedIommu::new(Arc::new(metered.clone()))
                .map_err(|error| complaint(IOMMUFD, None, &error))?,
        };
        let host = Arc::new(host);
        self.hosts.insert(unit, host.clone());
        Ok((host, first))
    }

    /// What the hosts of the devices behind a unit can do; `None` without devices.
    pub(crate) fn capabilities(&self, unit: usize) -> Option<Capabilities> {
        use iommu_core::HostIommu as _;
        self.hosts.get(&Some(unit)).map(|host| host.capabilities())
    }
}

/// Device numbers for assigned devices follow those of `endpoints` emulated ones.
pub(crate) fn first_slot(endpoints: usize) -> u8 {
    slot::FIRST_SVM.saturating_add(u8::try_from(endpoints).unwrap_or(u8::MAX))
}

const IOMMUFD: &str = "/dev/iommu";

/// The host's iommufd: opened, or taken over.
///
/// # Errors
/// There is none, or it may not be used.
pub(crate) fn open_iommufd(number: Option<RawFd>) -> Result<Iommufd, Complaint> {
    match number {
        None => Iommufd::open().map_err(|error| complaint(IOMMUFD, None, &error)),
        Some(number) => take(number, "--iommufd").map(Iommufd::from_fd),
    }
}

fn take(number: RawFd, option: &str) -> Result<std::os::fd::OwnedFd, Complaint> {
    inherited(number).map_err(|errno| {
        let remedy = "start svmm with that file open, and not closed on exec";
        Complaint::new(format_args!("{option} fd={number}"), std::io::Error::from(errno), remedy)
    })
}

/// A device's file: found, opened, or taken over.
///
/// # Errors
/// There is none, or it may not be used.
pub(crate) fn open_device(device: &Named, iommufd: &Iommufd) -> Result<Cdev, Complaint> {
    let open = |path: &Path| {
        Cdev::open(path, iommufd)
            .map_err(|error| complaint(&format!("--vfio {device}"), Some(device), &error))
    };
    match device {
        Named::Address(address) => open(&Sysfs::default().device_file(address)?),
        Named::Path(path) => open(path),
        Named::Inherited(number) => Ok(Cdev::from_fd(take(*number, "--vfio")?, iommufd)),
    }
}

/// What a user is told about a refusal of the host's.
pub(crate) fn complaint(thing: &str, device: Option<&Named>, error: &HostError) -> Complaint {
    let errno = error.source.raw_os_error();
    let mut reason = reasons(error);
    let mut remedy = advice(error).unwrap_or("see `svmm doctor --vfio`").to_owned();
    let sysfs = Sysfs::default();
    let address = device.and_then(|device| match device {
        Named::Address(address) => Some(address.clone()),
        Named::Path(path) => sysfs.address_of(path),
        Named::Inherited(_) => None,
    });
    match errno {
        Some(libc::EPERM) => {
            let held = address.map(|address| sysfs.held_with(&address)).unwrap_or_default();
            let held: Vec<_> = held.iter().map(|(other, driver)| format!("{other} ({driver})")).collect();
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
            reason = format!("{reason}: not such a file, or a kernel before Linux 6.6");
            remedy = "give the file of a VFIO device, and of /dev/iommu".into();
        }
        _ => {}
    }
    Complaint::new(thing, reason, remedy)
}
