//! An iommufd and VFIO devices that live in memory.
//!
//! They keep the documented rules of objects (who may refer to whom, `EBUSY`, kinds, flags), answer with the errno
//! that Linux answers with, complete invalidations in part, give page request groups cookies and answer those of
//! a detached table themselves. What the *hardware* does is modelled apart from what the kernel has in its books,
//! because on VT-d a refused attachment makes the two differ.
//!
//! Any call can be made to fail ([`FakeKernel::fail`]), and everything can be looked at ([`Audit`]).

mod calls;
mod container;
mod device;
mod faults;
mod function;
mod iommufd;
pub mod rules;
mod shares;
mod space;
mod yes;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use iommu_core::Permissions;
use iommu_core::sync::{Mutex, MutexGuard};
use rustix::fd::OwnedFd;
use rustix::io::Errno;

use crate::kernel::{HwInfo, VendorInfo, capability};
use crate::sys::uapi::{FaultRecord, VtdS1};

use shares::Share;
use space::Space;

pub use calls::Call;
pub use container::{CONTAINER_LIMIT, FakeContainer};
pub use device::{FakeDevice, config_space};
pub use function::{Did, FakeFunction, Model, place};
pub use yes::{YesDevice, YesKernel};

/// Which calls are to fail.
#[derive(Clone, Copy, Debug)]
pub struct Failure {
    /// Calls of this kind only, if given.
    pub call: Option<Call>,
    /// How many of them succeed before.
    pub after: usize,
    /// How many then fail.
    pub times: usize,
    /// With what.
    pub errno: Errno,
    /// What a refused attachment does to the hardware.
    pub damage: Damage,
    /// Entries of an array that are done before its call fails.
    pub partial: usize,
}

impl Failure {
    /// The call after `after` fails with `EIO`, whatever it is.
    #[must_use]
    pub fn nth(after: usize) -> Self {
        Self { call: None, after, times: 1, errno: Errno::IO, damage: Damage::Torn, partial: 0 }
    }

    /// The next call of a kind fails.
    #[must_use]
    pub fn next(call: Call, errno: Errno) -> Self {
        Self { call: Some(call), errno, ..Self::nth(0) }
    }

    /// All calls of a kind fail.
    #[must_use]
    pub fn always(call: Call, errno: Errno) -> Self {
        Self { times: usize::MAX, ..Self::next(call, errno) }
    }
}

/// What a refused attachment does to the hardware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// The old table stays in use.
    None,
    /// Nothing is in use. The kernel's books still name the old one.
    Torn,
    /// The new one is in use. No kernel is known to do so; it is the worst that one could.
    Done,
}

/// How a page request group was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// By a write, with this code.
    Written(u32),
    /// By the kernel, as invalid.
    Kernel,
}

/// Counts and states to assert on.
#[derive(Clone, Debug, Default)]
pub struct Audit {
    /// Objects by kind, devices left out.
    pub objects: BTreeMap<&'static str, usize>,
    /// Calls made so far.
    pub calls: HashMap<Call, usize>,
    /// Responses with a cookie that nobody waits for.
    pub stale_responses: usize,
    /// Answers of all groups ever made, in order.
    pub groups: Vec<Vec<Answer>>,
    /// Objects that were to be destroyed while something referred to them.
    pub busy: usize,
    /// Calls that were made to fail.
    pub failed: usize,
    /// References to fault queues that hosts of the kind modelled lose, for good.
    pub lost_fault_references: usize,
}

#[derive(Debug)]
enum Object {
    Ioas(Space),
    /// A page table fed by an address space; `nest`: may be a parent.
    Paging {
        ioas: u32,
        pasid: bool,
        nest: bool,
        faults: Option<u32>,
    },
    Nested {
        parent: u32,
        table: VtdS1,
        pasid: bool,
        faults: Option<u32>,
    },
    FaultQueue(Queue),
    Device(usize),
}

impl Object {
    fn kind(&self) -> &'static str {
        match self {
            Self::Ioas(_) => "IOAS",
            Self::Paging { nest: true, .. } => "nest parent",
            Self::Paging { nest: false, .. } => "paging",
            Self::Nested { .. } => "nested",
            Self::FaultQueue(_) => "fault queue",
            Self::Device(_) => "device",
        }
    }

    /// The fault queue of a page table.
    fn faults(&self) -> Option<u32> {
        match self {
            Self::Paging { faults, .. } | Self::Nested { faults, .. } => *faults,
            Self::Ioas(_) | Self::FaultQueue(_) | Self::Device(_) => None,
        }
    }
}

#[derive(Debug)]
struct Queue {
    open: bool,
    unread: VecDeque<Group>,
    read: BTreeMap<u32, Group>,
    /// Cookies count from here.
    lowest: u32,
    /// Set while something is unread.
    event: OwnedFd,
}

#[derive(Debug, Clone)]
struct Group {
    number: usize,
    device: usize,
    pasid: Option<u32>,
    records: Vec<FaultRecord>,
}

/// One assigned device as the kernel and the hardware have it.
#[derive(Debug)]
struct DeviceState {
    info: HwInfo,
    config: Vec<u8>,
    /// Number of the IOMMU that it is behind; page tables made for another cannot be used.
    unit: u32,
    id: Option<u32>,
    open: bool,
    /// The kernel's books: PASID (or none) to page table.
    books: BTreeMap<Option<u32>, u32>,
    /// What the hardware uses.
    hardware: BTreeMap<Option<u32>, u32>,
    /// Cached translations: PASID and page number.
    cached: Vec<(Option<u32>, u64)>,
}

struct World {
    objects: BTreeMap<u32, Object>,
    devices: Vec<DeviceState>,
    /// `None`: closed.
    containers: Vec<Option<Space>>,
    next_id: u32,
    failures: Vec<Failure>,
    /// Units on which page tables were made, by page table.
    units: HashMap<u32, u32>,
    supports_pasid: bool,
    supports_nesting: bool,
    supports_copy: bool,
    supports_unmap_all: bool,
    /// Ranges of devices' memory that were made known to others, open or not.
    shares: Vec<Share>,
    audit: Audit,
}

impl World {
    /// Counts a call; an error if it is to fail, together with how.
    fn enter(&mut self, call: Call) -> Result<(), Failure> {
        *self.audit.calls.entry(call).or_default() += 1;
        let hit = |failure: &Failure| failure.call.is_none_or(|wanted| wanted == call);
        let mut failed = None;
        for failure in self.failures.iter_mut().filter(|failure| hit(failure)) {
            if failure.after > 0 {
                failure.after -= 1;
            } else if failure.times > 0 {
                failure.times = failure.times.saturating_sub(usize::from(failure.times != usize::MAX));
                failed = Some(*failure);
            }
        }
        self.audit.failed += usize::from(failed.is_some());
        failed.map_or(Ok(()), Err)
    }

    fn insert(&mut self, object: Object) -> u32 {
        let id = self.next_id;
        self.next_id += 1;
        self.objects.insert(id, object);
        id
    }

    fn queue(&mut self, id: u32) -> Option<&mut Queue> {
        match self.objects.get_mut(&id) {
            Some(Object::FaultQueue(queue)) => Some(queue),
            _ => None,
        }
    }

    /// Where the kernel's own tables lead a device's requests without PASID.
    fn space_of(&self, device: usize) -> Option<&Space> {
        let attached = *self.devices.get(device)?.hardware.get(&None)?;
        let ioas = match self.objects.get(&attached)? {
            Object::Paging { ioas, .. } => *ioas,
            _ => attached,
        };
        match self.objects.get(&ioas)? {
            Object::Ioas(space) => Some(space),
            _ => None,
        }
    }

    fn table_of(&self, device: usize, pasid: Option<u32>) -> Option<VtdS1> {
        let id = self.devices.get(device)?.hardware.get(&pasid)?;
        match self.objects.get(id)? {
            Object::Nested { table, .. } => Some(*table),
            _ => None,
        }
    }
}

/// The kernel. Clones are the same one.
#[derive(Clone)]
pub struct FakeKernel(Arc<Mutex<World>>);

/// What the hardware does with requests of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hardware {
    /// Refuses them.
    Blocked,
    /// Leads them to guest memory.
    Parent,
    /// Walks a guest's table.
    Table(VtdS1),
}

impl Default for FakeKernel {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeKernel {
    /// A kernel that can do everything, with no devices.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(World {
            objects: BTreeMap::new(),
            devices: Vec::new(),
            containers: Vec::new(),
            next_id: 1,
            failures: Vec::new(),
            units: HashMap::new(),
            supports_pasid: true,
            supports_nesting: true,
            supports_copy: true,
            supports_unmap_all: true,
            shares: Vec::new(),
            audit: Audit::default(),
        })))
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock()
    }

    /// A kernel before 6.15: no PASID flag.
    pub fn without_pasid(&self) {
        self.world().supports_pasid = false;
    }

    /// A kernel or an IOMMU that cannot nest.
    pub fn without_nesting(&self) {
        self.world().supports_nesting = false;
    }

    /// A kernel that copies no mappings.
    pub fn without_copy(&self) {
        self.world().supports_copy = false;
    }

    /// A kernel before 5.12: a container is not emptied at once.
    pub fn without_unmap_all(&self) {
        self.world().supports_unmap_all = false;
    }

    /// Makes calls fail.
    pub fn fail(&self, failure: Failure) {
        self.world().failures.push(failure);
    }

    /// No call fails any more. Returns whether some were still to.
    pub fn heal(&self) -> bool {
        self.world().failures.drain(..).any(|failure| failure.times > 0)
    }

    /// Everything countable.
    #[must_use]
    pub fn audit(&self) -> Audit {
        let world = self.world();
        let mut audit = world.audit.clone();
        for object in world.objects.values().filter(|o| !matches!(o, Object::Device(_))) {
            *audit.objects.entry(object.kind()).or_default() += 1;
        }
        audit
    }

    /// How often a call was made.
    #[must_use]
    pub fn count(&self, call: Call) -> usize {
        self.world().audit.calls.get(&call).copied().unwrap_or(0)
    }

    /// What the hardware does with a device's requests.
    #[must_use]
    pub fn hardware(&self, device: usize, pasid: Option<u32>) -> Hardware {
        let world = self.world();
        let attached = world.devices.get(device).is_some_and(|d| d.hardware.contains_key(&pasid));
        match world.table_of(device, pasid) {
            Some(table) => Hardware::Table(table),
            None if attached => Hardware::Parent,
            None => Hardware::Blocked,
        }
    }

    /// Where an address of a device's requests without PASID leads in this process, by the tables of the kernel's own.
    /// `None`: it is refused.
    #[must_use]
    pub fn lookup(&self, device: usize, address: u64) -> Option<(u64, Permissions)> {
        self.world().space_of(device)?.lookup_memory(address)
    }

    /// The device translates an address through a guest's table, and keeps it. `false` if there is no such table.
    pub fn touch(&self, device: usize, pasid: Option<u32>, address: u64) -> bool {
        let mut world = self.world();
        let nested = world.table_of(device, pasid).is_some();
        if nested {
            world.devices[device].cached.push((pasid, address >> 12));
        }
        nested
    }

    /// Whether the device still has the translation of an address.
    #[must_use]
    pub fn has_cached(&self, device: usize, pasid: Option<u32>, address: u64) -> bool {
        let world = self.world();
        world.devices.get(device).is_some_and(|d| d.cached.contains(&(pasid, address >> 12)))
    }

    /// Adds a device behind IOMMU `unit`, with all that VT-d has. Devices are numbered from 0 in order.
    #[must_use]
    pub fn add_device(&self, unit: u32) -> FakeDevice {
        self.add_device_with(unit, FULL_INFO, config_space(true, true))
    }

    /// Adds a device.
    #[must_use]
    pub fn add_device_with(&self, unit: u32, info: HwInfo, config: Vec<u8>) -> FakeDevice {
        let mut world = self.world();
        world.devices.push(DeviceState {
            info,
            config,
            unit,
            id: None,
            open: true,
            books: BTreeMap::new(),
            hardware: BTreeMap::new(),
            cached: Vec::new(),
        });
        FakeDevice::new(self.clone(), world.devices.len() - 1)
    }
}

/// A unit with everything that nested translation can use, and a device with 20-bit PASIDs.
pub const FULL_INFO: HwInfo = HwInfo {
    vendor: VendorInfo::Vtd {
        flags: 1,
        // FS5LP, FS1GP.
        cap: 1 << 60 | 1 << 56,
        // SMPWCS, FSTS, SSTS, SSADS, SMTS, PDS, PASID, PSS = 19, EAFS, NWFS, SRS, PRS, NEST, DT.
        ecap: 1 << 48
            | 1 << 47
            | 1 << 46
            | 1 << 45
            | 1 << 43
            | 1 << 42
            | 1 << 40
            | 19 << 35
            | 1 << 34
            | 1 << 33
            | 1 << 31
            | 1 << 29
            | 1 << 26
            | 1 << 2,
    },
    max_pasid_log2: 20,
    capabilities: capability::DIRTY_TRACKING | capability::PASID_EXEC | capability::PASID_PRIV,
};
