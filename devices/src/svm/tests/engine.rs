//! Operations against naive ones, over pages in no order, with faults in the middle.

use std::sync::Arc;

use iommu_core::testkit::{ListTranslator, Page};
use iommu_core::{Access, Dma, Iova, Pasid, Port, PortSet, SourceId};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::rig::{MEMORY_BYTES, Memory};
use crate::svm::engine::{Engine, Step};
use crate::svm::spec::{Descriptor, Opcode};

/// Pages of the virtual space of a bench, from address 0x10_0000.
const PAGES: u64 = 140;
const BASE: u64 = 0x10_0000;
const SPACE: usize = 140 * 4096;
const _: () = assert!(SPACE as u64 == PAGES * 4096);

struct Bench {
    iommu: Arc<ListTranslator>,
    memory: Memory,
    port: Port<Memory>,
    /// What the virtual space should hold.
    expected: Vec<u8>,
}

impl Bench {
    /// Virtual page `n` lies at a place that a stride over memory gives, and holds a pattern without zeros.
    fn new() -> Self {
        let memory = Memory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap();
        let iommu = ListTranslator::new();
        let dma = Dma::new(SourceId(8), memory.clone(), iommu.clone(), Arc::new(PortSet::default()));
        let port = dma.device_tlb_port(&PortSet::default());
        let mut bench = Self { iommu, memory, port, expected: vec![0; SPACE] };
        for page in 0..PAGES {
            bench.map(page);
        }
        for (index, chunk) in bench.expected.chunks_mut(8).enumerate() {
            chunk.copy_from_slice(&(index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        }
        for (page, bytes) in (0..).zip(bench.expected.chunks(4096)) {
            bench.memory.write_slice(bytes, GuestAddress(gpa(page))).unwrap();
        }
        bench
    }

    fn map(&self, page: u64) {
        self.iommu.map(Page { pasid: None, iova: BASE + page * 4096, gpa: gpa(page), write: true });
    }

    fn actual(&self) -> Vec<u8> {
        let mut bytes = vec![0; SPACE];
        for (page, out) in (0..).zip(bytes.chunks_mut(4096)) {
            self.memory.read_slice(out, GuestAddress(gpa(page))).unwrap();
        }
        bytes
    }

    /// Runs to the end, mapping pages as they are missed. Returns the engine and the addresses that faulted.
    fn run(&mut self, descriptor: &Descriptor) -> (Engine, Vec<(u64, Access)>) {
        let mut engine = Engine::new(descriptor.operation().unwrap());
        let mut faults = Vec::new();
        for _ in 0..10_000 {
            let session = self.port.session(None::<Pasid>);
            let step = engine.step(&session);
            drop(session);
            match step {
                Step::Done => return (engine, faults),
                Step::More => {}
                Step::Fault { fault, access } => {
                    let address = fault.address().0;
                    faults.push((address, access));
                    self.map((address - BASE) / 4096);
                }
            }
        }
        panic!("no end");
    }
}

fn gpa(page: u64) -> u64 {
    0x1_0000 + (page * 89 % 251) * 4096
}

fn descriptor(opcode: Opcode, source: usize, destination: usize, length: usize) -> Descriptor {
    Descriptor {
        opcode: opcode as u8,
        source: (BASE + source as u64).into(),
        destination: (BASE + destination as u64).into(),
        length: (length as u64).into(),
        ..Descriptor::default()
    }
}

/// What an operation does to bytes; returns (completed, result).
fn naive(
    bytes: &mut [u8],
    opcode: Opcode,
    (source, destination, length): (usize, usize, usize),
) -> (u64, u64) {
    let all = length as u64;
    match opcode {
        Opcode::Copy => {
            bytes.copy_within(source..source + length, destination);
            (all, 0)
        }
        Opcode::Fill => {
            for i in 0..length {
                bytes[destination + i] = PATTERN.to_le_bytes()[i % 8];
            }
            (all, 0)
        }
        Opcode::Compare => {
            let equal = (0..length).take_while(|&i| bytes[source + i] == bytes[destination + i]).count();
            if equal == length { (all, u64::MAX) } else { (equal as u64, equal as u64) }
        }
        _ => {
            let mut crc = !0_u32;
            for byte in &bytes[source..source + length] {
                crc ^= u32::from(*byte);
                for _ in 0..8 {
                    crc = crc >> 1 ^ if crc & 1 != 0 { 0x82f6_3b78 } else { 0 };
                }
            }
            (all, u64::from(!crc))
        }
    }
}

const PATTERN: u64 = 0x8877_6655_4433_2211;

/// (source, destination, length): apart, or the destination below the source.
fn spans() -> impl Strategy<Value = (usize, usize, usize)> {
    let length = prop_oneof![0_usize..70, 4000_usize..4200, 200_000_usize..270_000];
    (length, 0_usize..4097, 0_usize..4097).prop_map(|(length, a, b)| (SPACE / 2 + a, b, length))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn an_operation_with_holes_does_what_the_naive_one_does(
        opcode in prop_oneof![
            Just(Opcode::Copy), Just(Opcode::Fill), Just(Opcode::Compare), Just(Opcode::Crc32c)
        ],
        spans in spans(),
        holes in prop::collection::vec(0..PAGES, 0..12),
        equal_up_to in prop::option::of(0_usize..300_000),
    ) {
        let mut bench = Bench::new();
        let (source, destination, length) = spans;
        if let Some(limit) = equal_up_to {
            // Make the two sides equal for a while.
            let mut copy = descriptor(Opcode::Copy, source, destination, length.min(limit));
            copy.flags = 0;
            bench.run(&copy);
            bench.expected.copy_within(source..source + length.min(limit), destination);
        }
        for &page in &holes {
            bench.iommu.unmap(None, BASE + page * 4096);
        }
        bench.port = Dma::new(SourceId(8), bench.memory.clone(), bench.iommu.clone(), Arc::default())
            .device_tlb_port(&PortSet::default());
        let mut request = descriptor(opcode, source, destination, length);
        if opcode == Opcode::Fill {
            request.operand = PATTERN.into();
        }
        let (engine, faults) = bench.run(&request);
        let mut expected = std::mem::take(&mut bench.expected);
        let outcome = naive(&mut expected, opcode, spans);
        prop_assert_eq!((engine.completed(), engine.result()), outcome);
        prop_assert!(bench.actual() == expected, "memory differs");
        for (address, _) in &faults {
            prop_assert!(holes.contains(&((address - BASE) / 4096)), "no hole at {:#x}", address);
        }
    }
}

#[test]
fn a_fault_stops_at_the_first_byte_of_the_page() {
    let rows = [
        ("source", Opcode::Copy, 2, Access::Read),
        ("destination", Opcode::Copy, 20, Access::Write),
        ("fill", Opcode::Fill, 20, Access::Write),
        ("crc", Opcode::Crc32c, 2, Access::Read),
        ("compare, left", Opcode::Compare, 2, Access::Read),
        ("compare, right", Opcode::Compare, 20, Access::Read),
    ];
    for (name, opcode, hole, access) in rows {
        let mut bench = Bench::new();
        let (source, destination) = (4096 + 100, 19 * 4096 + 100);
        if opcode == Opcode::Compare {
            bench.run(&descriptor(Opcode::Copy, source, destination, 3 * 4096));
            bench.port = Dma::new(SourceId(8), bench.memory.clone(), bench.iommu.clone(), Arc::default())
                .device_tlb_port(&PortSet::default());
        }
        bench.iommu.unmap(None, BASE + hole * 4096);
        let mut engine = Engine::new(descriptor(opcode, source, destination, 3 * 4096).operation().unwrap());
        let session = bench.port.session(None);
        let Step::Fault { fault, access: found } = engine.step(&session) else { panic!("{name}: no fault") };
        assert_eq!((fault.address(), found), (Iova(BASE + hole * 4096), access), "{name}");
        assert_eq!(engine.completed(), 4096 - 100, "{name}");
    }
}

#[test]
fn the_check_value_of_crc32c() {
    let mut bench = Bench::new();
    bench.memory.write_slice(b"123456789", GuestAddress(gpa(0))).unwrap();
    let (engine, _) = bench.run(&descriptor(Opcode::Crc32c, 0, 0, 9));
    assert_eq!(engine.result(), 0xe306_9283);
    let (first, _) = bench.run(&descriptor(Opcode::Crc32c, 0, 0, 4));
    let mut rest = descriptor(Opcode::Crc32c, 4, 0, 5);
    rest.operand = first.result().into();
    assert_eq!(bench.run(&rest).0.result(), 0xe306_9283, "seeded with what came before");
}

#[test]
fn chase_table() {
    // Nodes: one that crosses a page, one that points to itself, a chain of 1000 that ends.
    let mut bench = Bench::new();
    let put = |bench: &Bench, at: u64, value: u64| {
        for (i, byte) in (0_u64..).zip(value.to_le_bytes()) {
            let target = gpa((at + i - BASE) / 4096) + (at + i) % 4096;
            bench.memory.write_obj(byte, GuestAddress(target)).unwrap();
        }
    };
    let node = |i: u64| BASE + (i * 37 % 100) * 4096 + 4092 - i / 100 * 16;
    for i in 0..999 {
        put(&bench, node(i), node(i + 1));
    }
    put(&bench, node(999), 0);
    put(&bench, BASE + 0x6_9000, BASE + 0x6_9000);
    let rows = [
        ("null", 0, 10, (0, 0)),
        ("no hops", node(0), 0, (0, node(0))),
        ("some", node(0), 7, (7, node(7))),
        ("exactly all", node(0), 999, (999, node(999))),
        ("to the end", node(0), 5000, (999, node(999))),
        ("last", node(999), 5, (0, node(999))),
        ("circle", BASE + 0x6_9000, 700, (700, BASE + 0x6_9000)),
    ];
    for (name, first, hops, expected) in rows {
        let mut request = descriptor(Opcode::Chase, 0, 0, hops);
        request.source = first.into();
        let (engine, _) = bench.run(&request);
        assert_eq!((engine.completed(), engine.result()), expected, "{name}");
    }
    put(&bench, BASE, u64::MAX - 3);
    let mut engine = Engine::new(descriptor(Opcode::Chase, 0, 0, 9).operation().unwrap());
    let session = bench.port.session(None);
    assert!(matches!(engine.step(&session), Step::Fault { .. }), "a node that wraps");
    assert_eq!((engine.completed(), engine.result()), (1, u64::MAX - 3));
}

#[test]
fn a_session_moves_no_more_than_its_share() {
    let mut bench = Bench::new();
    let mut engine = Engine::new(descriptor(Opcode::Copy, 0, SPACE / 2, SPACE / 2).operation().unwrap());
    let session = bench.port.session(None);
    assert_eq!(engine.step(&session), Step::More);
    assert_eq!(engine.completed(), 256 << 10);
}
