//! Anything a guest may write, anywhere: no panic, and every call comes back.

use std::sync::Arc;

use iommu_core::testkit::{RecordingEndpoint, RecordingMsi};
use iommu_core::{
    Access, AddressType, Endpoint, GroupIndex, Iova, PageRequest, Pasid, Request, SourceId, Translator,
    VendorData,
};
use iommu_vtd::{Capability, Profile, Unit, UnitConfig};
use proptest::collection::vec;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const WORDS: usize = 0x2000;
const SOURCE: SourceId = SourceId(0);

#[derive(Clone, Debug)]
enum Step {
    Write { offset: u64, data: Vec<u8> },
    Read { offset: u64, bytes: usize },
    Poke { gpa: u64, word: u64 },
    Request(Request),
    PageRequest(PageRequest),
    Reset,
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

fn pasid() -> impl Strategy<Value = Option<Pasid>> {
    prop_oneof![
        Just(None),
        (0_u32..4).prop_map(Pasid::new),
        any::<u32>().prop_map(|n| Some(Pasid::truncate(n)))
    ]
}

fn source() -> impl Strategy<Value = SourceId> {
    prop_oneof![Just(SOURCE), any::<u16>().prop_map(SourceId)]
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
    (source(), pasid(), word(), access, kind, any::<(bool, bool)>()).prop_map(
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
    (source(), pasid(), word(), any::<[bool; 5]>(), any::<u16>()).prop_map(
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
    prop_oneof![
        6 => write(),
        2 => (register_offset(), 0_usize..=16).prop_map(|(offset, bytes)| Step::Read { offset, bytes }),
        6 => (0..WORDS as u64, word()).prop_map(|(index, word)| Step::Poke { gpa: index * 8, word }),
        2 => request().prop_map(Step::Request),
        2 => page_request().prop_map(Step::PageRequest),
        1 => Just(Step::Reset),
    ]
}

/// Few distinct words, so that tables and descriptors link up now and then.
fn memory_image() -> impl Strategy<Value = Vec<u64>> {
    vec(word(), 1..64)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn any_guest_is_survived(image in memory_image(), steps in vec(step(), 1..80), five_level in any::<bool>()) {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 8 * WORDS)]).unwrap();
        for (index, word) in image.iter().cycle().take(WORDS).enumerate() {
            memory.write_obj(*word, GuestAddress(8 * index as u64)).unwrap();
        }
        let capability = Capability::new(&Profile { five_level, ..Profile::svm(46) }).unwrap();
        let msi = Arc::new(RecordingMsi::default());
        let unit = Unit::new(&UnitConfig { capability, source: SOURCE }, memory.clone(), msi);
        let endpoint: Arc<dyn Endpoint> = Arc::new(RecordingEndpoint::default());
        unit.attach_endpoint(SOURCE, Arc::downgrade(&endpoint));
        for step in steps {
            match step {
                Step::Write { offset, data } => unit.mmio_write(offset, &data),
                Step::Read { offset, bytes } => unit.mmio_read(offset, &mut vec![0; bytes]),
                Step::Poke { gpa, word } => memory.write_obj(word, GuestAddress(gpa)).unwrap(),
                Step::Request(request) => {
                    if let Err(fault) = unit.translate(&request) {
                        unit.report(&fault);
                    }
                }
                Step::PageRequest(request) => {
                    unit.page_request(&request);
                }
                Step::Reset => unit.reset(),
            }
        }
    }
}
