//! A function of a device that lives in memory, and everything that it is connected to.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::Weak;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use devices::pci::PciFunction as _;
use iommu_core::sync::Mutex;
use iommu_core::testkit::RecordingMsi;
use iommu_core::{
    Capabilities, Domain, DomainId, HostError, HostIommu as _, InterruptRemapper, Msi, MsiSink,
    RouteListener, SourceId,
};
use vfio_bridge::NestedIommu;
use vfio_bridge::caps::Offer;
use vfio_bridge::choice::Bridge;
use vfio_bridge::function::{
    AssignedFunction, Connections, HostSide, InterruptShortcuts, MemorySlots, Shortcut, Shown,
};
use vfio_bridge::memory::{DeviceMemory, SharedMemory};
use vfio_bridge::testkit::{Did, FakeFunction, FakeKernel, Model};
use vmm_sys_util::eventfd::EventFd;

pub(crate) const SOURCE: SourceId = SourceId::from_bdf(0, 1, 0);
/// Another device, number 0 of the kernel's.
pub(crate) const PEER: SourceId = SourceId::from_bdf(0, 2, 0);

/// The window of the machine.
pub(crate) const WINDOW: std::ops::Range<u64> = 0xc000_0000..0xe000_0000;

/// Where memory is shown.
#[derive(Default)]
pub(crate) struct Slots {
    shown: Arc<Mutex<BTreeMap<u64, u64>>>,
}

impl Slots {
    /// (start, length) of each.
    pub(crate) fn shown(&self) -> Vec<(u64, u64)> {
        self.shown.lock().iter().map(|(start, len)| (*start, *len)).collect()
    }
}

struct Slot(u64, Arc<Mutex<BTreeMap<u64, u64>>>, Arc<DeviceMemory>);

impl Drop for Slot {
    fn drop(&mut self) {
        assert_eq!(self.1.lock().remove(&self.0), Some(self.2.len_bytes()));
    }
}

impl MemorySlots for Slots {
    fn show(&self, start: u64, memory: &Arc<DeviceMemory>) -> io::Result<Shown> {
        let end = start.checked_add(memory.len_bytes()).ok_or(io::ErrorKind::InvalidInput)?;
        assert!(start.is_multiple_of(4096) && memory.len_bytes().is_multiple_of(4096));
        let mut shown = self.shown.lock();
        let free = shown.iter().all(|(other, len)| end <= *other || other + len <= start);
        if start < WINDOW.start || end > WINDOW.end || !free {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        shown.insert(start, memory.len_bytes());
        Ok(Box::new(Slot(start, self.shown.clone(), memory.clone())))
    }
}

/// Each event, and what its signals are delivered as.
type Led = Vec<(EventFd, Option<Msi>)>;

/// Ways past the process: what each delivers. A signal is taken as KVM takes it.
#[derive(Default)]
pub(crate) struct Ways {
    ways: Arc<Mutex<Led>>,
    /// There are none.
    pub(crate) none: AtomicBool,
}

impl Ways {
    /// Delivers what was signalled: data of the messages.
    pub(crate) fn delivered(&self) -> Vec<u32> {
        let ways = self.ways.lock();
        let led = ways.iter().filter_map(|(event, msi)| Some((event, (*msi)?)));
        led.filter(|(event, _)| event.read().is_ok()).map(|(_, msi)| msi.data).collect()
    }

    /// How many lead somewhere.
    pub(crate) fn open(&self) -> usize {
        self.ways.lock().iter().filter(|(_, msi)| msi.is_some()).count()
    }
}

struct Way(usize, Arc<Mutex<Led>>);

impl InterruptShortcuts for Ways {
    fn shortcut(&self, event: &EventFd) -> io::Result<Box<dyn Shortcut>> {
        if self.none.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let mut ways = self.ways.lock();
        ways.push((event.try_clone()?, None));
        Ok(Box::new(Way(ways.len() - 1, self.ways.clone())))
    }
}

impl Shortcut for Way {
    fn lead(&self, msi: Option<Msi>) -> io::Result<()> {
        self.1.lock()[self.0].1 = msi;
        Ok(())
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.1.lock()[self.0].1 = None;
    }
}

/// Adds 0x100 to the data of every message, or blocks all.
#[derive(Default)]
pub(crate) struct Remapper {
    pub(crate) blocks: AtomicBool,
    pub(crate) faults: AtomicUsize,
    listener: Mutex<Option<Weak<dyn RouteListener>>>,
}

impl Remapper {
    pub(crate) fn block(&self, blocks: bool) {
        self.blocks.store(blocks, Ordering::Relaxed);
        let listener = self.listener.lock().as_ref().and_then(Weak::upgrade);
        listener.expect("the function listens").routes_changed();
    }
}

impl InterruptRemapper for Remapper {
    fn deliver(&self, source: SourceId, msi: Msi, sink: &dyn MsiSink) {
        match self.resolve(source, msi) {
            Some(msi) => sink.send(source, msi),
            None => _ = self.faults.fetch_add(1, Ordering::Relaxed),
        }
    }

    fn resolve(&self, source: SourceId, msi: Msi) -> Option<Msi> {
        assert_eq!(source, SOURCE);
        let blocks = self.blocks.load(Ordering::Relaxed);
        (!blocks).then_some(Msi { data: msi.data + 0x100, ..msi })
    }

    fn add_listener(&self, listener: Weak<dyn RouteListener>) {
        *self.listener.lock() = Some(listener);
    }
}

/// The IOMMU's side: how often the device was reset, and another device of the guest's.
pub(crate) struct Side {
    pub(crate) resets: AtomicUsize,
    bridge: Bridge,
}

impl Side {
    /// The other device reaches all that the guest has.
    fn new(kernel: &FakeKernel) -> Self {
        let host = NestedIommu::new(Arc::new(kernel.clone())).expect("a host");
        host.add_device(PEER, Box::new(kernel.add_device(0))).expect("a device");
        let all = Domain::PassThrough { id: DomainId(0) };
        host.set_domain(PEER, None, &all).expect("a domain");
        Self { resets: AtomicUsize::new(0), bridge: Bridge::Nested(Arc::new(host)) }
    }
}

impl HostSide for Side {
    fn around_reset(&self, source: SourceId, reset: &mut dyn FnMut()) {
        assert_eq!(source, SOURCE);
        self.resets.fetch_add(1, Ordering::Relaxed);
        reset();
    }

    fn share(&self, guest_address: u64, memory: &SharedMemory) -> Result<Shown, HostError> {
        self.bridge.share(guest_address, memory)
    }
}

/// All that a host may offer.
pub(crate) fn offer() -> Offer {
    Offer {
        capabilities: Capabilities {
            pasid_bits: 20,
            device_tlb: true,
            page_requests: true,
            ..Capabilities::NONE
        },
        extended_accessed: false,
        write_protect: false,
        execute: false,
        privileged: true,
        missing: Vec::new(),
    }
}

/// An interrupt line: whether it is asserted, and how often that changed.
#[derive(Default)]
pub(crate) struct Line {
    pub(crate) asserted: AtomicBool,
    pub(crate) edges: AtomicUsize,
}

impl devices::irq::IrqLine for Line {
    fn set(&self, asserted: bool) {
        let before = self.asserted.swap(asserted, Ordering::Relaxed);
        self.edges.fetch_add(usize::from(before != asserted), Ordering::Relaxed);
    }
}

pub(crate) struct Rig {
    /// `None`: the machine has none for the device.
    pub(crate) line: Option<Arc<Line>>,
    pub(crate) kernel: FakeKernel,
    pub(crate) device: FakeFunction,
    pub(crate) slots: Arc<Slots>,
    pub(crate) ways: Arc<Ways>,
    pub(crate) sink: Arc<RecordingMsi>,
    pub(crate) remapper: Arc<Remapper>,
    pub(crate) side: Arc<Side>,
}

impl Rig {
    pub(crate) fn with(model: Model) -> Self {
        let kernel = FakeKernel::new();
        Self {
            line: None,
            device: FakeFunction::new(&kernel, model),
            side: Arc::new(Side::new(&kernel)),
            kernel,
            slots: Arc::default(),
            ways: Arc::default(),
            sink: Arc::default(),
            remapper: Arc::default(),
        }
    }

    pub(crate) fn build(&self, offer: &Offer) -> Result<Arc<AssignedFunction>, HostError> {
        let sink = iommu_core::RemappedMsi::new(self.remapper.clone(), self.sink.clone());
        let connections = Connections {
            source: SOURCE,
            file: Arc::new(self.device.clone()),
            slots: self.slots.clone(),
            interrupts: Arc::new(sink),
            remapper: Some(self.remapper.clone()),
            shortcuts: self.ways.clone(),
            line: self.line.clone().map(|line| line as Arc<dyn devices::irq::IrqLine>),
            host: self.side.clone(),
        };
        AssignedFunction::new(offer, connections)
    }

    /// An endpoint with all there is; what was done to make it is forgotten.
    pub(crate) fn endpoint() -> (Self, Arc<AssignedFunction>) {
        Self::of(Model::endpoint())
    }

    pub(crate) fn of(model: Model) -> (Self, Arc<AssignedFunction>) {
        let rig = Self::with(model);
        let function = rig.build(&offer()).expect("a function");
        assert_eq!(rig.device.did().first(), Some(&Did::Command(OFF)));
        (rig, function)
    }

    /// Messages that took the long way: their data.
    pub(crate) fn sent(&self) -> Vec<u32> {
        self.sink.sent.lock().drain(..).map(|(_, msi)| msi.data).collect()
    }
}

/// Command register of a device that is off: INTx disabled, and nothing else.
pub(crate) const OFF: u16 = 1 << 10;
pub(crate) const MEMORY: u16 = 1 << 1;
pub(crate) const MASTER: u16 = 1 << 2;

pub(crate) fn read32(function: &AssignedFunction, offset: u16) -> u32 {
    let mut data = [0; 4];
    function.config_read(offset, &mut data);
    u32::from_le_bytes(data)
}

pub(crate) fn read16(function: &AssignedFunction, offset: u16) -> u16 {
    let mut data = [0; 2];
    function.config_read(offset, &mut data);
    u16::from_le_bytes(data)
}

pub(crate) fn write32(function: &AssignedFunction, offset: u16, value: u32) {
    function.config_write(offset, &value.to_le_bytes());
}

pub(crate) fn write16(function: &AssignedFunction, offset: u16, value: u16) {
    function.config_write(offset, &value.to_le_bytes());
}
