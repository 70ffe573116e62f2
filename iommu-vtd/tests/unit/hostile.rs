//! Anything a guest may write, anywhere: no panic, and every call comes back.
//!
//! Each case starts from a unit in use, with tables and rings in a small memory, so that random steps get past
//! the first check now and then: descriptors that are nearly good, tables with a few bits flipped.

use std::sync::Arc;

use iommu_core::testkit::{RecordingEndpoint, RecordingMsi};
use iommu_core::{
    Access, AddressType, Endpoint, GroupIndex, Iova, PageRequest, Pasid, Request, SourceId, Translator,
    VendorData,
};
use iommu_vtd::testkit::{PageSize, Tables, flags};
use iommu_vtd::{Capability, Profile, Unit, UnitConfig};
use proptest::collection::vec;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const SOURCE: SourceId = SourceId(0);
/// One page each for descriptors (128 of them), page requests, and wait statuses.
const RING: u64 = 0x1000;
const PAGE_QUEUE: u64 = 0x2000;
const STATUS: u64 = 0x3000;
const TABLES: std::ops::Range<u64> = 0x4000..0x1_0000;
const VIRTUAL: u64 = 0x7f00_0000_5000;

#[derive(Clone, Debug)]
enum Step {
    Write {
        offset: u64,
        data: Vec<u8>,
    },
    Read {
        offset: u64,
        bytes: usize,
    },
    Poke {
        gpa: u64,
        word: u64,
    },
    /// Changes one bit of a table.
    Flip {
        word: u64,
        bit: u32,
    },
    /// Puts a descriptor at the tail and moves the tail.
    Submit {
        words: [u64; 2],
        flip: Option<u32>,
    },
    /// Clears the queue's error.
    Repair,
    Request(Request),
    PageRequest(PageRequest),
}

/// Words that get past the first checks: small numbers, pages of the memory with flags, and anything.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        0_u64..0x200,
        (0_u64..16, 0_u64..0x1000).prop_map(|(page, low)| page << 12 | low),
        (0_u64..16, 0_u64..8).prop_map(|(page, low)| page << 12 | low),
        any::<u64>(),
    ]
}

fn register_offset() -> impl Strategy<Value = u64> {
    let known = vec![
        0x18_u64, 0x20, 0x28, 0x34, 0x38, 0x80, 0x88, 0x90, 0x9c, 0xa0, 0xc0, 0xc8, 0xd0, 0xdc, 0xe0, 0xf0,
        0xf8, 0x22c,
    ];
    prop_oneof![3 => prop::sample::select(known), 1 => 0_u64..0x1010, 1 => any::<u64>()]
}

fn write() -> impl Strategy<Value = Step> {
    let commands = prop_oneof![
        Just(1_u32 << 26),
        Just(1 << 31 | 1 << 30 | 1 << 26),
        Just(1 << 31 | 1 << 26),
        any::<u32>()
    ];
    prop_oneof![
        (register_offset(), word(), 0_usize..=8).prop_map(|(offset, word, bytes)| Step::Write {
            offset,
            data: word.to_le_bytes()[..bytes].to_vec()
        }),
        commands.prop_map(|command| Step::Write { offset: 0x18, data: command.to_le_bytes().to_vec() }),
        (0_u64..0x1_0000, any::<bool>()).prop_map(|(page, wide)| Step::Write {
            offset: 0x90,
            data: ((page & 15) << 12 | u64::from(wide) << 11 | page >> 13).to_le_bytes().to_vec()
        }),
        (0_u32..64).prop_map(|n| Step::Write { offset: 0x88, data: (n * 32).to_le_bytes().to_vec() }),
    ]
}

/// Descriptors of all types as a driver writes them.
fn submit() -> impl Strategy<Value = Step> {
    let good = vec![
        [0x11, 0],
        [0x37, 0],
        [0x12, 0],
        [0x1_0022, 0],
        [0x1_0032, 0x5000],
        [0x1_0001_0026, 0],
        [0x1_0001_0036, VIRTUAL],
        [0x1_0001_0036, 0xffff_8000_0000_0023],
        [0x03, 0x7fff_ffff_ffff_f001],
        [0x1_0000_0008, 0x7fff_ffff_ffff_f800],
        [0x1_0000_0019, 3 << 3],
        [2 << 32 | 0x25, STATUS],
        [2 << 32 | 0xf5, STATUS],
    ];
    let flip = prop_oneof![3 => Just(None), 1 => (0_u32..128).prop_map(Some)];
    (prop::sample::select(good), flip).prop_map(|(words, flip)| Step::Submit { words, flip })
}

/// Addresses that are mapped, or near.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![4 => (0_u64..0x4000).prop_map(|low| VIRTUAL + low), 1 => word()]
}

fn pasid() -> impl Strategy<Value = Option<Pasid>> {
    prop_oneof![
        Just(None),
        (0_u32..4).prop_map(Pasid::new),
        any::<u32>().prop_map(|n| Some(Pasid::truncate(n)))
    ]
}

fn source() -> impl Strategy<Value = SourceId> {
    prop_oneof![4 => Just(SOURCE), 1 => any::<u16>().prop_map(SourceId)]
}

fn request() -> impl Strategy<Value = Request> {
    let access =
        prop::sample::select(vec![Access::Read, Access::Write, Access::Atomic, Access::ZeroLengthRead]);
    let kind = prop::sample::select(vec![
        AddressType::Untranslated,
        AddressType::Translated,
        AddressType::Translation { no_write: false },
        AddressType::Translation { no_write: true },
    ]);
    (source(), pasid(), address(), access, kind, any::<(bool, bool)>()).prop_map(
        |(source, pasid, address, access, address_type, (privileged, execute))| Request {
            source,
            pasid,
            address: Iova(address),
            access,
            address_type,
            privileged,
            execute,
        },
    )
}

fn page_request() -> impl Strategy<Value = PageRequest> {
    (source(), pasid(), address(), any::<[bool; 5]>(), any::<u16>()).prop_map(
        |(source, pasid, address, [read, write, execute, privileged, last], group)| PageRequest {
            source,
            pasid,
            address: Iova(address),
            read,
            write,
            execute,
            privileged,
            last,
            group: GroupIndex::truncate(group),
            vendor: VendorData::NONE,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let table_words = (TABLES.end - TABLES.start) / 8;
    prop_oneof![
        2 => write(),
        2 => (register_offset(), 0_usize..=16).prop_map(|(offset, bytes)| Step::Read { offset, bytes }),
        2 => (0..TABLES.end / 8, word()).prop_map(|(index, word)| Step::Poke { gpa: index * 8, word }),
        2 => (0..table_words, 0_u32..64).prop_map(|(word, bit)| Step::Flip { word, bit }),
        8 => submit(),
        2 => Just(Step::Repair),
        4 => request().prop_map(Step::Request),
        2 => page_request().prop_map(Step::PageRequest),
    ]
}

struct Bench {
    memory: GuestMemoryMmap,
    unit: Unit<GuestMemoryMmap>,
    _endpoint: Arc<dyn Endpoint>,
    /// Words of tables that are not 0: what is worth flipping.
    live: Vec<u64>,
}

impl Bench {
    fn new(five_level: bool) -> Self {
        let end = usize::try_from(TABLES.end).unwrap();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), end)]).unwrap();
        let capability =
            Capability::new(&Profile::svm(46).with_address_width(if five_level { 57 } else { 48 })).unwrap();
        let msi = Arc::new(RecordingMsi::default());
        let unit = Unit::new(&UnitConfig { capability, source: SOURCE }, memory.clone(), msi);
        let endpoint: Arc<dyn Endpoint> = Arc::new(RecordingEndpoint::default());
        unit.attach_endpoint(SOURCE, Arc::downgrade(&endpoint));
        let tables = Tables::new(&memory, TABLES);
        let context = tables.context(SOURCE);
        context.without_pasid().pass_through(1);
        let process = context.pasid(1).first_stage(1);
        process.map(VIRTUAL, PAGE_QUEUE, PageSize::Size4K, flags::USER | flags::WRITE);
        process.map(VIRTUAL + 0x1000, PAGE_QUEUE, PageSize::Size4K, flags::USER);
        let write = |offset, value: u64| unit.mmio_write(offset, &value.to_le_bytes());
        write(0x20, tables.root_register().raw_value());
        write(0x90, RING | 1 << 11);
        write(0xd0, PAGE_QUEUE);
        unit.mmio_write(0x18, &0xc400_0000_u32.to_le_bytes());
        let live = TABLES.step_by(8).filter(|gpa| memory.read_obj::<u64>(GuestAddress(*gpa)).unwrap() != 0);
        Self { live: live.collect(), memory, unit, _endpoint: endpoint }
    }

    fn word(&self, gpa: u64) -> u64 {
        self.memory.read_obj(GuestAddress(gpa)).unwrap()
    }

    fn poke(&self, gpa: u64, word: u64) {
        self.memory.write_obj(word, GuestAddress(gpa)).unwrap();
    }

    fn register(&self, offset: u64) -> u64 {
        let mut data = [0; 8];
        self.unit.mmio_read(offset, &mut data);
        u64::from_le_bytes(data)
    }

    fn submit(&self, words: [u64; 2], flip: Option<u32>) {
        let tail = (self.register(0x88) % 4096) & !31;
        for (index, word) in words.into_iter().chain([0, 0]).enumerate() {
            self.poke(RING + tail + 8 * index as u64, word);
        }
        if let Some(bit) = flip {
            let gpa = RING + tail + u64::from(bit / 64) * 8;
            self.poke(gpa, self.word(gpa) ^ 1 << (bit % 64));
        }
        self.unit.mmio_write(0x88, &((tail + 32) % 4096).to_le_bytes());
    }

    fn step(&self, step: Step) {
        match step {
            Step::Write { offset, data } => self.unit.mmio_write(offset, &data),
            Step::Read { offset, bytes } => self.unit.mmio_read(offset, &mut vec![0; bytes]),
            Step::Poke { gpa, word } => self.poke(gpa, word),
            Step::Flip { word, bit } => {
                let gpa = self.live[usize::try_from(word).unwrap() % self.live.len()];
                self.poke(gpa, self.word(gpa) ^ 1 << bit);
            }
            Step::Submit { words, flip } => self.submit(words, flip),
            Step::Repair => {
                let head = self.register(0x80) % 4096;
                for (index, word) in [2 << 32 | 0x25, STATUS, 0, 0].into_iter().enumerate() {
                    self.poke(RING + (head & !31) + 8 * index as u64, word);
                }
                self.unit.mmio_write(0x34, &[0x71]);
            }
            Step::Request(request) => {
                if let Err(fault) = self.unit.translate(&request) {
                    self.unit.report(&fault);
                }
            }
            Step::PageRequest(request) => {
                self.unit.page_request(&request);
            }
        }
    }
}

proptest! {
    #[test]
    fn any_guest_is_survived(steps in vec(step(), 1..100), five_level in any::<bool>()) {
        let bench = Bench::new(five_level);
        for step in steps {
            bench.step(step);
        }
        bench.unit.reset();
        prop_assert_eq!(bench.register(0x18), 0);
    }
}
