//! The machine of the fuzz targets: a unit with two assigned functions, whose host is `vfio-bridge` on its kernel that
//! lives in memory.
#![forbid(unsafe_code)]

use std::cell::OnceCell;
use std::rc::Rc;
use std::sync::Arc;

use iommu_core::testkit::RecordingMsi;
use iommu_core::{HostIommu, SourceId};
use iommu_vtd::testkit::Tables;
use iommu_vtd::{Capability, Profile, Unit, UnitConfig};
use vfio_bridge::NestedIommu;
use vfio_bridge::testkit::{FakeKernel, Hardware};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const BYTES: usize = 0x3_0000;
const RING: u64 = 0x1000;
const STATUS: u64 = 0x3000;
const PAGE_QUEUE: u64 = 0x4000;
const TABLES: std::ops::Range<u64> = 0x6000..0x3_0000;
const QIE: u32 = 1 << 26;
const TE: u32 = 1 << 31;
/// A wait descriptor that writes its status.
const WAIT: [u64; 2] = [2 << 32 | 0x25, STATUS];
/// One that drains page requests, too.
pub const DRAIN: [u64; 2] = [2 << 32 | 0xa5, STATUS];

/// PASIDs that have entries; 0 is requests without.
pub const PASIDS: u32 = 4;
/// Bytes of the largest thing that is changed at once: a PASID entry.
pub const CHUNK: u64 = 64;
/// Number of such chunks in the tables.
pub const CHUNKS: u64 = (TABLES.end - TABLES.start) / CHUNK;

/// What the function with a number is known by.
#[must_use]
pub fn source(device: usize) -> SourceId {
    SourceId::from_bdf(0, if device == 0 { 1 } else { 2 }, 0)
}

/// A unit in use with hosts behind it.
pub struct Hosted {
    /// The kernel of the host.
    pub kernel: FakeKernel,
    /// The bridge.
    pub host: Arc<NestedIommu>,
    /// The unit.
    pub unit: Unit<GuestMemoryMmap>,
    memory: GuestMemoryMmap,
    /// Tables that bind nothing, one thing, and another.
    images: Images,
    tail: u64,
    translates: bool,
}

impl Hosted {
    /// Power on, and what a driver does at boot. Nothing is bound.
    #[must_use]
    pub fn new() -> Self {
        let (memory, images, root) = MACHINE.with(|cell| cell.get_or_init(machine).clone());
        memory.write_slice(&[0; 0x6000], GuestAddress(0)).unwrap();
        memory.write_slice(&images[0], GuestAddress(TABLES.start)).unwrap();
        let kernel = FakeKernel::new();
        let host = Arc::new(NestedIommu::new(Arc::new(kernel.clone())).unwrap());
        for device in 0..2 {
            host.add_device(source(device), Box::new(kernel.add_device(0))).unwrap();
        }
        host.add_memory(&memory).unwrap();
        let (profile, _) = Profile::full(46).behind(&host.capabilities());
        let profile = Profile { interrupt_remapping: false, ..profile }.settled();
        let config = UnitConfig { capability: Capability::new(&profile).unwrap(), source: SourceId(0) };
        let unit = Unit::new(&config, memory.clone(), Arc::new(RecordingMsi::default()));
        for device in 0..2 {
            unit.attach_host(source(device), host.clone(), |_| ()).unwrap();
        }
        let mut hosted = Self { kernel, host, unit, memory, images, tail: 0, translates: true };
        hosted.write64(0x90, RING | 1 << 11);
        hosted.write64(0x20, root);
        hosted.write64(0xd0, PAGE_QUEUE);
        hosted.write32(0x18, QIE);
        hosted.write32(0x18, QIE | 1 << 30);
        hosted.translate(true);
        hosted
    }

    fn write32(&self, offset: u64, value: u32) {
        self.unit.mmio_write(offset, &value.to_le_bytes());
    }

    fn write64(&self, offset: u64, value: u64) {
        self.unit.mmio_write(offset, &value.to_le_bytes());
    }

    fn read64(&self, offset: u64) -> u64 {
        let mut data = [0; 8];
        self.unit.mmio_read(offset, &mut data);
        u64::from_le_bytes(data)
    }

    /// Switches translation on or off.
    pub fn translate(&mut self, on: bool) {
        self.translates = on;
        self.write32(0x18, if on { QIE | TE } else { QIE });
    }

    /// Changes a chunk of the tables into that of an image.
    pub fn paint(&self, image: usize, chunk: u64) {
        let at = (chunk % CHUNKS) * CHUNK;
        let from = usize::try_from(at).unwrap();
        let bytes = &self.images[image % 3][from..from + CHUNK as usize];
        self.memory.write_slice(bytes, GuestAddress(TABLES.start + at)).unwrap();
    }

    /// All of the tables.
    pub fn paint_all(&self, image: usize) {
        self.memory.write_slice(&self.images[image % 3], GuestAddress(TABLES.start)).unwrap();
    }

    /// Writes any word of the tables.
    pub fn poke(&self, at: u64, word: u64) {
        let at = TABLES.start + at % (TABLES.end - TABLES.start) & !7;
        self.memory.write_obj(word, GuestAddress(at)).unwrap();
    }

    /// Submits a descriptor and a wait. What the unit refuses is replaced by waits, as a driver would.
    pub fn submit(&mut self, descriptor: [u64; 2]) {
        for descriptor in [descriptor, WAIT] {
            self.put(self.tail, descriptor);
            self.tail = (self.tail + 32) % 4096;
        }
        self.write64(0x88, self.tail);
        let mut status = [0; 4];
        self.unit.mmio_read(0x34, &mut status);
        if status[0] & 0x70 != 0 {
            (0..128).for_each(|slot| self.put(32 * slot, WAIT));
            self.write32(0x34, 0x70);
            self.write64(0x88, self.tail);
        }
    }

    fn put(&self, at: u64, descriptor: [u64; 2]) {
        for (offset, word) in [0, 8, 16, 24].into_iter().zip([descriptor[0], descriptor[1], 0, 0]) {
            self.memory.write_obj(word, GuestAddress(RING + (at + offset) % 4096)).unwrap();
        }
    }

    /// Answers the first page request of the queue, if it wants one; `code` is the descriptor's response code.
    pub fn answer(&mut self, code: u64) {
        let (head, tail) = (self.read64(0xc0) & 0xfe0, self.read64(0xc8) & 0xfe0);
        if head != tail {
            let word = |at| self.memory.read_obj::<u64>(GuestAddress(PAGE_QUEUE + head + at)).unwrap();
            let (low, high) = (word(0), word(8));
            if high & 4 != 0 {
                let names = low & 0x000f_ffff_ffff_0000 | (low >> 8 & 1) << 4;
                self.submit([names | (code & 0xf) << 12 | 9, high & 0xff8]);
            }
            self.write64(0xc0, (head + 32) % 4096);
        }
        // Overflow ends when there is room.
        self.write32(0xdc, 3);
    }

    /// Resets a function, as its owner does.
    pub fn reset(&self, device: usize) {
        self.unit.hold_host(source(device));
        let _ = self.host.device_was_reset(source(device), &self.unit);
        self.unit.release_host(source(device));
    }

    /// The guest takes everything back, on a host that refuses nothing: then both functions are blocked. And when the
    /// machine ends, nothing is left, and every group of page requests was answered once.
    pub fn finish(mut self) {
        self.kernel.heal();
        self.translate(true);
        self.paint_all(0);
        self.submit([0x11, 0]);
        self.submit([0x37, 0]);
        for device in 0..2 {
            for pasid in 0..PASIDS {
                let hardware = self.kernel.hardware(device, Some(pasid).filter(|pasid| *pasid != 0));
                assert_eq!(hardware, Hardware::Blocked, "device {device}, PASID {pasid}");
            }
        }
        let Self { kernel, host, unit, .. } = self;
        drop(unit);
        assert_eq!(Arc::strong_count(&host), 1, "the unit lets go of its host");
        drop(host);
        let audit = kernel.audit();
        assert!(audit.objects.is_empty(), "objects left: {:?}", audit.objects);
        for (number, answers) in audit.groups.iter().enumerate() {
            assert_eq!(answers.len(), 1, "answers of group {number}: {answers:?}");
        }
    }
}

impl Default for Hosted {
    fn default() -> Self {
        Self::new()
    }
}

/// Tables with nothing, with a table for each PASID, and with others or none.
type Images = Rc<[Vec<u8>; 3]>;

thread_local! {
    /// Made once: memory, what its tables can be, and the value of the root table's register.
    static MACHINE: OnceCell<(GuestMemoryMmap, Images, u64)> = const { OnceCell::new() };
}

fn machine() -> (GuestMemoryMmap, Images, u64) {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), BYTES)]).unwrap();
    let look = || {
        let mut bytes = vec![0; usize::try_from(TABLES.end - TABLES.start).unwrap()];
        memory.read_slice(&mut bytes, GuestAddress(TABLES.start)).unwrap();
        bytes
    };
    let tables = Tables::new(&memory, TABLES);
    let all = || (0..2).flat_map(|device| (0..PASIDS).map(move |pasid| (device, pasid)));
    let of = |device, pasid| tables.context(source(device)).pasid(pasid);
    all().for_each(|(device, pasid)| drop(of(device, pasid).first_stage(7)));
    let one = look();
    for (device, pasid) in all() {
        if (device, pasid) == (0, 0) {
            of(device, pasid).pass_through(3);
        } else {
            drop(of(device, pasid).first_stage(if pasid == 1 { 7 } else { 8 }));
        }
    }
    let other = look();
    for (device, pasid) in all() {
        of(device, pasid).clear();
    }
    let images = Rc::new([look(), one, other]);
    let root = tables.root_register().raw_value();
    drop(tables);
    (memory, images, root)
}
