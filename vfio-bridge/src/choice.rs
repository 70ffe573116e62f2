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
use crate::kernel::{ContainerFile, DeviceFile, Kernel};
use crate::object::{MAKE_NEST_PARENT, OPEN_DEVICE, OPEN_IOMMUFD, refused};
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

/// How the host's files are opened. Each is called once at most, and a device's second one only after its first failed
/// or was not called.
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

    /// Lets devices at guest memory.
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
    /// The host's side, with all devices and no memory yet.
    pub bridge: Bridge,
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
/// Their bus mastering has to be off. `mappings` reads the guest's tables, should that be needed.
///
/// Without iommufd, or without a character device of a device, containers are tried. A device that is there and
/// cannot be had is an error: it could not be had in another way either.
///
/// # Errors
/// There is no way, or not the one wanted. If several were tried, the error is that of the last, and those before it
/// are logged.
pub fn choose(
    wanted: Wanted,
    sources: &[SourceId],
    doors: &dyn Doors,
    mappings: &Arc<dyn GuestMappings>,
) -> Result<Choice, HostError> {
    const ASKED: &str = "as asked for";
    let choice = match wanted {
        Wanted::Container => by_containers(sources, doors, mappings, ASKED.to_owned())?,
        Wanted::Auto | Wanted::Nested | Wanted::Shadow => match open(sources, doors) {
            Ok((kernel, devices)) if wanted == Wanted::Shadow => {
                by_shadow(kernel, devices, mappings, ASKED.to_owned())?
            }
            Ok((kernel, devices)) => match nest(&kernel, devices)? {
                Nesting::Possible(choice) => choice,
                Nesting::Impossible(_, error) if wanted == Wanted::Nested => return Err(error),
                Nesting::Impossible(devices, error) => by_shadow(kernel, devices, mappings, error.object)?,
            },
            Err(error) if wanted == Wanted::Auto && is_absent(&error) => {
                let reason = format!("{error} ({})", error.source);
                log::debug!("no iommufd: {reason}");
                by_containers(sources, doors, mappings, reason)?
            }
            Err(error) => return Err(error),
        },
    };
    log::info!("{choice}");
    Ok(choice)
}

/// Whether an error says that the host lacks iommufd, or has none for the device.
fn is_absent(error: &HostError) -> bool {
    error.operation == OPEN_IOMMUFD || error.operation == OPEN_DEVICE
}

/// Opens everything and binds it; only then is known what the host has.
fn open(sources: &[SourceId], doors: &dyn Doors) -> Result<(Arc<dyn Kernel>, Vec<Device>), HostError> {
    let kernel = doors.iommufd()?;
    // All files before the first is bound: without one of them, none is bound in vain.
    let files = sources.iter().map(|source| Ok((*source, doors.device(*source)?)));
    let files = files.collect::<Result<Vec<_>, HostError>>()?;
    let devices = files.into_iter().map(|(source, file)| Device::bind(&*kernel, source, file));
    let devices = devices.collect::<Result<_, _>>()?;
    Ok((kernel, devices))
}

/// Whether all devices can be nested.
enum Nesting {
    Possible(Choice),
    /// The devices, and which cannot and why.
    Impossible(Vec<Device>, HostError),
}

fn nest(kernel: &Arc<dyn Kernel>, devices: Vec<Device>) -> Result<Nesting, HostError> {
    let host = NestedIommu::new(kernel.clone())?;
    for device in &devices {
        if let Some(reason) = host.examine_bound(device).why_not(Feature::Nesting) {
            let object = format!("{device}: {reason}");
            return Ok(Nesting::Impossible(devices, refused(MAKE_NEST_PARENT, object, Errno::OPNOTSUPP)));
        }
    }
    let mut offers = Vec::new();
    for device in devices {
        offers.push((device.source(), host.add_bound(device)?));
    }
    let without = offers.iter().find_map(|(source, offer)| Some((source, offer.why_not(Feature::Pasid)?)));
    let (way, reason) = match without {
        Some((source, reason)) => (Way::NestedWithoutPasid, format!("device {source}: {reason}")),
        None => (Way::Nested, "the host has all it takes".to_owned()),
    };
    Ok(Nesting::Possible(Choice { bridge: Bridge::Nested(Arc::new(host)), way, reason, offers }))
}

fn by_shadow(
    kernel: Arc<dyn Kernel>,
    devices: Vec<Device>,
    mappings: &Arc<dyn GuestMappings>,
    reason: String,
) -> Result<Choice, HostError> {
    let host = ShadowIommu::new(kernel, mappings.clone())?;
    let mut offers = Vec::new();
    for device in devices {
        offers.push((device.source(), host.add_bound(device)?));
    }
    Ok(Choice { bridge: Bridge::Shadow(Arc::new(host)), way: Way::Shadow, reason, offers })
}

fn by_containers(
    sources: &[SourceId],
    doors: &dyn Doors,
    mappings: &Arc<dyn GuestMappings>,
    reason: String,
) -> Result<Choice, HostError> {
    let host = ContainerIommu::new(mappings.clone());
    let mut offers = Vec::new();
    for source in sources {
        offers.push((*source, host.add_device(*source, doors.container(*source)?)?));
    }
    Ok(Choice { bridge: Bridge::Container(Arc::new(host)), way: Way::Container, reason, offers })
}
