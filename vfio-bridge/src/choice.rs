//! Which way a guest's devices are translated: found out by trying, and told in one line.
//!
//! | way | needs |
//! | --- | --- |
//! | nested | iommufd, and a VT-d that nests |
//! | nested without PASIDs | the same, where the device or the kernel has no PASIDs |
//! | shadow | iommufd, whatever the IOMMU |
//! | container | VFIO groups |
//!
//! All devices behind one unit of the guest's go the same way, because the unit has one profile.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use iommu_core::{GuestMappings, HostError, HostIommu, SourceId, Translator};
use rustix::io::Errno;
use vm_memory::GuestMemoryMmap;
use vm_memory::bitmap::Bitmap;

use crate::caps::{Feature, Offer};
use crate::device::Device;
use crate::fault_queue::FaultQueue;
use crate::ioas::Ioas;
use crate::kernel::{ContainerFile, DeviceFile, Kernel};
use crate::memory::SharedMemory;
use crate::object::{MAKE_NEST_PARENT, OPEN_DEVICE, OPEN_IOMMUFD, Objects, SHARE, refused};
use crate::{ContainerIommu, NestedIommu, ShadowIommu};

/// What the user wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    /// The best that the host has.
    #[default]
    Auto,
    /// Nested or nothing.
    Nested,
    /// Copies over iommufd, even if the host could nest.
    Shadow,
    /// Copies over legacy containers, even if the host has iommufd.
    Container,
}

/// Names as users give them.
const NAMES: [(&str, Wanted); 4] = [
    ("auto", Wanted::Auto),
    ("nested", Wanted::Nested),
    ("shadow", Wanted::Shadow),
    ("container", Wanted::Container),
];

impl FromStr for Wanted {
    type Err = UnknownWay;

    fn from_str(text: &str) -> Result<Self, UnknownWay> {
        NAMES.iter().find(|(name, _)| *name == text).map(|row| row.1).ok_or(UnknownWay)
    }
}

/// No way is called so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownWay;

impl fmt::Display for UnknownWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("auto, nested, shadow or container")
    }
}

impl std::error::Error for UnknownWay {}

/// What it became.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The host walks the guest's first-stage tables.
    Nested,
    /// The same, for requests without PASID only.
    NestedWithoutPasid,
    /// Copies over iommufd.
    Shadow,
    /// Copies over legacy containers.
    Container,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nested => "nested page tables",
            Self::NestedWithoutPasid => "nested page tables without PASIDs",
            Self::Shadow => "shadow page tables over iommufd",
            Self::Container => "shadow page tables over legacy VFIO containers",
        })
    }
}

/// What a door answers where the host has no such file: another way may be tried.
#[must_use]
pub fn absent(object: impl fmt::Display) -> HostError {
    refused(OPEN_DEVICE, object, Errno::NOENT)
}

/// How the host's files are opened.
pub trait Doors {
    /// `/dev/iommu`.
    ///
    /// # Errors
    /// It cannot be opened.
    fn iommufd(&self) -> Result<Arc<dyn Kernel>, HostError>;

    /// The character device of a device, for that iommufd; not bound yet.
    ///
    /// # Errors
    /// There is none, or it cannot be opened.
    fn device(&self, source: SourceId) -> Result<Box<dyn DeviceFile>, HostError>;

    /// The device's group, in a container of its own.
    ///
    /// # Errors
    /// There is none, or it cannot be used.
    fn container(&self, source: SourceId) -> Result<Box<dyn ContainerFile>, HostError>;
}

/// The host's side of the devices behind one unit of the guest's. Clones are the same one.
#[derive(Clone)]
pub enum Bridge {
    /// Nested page tables.
    Nested(Arc<NestedIommu>),
    /// Copies over iommufd.
    Shadow(Arc<ShadowIommu>),
    /// Copies over legacy containers.
    Container(Arc<ContainerIommu>),
}

impl Bridge {
    /// For the model.
    #[must_use]
    pub fn iommu(&self) -> Arc<dyn HostIommu> {
        match self {
            Self::Nested(host) => host.clone(),
            Self::Shadow(host) => host.clone(),
            Self::Container(host) => host.clone(),
        }
    }

    /// Who reads the guest's tables, from now on. They depend on what the guest is offered, and so on the devices.
    pub fn set_mappings(&self, mappings: Arc<dyn GuestMappings>) {
        match self {
            Self::Nested(_) => {}
            Self::Shadow(host) => host.set_mappings(mappings),
            Self::Container(host) => host.set_mappings(mappings),
        }
    }

    /// The address space of guest memory, if it can be shared.
    fn ioas(&self) -> Option<Arc<Ioas>> {
        match self {
            Self::Nested(host) => Some(host.shared_ioas()),
            Self::Shadow(host) => Some(host.ioas()),
            Self::Container(_) => None,
        }
    }

    /// Lets devices at guest memory; not where [`Choice::has_memory`].
    ///
    /// # Errors
    /// The host refused a range; those before it stay.
    pub fn add_memory<B>(&self, memory: &GuestMemoryMmap<B>) -> Result<(), HostError>
    where
        B: Bitmap + Send + Sync + 'static,
    {
        match self {
            Self::Nested(host) => host.add_memory(memory),
            Self::Shadow(host) => host.add_memory(memory),
            Self::Container(host) => host.add_memory(memory),
        }
    }

    /// Lets devices at another's memory, from guest address `start` on, until the answer is dropped: those whose
    /// guest-physical addresses the host translates, not those behind copies of a guest's tables.
    ///
    /// # Errors
    /// The host refused; `EOPNOTSUPP` with containers.
    pub fn share(&self, start: u64, memory: &SharedMemory) -> Result<Box<dyn Send + Sync>, HostError> {
        let containers = || refused(SHARE, "legacy VFIO containers", Errno::OPNOTSUPP);
        self.ioas().ok_or_else(containers)?.share(start, memory)
    }

    /// Takes a device out.
    pub fn remove_device(&self, source: SourceId) {
        match self {
            Self::Nested(host) => host.remove_device(source),
            Self::Shadow(host) => host.remove_device(source),
            Self::Container(host) => host.remove_device(source),
        }
    }

    /// What to poll for page requests, if there are any. Drop it before this.
    #[must_use]
    pub fn fault_queue(&self) -> Option<Arc<FaultQueue>> {
        match self {
            Self::Nested(host) => host.fault_queue(),
            Self::Shadow(_) | Self::Container(_) => None,
        }
    }

    /// See [`NestedIommu::deliver_page_requests`].
    ///
    /// # Errors
    /// As there.
    pub fn deliver_page_requests(&self, model: &dyn Translator) -> Result<usize, HostError> {
        match self {
            Self::Nested(host) => host.deliver_page_requests(model),
            Self::Shadow(_) | Self::Container(_) => Ok(0),
        }
    }

    /// See [`NestedIommu::device_was_reset`].
    ///
    /// # Errors
    /// As there.
    pub fn device_was_reset(&self, source: SourceId, model: &dyn Translator) -> Result<(), HostError> {
        match self {
            Self::Nested(host) => host.device_was_reset(source, model),
            Self::Shadow(_) | Self::Container(_) => Ok(()),
        }
    }
}

/// What was chosen.
pub struct Choice {
    /// The host's side, with all devices.
    pub bridge: Bridge,
    /// It shares the memory of the bridge beside it. If not, it has none yet.
    pub has_memory: bool,
    /// Which way.
    pub way: Way,
    /// Why no better one.
    pub reason: String,
    /// What the host offers for each device.
    pub offers: Vec<(SourceId, Offer)>,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "assigned devices use {}: {}", self.way, self.reason)
    }
}

/// Takes `sources` in by the best way that all of them can go, or by the one that is wanted, and logs which and why.
/// Their bus mastering has to be off. `beside` is the bridge of another unit of the same guest, whose iommufd and
/// memory are used if that is possible.
///
/// Without iommufd, or without a character device of a device, containers are tried; files that this user may not
/// open count as none. A device that is there and cannot be had is an error: it could not be had in another way
/// either.
///
/// # Errors
/// There is no way, or not the one wanted. If several were tried, the error is that of the last, and the one before it
/// is logged.
pub fn choose(
    wanted: Wanted,
    sources: &[SourceId],
    doors: &dyn Doors,
    beside: Option<&Bridge>,
) -> Result<Choice, HostError> {
    const ASKED: &str = "as asked for";
    let choice = match wanted {
        Wanted::Container => by_containers(sources, doors, ASKED.to_owned())?,
        Wanted::Auto | Wanted::Nested | Wanted::Shadow => match Opened::new(sources, doors, beside) {
            Ok(opened) if wanted == Wanted::Shadow => opened.shadow(ASKED.to_owned())?,
            Ok(opened) => match opened.cannot_nest() {
                None => opened.nest()?,
                Some(error) if wanted == Wanted::Nested => return Err(error),
                Some(error) => opened.shadow(why_no_nesting(&error))?,
            },
            Err(error) if wanted == Wanted::Auto && is_absent(&error) => {
                let reason = format!("{error} ({})", error.source);
                log::debug!("no iommufd: {reason}");
                by_containers(sources, doors, reason)?
            }
            Err(error) => return Err(error),
        },
    };
    log::info!("{choice}");
    Ok(choice)
}

/// Whether an error says that the host lacks iommufd, or has none for the device or for this user. A file that could
/// be opened but for want of something else (descriptors, memory) is not absent.
fn is_absent(error: &HostError) -> bool {
    const ABSENT: [Errno; 6] =
        [Errno::NOENT, Errno::NOTDIR, Errno::NODEV, Errno::NXIO, Errno::ACCESS, Errno::PERM];
    let file = error.operation == OPEN_IOMMUFD || error.operation == OPEN_DEVICE;
    file && Errno::from_io_error(&error.source).is_some_and(|errno| ABSENT.contains(&errno))
}

/// What [`Opened::cannot_nest`] found, in one line; with the kernel's own word if it is not what the reason says anyway.
fn why_no_nesting(error: &HostError) -> String {
    match Errno::from_io_error(&error.source) {
        Some(Errno::OPNOTSUPP) => error.object.clone(),
        _ => format!("{} ({})", error.object, error.source),
    }
}

/// Devices that are bound to an iommufd; only then is known what the host has. Dropped in this order.
struct Opened {
    devices: Vec<Device>,
    ioas: Arc<Ioas>,
    has_memory: bool,
}

impl Opened {
    fn new(sources: &[SourceId], doors: &dyn Doors, beside: Option<&Bridge>) -> Result<Self, HostError> {
        let kernel = doors.iommufd()?;
        // All files before the first is bound: without one of them, none is bound in vain.
        let files = sources.iter().map(|source| Ok((*source, doors.device(*source)?)));
        let files = files.collect::<Result<Vec<_>, HostError>>()?;
        let shared = beside.and_then(Bridge::ioas);
        let has_memory = shared.is_some();
        let ioas = match shared {
            Some(ioas) => ioas,
            None => Arc::new(Ioas::new(&Objects::new(kernel))?),
        };
        let kernel = ioas.objects().kernel();
        let devices = files.into_iter().map(|(source, file)| Device::bind(kernel, source, file));
        let devices = devices.collect::<Result<_, _>>()?;
        Ok(Self { devices, ioas, has_memory })
    }

    /// The first device that cannot be nested, and why: what the kernel said, or `EOPNOTSUPP` where it was the
    /// registers that did.
    fn cannot_nest(&self) -> Option<HostError> {
        let host = NestedIommu::beside(self.ioas.clone());
        self.devices.iter().find_map(|device| {
            let findings = host.examine_bound(device);
            let offer = Offer::judge(&findings);
            let object = format!("{device}: {}", offer.why_not(Feature::Nesting)?);
            let errno = findings.nest_parent.err().unwrap_or(Errno::OPNOTSUPP);
            Some(refused(MAKE_NEST_PARENT, object, errno))
        })
    }

    fn nest(self) -> Result<Choice, HostError> {
        let host = NestedIommu::beside(self.ioas);
        let offers = self.devices.into_iter().map(|device| Ok((device.source(), host.add_bound(device)?)));
        let offers = offers.collect::<Result<Vec<_>, HostError>>()?;
        let without =
            offers.iter().find_map(|(source, offer)| Some((source, offer.why_not(Feature::Pasid)?)));
        let (way, reason) = match without {
            Some((source, reason)) => (Way::NestedWithoutPasid, format!("device {source}: {reason}")),
            None => (Way::Nested, "the host has all it takes".to_owned()),
        };
        let bridge = Bridge::Nested(Arc::new(host));
        Ok(Choice { bridge, has_memory: self.has_memory, way, reason, offers })
    }

    fn shadow(self, reason: String) -> Result<Choice, HostError> {
        let host = ShadowIommu::beside(self.ioas);
        let offers = self.devices.into_iter().map(|device| Ok((device.source(), host.add_bound(device)?)));
        let offers = offers.collect::<Result<_, HostError>>()?;
        let bridge = Bridge::Shadow(Arc::new(host));
        Ok(Choice { bridge, has_memory: self.has_memory, way: Way::Shadow, reason, offers })
    }
}

fn by_containers(sources: &[SourceId], doors: &dyn Doors, reason: String) -> Result<Choice, HostError> {
    let host = ContainerIommu::default();
    let offers =
        sources.iter().map(|source| Ok((*source, host.add_device(*source, doors.container(*source)?)?)));
    let offers = offers.collect::<Result<_, HostError>>()?;
    let bridge = Bridge::Container(Arc::new(host));
    Ok(Choice { bridge, has_memory: false, way: Way::Container, reason, offers })
}
