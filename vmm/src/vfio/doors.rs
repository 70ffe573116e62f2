//! The host's files, opened as the bridge asks for them.

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use iommu_core::{HostError, SourceId};
use vfio_bridge::choice::{Doors, absent};
use vfio_bridge::kernel::{ContainerFile, DeviceFile, Kernel};
use vfio_bridge::meter::Metered;
use vfio_bridge::sys::{Cdev, Container, FunctionHandle, Iommufd};

use super::refusal::{self, Refusal};
use super::sysfs::Sysfs;
use crate::config::{Inherited, Named};
use crate::kvm::vfio::{KvmVfio, Member};

/// A device's function, and what tells KVM of its file.
pub(crate) struct Opened {
    pub(crate) function: FunctionHandle,
    pub(crate) member: Option<Member>,
}

/// Opens files, and keeps of each device what others than the IOMMU's side need.
pub(crate) struct HostDoors<'a> {
    /// By what the guest knows them by.
    devices: BTreeMap<SourceId, &'a Named>,
    /// An open `/dev/iommu`, if it is not to be opened here.
    inherited: Option<&'a Inherited>,
    /// Who is told of files; none where there is no machine.
    kvm: Option<&'a KvmVfio>,
    sysfs: Sysfs,
    iommufd: OnceCell<(Iommufd, Metered)>,
    opened: RefCell<BTreeMap<SourceId, Opened>>,
    /// What was refused, in order.
    refusals: RefCell<Vec<Refusal>>,
}

impl<'a> HostDoors<'a> {
    pub(crate) fn new(
        devices: BTreeMap<SourceId, &'a Named>,
        inherited: Option<&'a Inherited>,
        kvm: Option<&'a KvmVfio>,
    ) -> Self {
        Self {
            devices,
            inherited,
            kvm,
            sysfs: Sysfs::default(),
            iommufd: OnceCell::new(),
            opened: RefCell::default(),
            refusals: RefCell::default(),
        }
    }

    /// Counts what the iommufd is asked, once it is open.
    pub(crate) fn meter(&self) -> Option<Metered> {
        self.iommufd.get().map(|(_, meter)| meter.clone())
    }

    /// What was opened of a device last.
    pub(crate) fn take(&self, source: SourceId) -> Option<Opened> {
        self.opened.borrow_mut().remove(&source)
    }

    /// What was refused since this was asked last.
    pub(crate) fn refusals(&self) -> Vec<Refusal> {
        std::mem::take(&mut self.refusals.borrow_mut())
    }

    fn note(&self, refusal: Refusal, error: HostError) -> HostError {
        self.refusals.borrow_mut().push(refusal);
        error
    }

    fn refused(&self, thing: &str, device: Option<&Named>, error: HostError) -> HostError {
        let refusal = Refusal::of(thing, device, &error);
        self.note(refusal, error)
    }

    /// What the iommufd is called in complaints.
    pub(crate) fn iommufd_name(&self) -> String {
        self.inherited.map_or_else(|| refusal::IOMMUFD.to_owned(), |file| format!("--iommufd {file}"))
    }

    fn take_over(&self, option: &str, file: &Inherited) -> Result<OwnedFd, HostError> {
        file.file().map_err(|source| {
            let remedy = "raise the limit of open files (ulimit -n)";
            let refusal = Refusal::new(format_args!("{option} {file}"), &source, remedy);
            let object = file.to_string();
            self.note(refusal, HostError { operation: "take over", object, still_bound: false, source })
        })
    }

    fn open_iommufd(&self) -> Result<&(Iommufd, Metered), HostError> {
        if let Some(known) = self.iommufd.get() {
            return Ok(known);
        }
        let opened = match self.inherited {
            Some(file) => Iommufd::from_fd(self.take_over("--iommufd", file)?),
            None => Iommufd::open().map_err(|error| self.refused(refusal::IOMMUFD, None, error))?,
        };
        let metered = Metered::new(Arc::new(opened.clone()));
        Ok(self.iommufd.get_or_init(|| (opened, metered)))
    }

    /// The device's address, once it is known that VFIO has it.
    fn checked_address(&self, device: &Named) -> Result<String, HostError> {
        let address = match device {
            Named::Address(address) => address.clone(),
            Named::Path(path) => match self.sysfs.address_of(path) {
                Some(address) => return Ok(address),
                None => return Err(absent(path.display())),
            },
            Named::Inherited(file) => return Err(absent(file)),
        };
        match self.sysfs.check(&address) {
            Ok(()) => Ok(address),
            Err(complaint) => {
                let source = std::io::Error::from_raw_os_error(libc::ENODEV);
                let error = HostError { operation: "find", object: address, still_bound: false, source };
                Err(self.note(Refusal::from(complaint), error))
            }
        }
    }

    fn open_cdev(&self, device: &Named, iommufd: &Iommufd) -> Result<Cdev, HostError> {
        let thing = format!("--vfio {device}");
        let open = |path: &Path| {
            Cdev::open(path, iommufd).map_err(|error| self.refused(&thing, Some(device), error))
        };
        match device {
            Named::Path(path) => open(path),
            Named::Inherited(file) => Ok(Cdev::from_fd(self.take_over("--vfio", file)?, iommufd)),
            Named::Address(_) => {
                let address = self.checked_address(device)?;
                match self.sysfs.device_file(&address) {
                    Some(path) => open(&path),
                    None => Err(self.note(refusal::no_device_file(&thing), absent(&address))),
                }
            }
        }
    }

    fn device_of(&self, source: SourceId) -> Result<&Named, HostError> {
        self.devices.get(&source).copied().ok_or_else(|| absent(source))
    }

    fn keep(&self, source: SourceId, function: FunctionHandle, member: Option<Member>) {
        self.opened.borrow_mut().insert(source, Opened { function, member });
    }

    /// Tells KVM of a file, before it is used.
    fn member(&self, file: std::io::Result<OwnedFd>) -> Option<Member> {
        let file = file.inspect_err(|error| log::info!("KVM is not told of a device: {error}")).ok()?;
        self.kvm.map(|kvm| kvm.add(file))
    }
}

impl Doors for HostDoors<'_> {
    fn iommufd(&self) -> Result<Arc<dyn Kernel>, HostError> {
        self.open_iommufd().map(|(_, metered)| Arc::new(metered.clone()) as Arc<dyn Kernel>)
    }

    fn device(&self, source: SourceId) -> Result<Box<dyn DeviceFile>, HostError> {
        let device = self.device_of(source)?;
        let (iommufd, metered) = self.open_iommufd()?;
        let cdev = self.open_cdev(device, iommufd)?;
        let member = self.member(cdev.as_fd().try_clone_to_owned());
        self.keep(source, cdev.function(), member);
        Ok(metered.device(Box::new(cdev)))
    }

    fn container(&self, source: SourceId) -> Result<Box<dyn ContainerFile>, HostError> {
        let device = self.device_of(source)?;
        let thing = format!("--vfio {device}");
        let address = self.checked_address(device)?;
        let refused = |error| self.refused(&thing, Some(device), error);
        let group = self.sysfs.group_file(&address);
        let group = group.ok_or_else(|| self.note(refusal::no_group(&thing), absent(&address)))?;
        let container = Container::open(&group).map_err(refused)?;
        let member = self.member(container.group().try_clone_to_owned());
        let file = container.device(&address).map_err(refused)?;
        self.keep(source, FunctionHandle::from_fd(file), member);
        let file: Box<dyn ContainerFile> = Box::new(container);
        Ok(match self.meter() {
            Some(meter) => meter.container(file),
            None => file,
        })
    }
}
