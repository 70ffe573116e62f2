//! Sessions, faults and the drain.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use vm_memory::{Bytes, GuestMemoryMmap};

use super::*;
use crate::invalidation::Scope;
use crate::testkit::{ListTranslator, Page};
use crate::types::IovaRange;

type Memory = GuestMemoryMmap<()>;

struct Bench {
    model: Arc<ListTranslator>,
    ports: Arc<PortSet>,
    memory: Memory,
}

impl Bench {
    fn new() -> Self {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        Self { model: ListTranslator::new(), ports: Arc::default(), memory }
    }

    fn map(&self, iova: u64, gpa: u64, write: bool) -> &Self {
        self.model.map(Page { pasid: None, iova, gpa, write });
        self
    }

    fn dma(&self) -> Dma<Memory> {
        Dma::new(SourceId(0x10), self.memory.clone(), self.model.clone(), self.ports.clone())
    }
}

#[test]
fn bytes_go_through_the_tables_across_pages() {
    let bench = Bench::new();
    bench.map(0x7000, 0x3000, true).map(0x8000, 0x1000, true);
    let mut port = bench.dma().port();
    let session = port.session(None);
    session.write_slice(&[1, 2, 3, 4], GuestAddress(0x7ffe)).unwrap();
    assert_eq!(session.end(), None);
    assert_eq!(bench.memory.read_obj::<[u8; 2]>(GuestAddress(0x3ffe)).unwrap(), [1, 2]);
    assert_eq!(bench.memory.read_obj::<[u8; 2]>(GuestAddress(0x1000)).unwrap(), [3, 4]);
}

#[test]
fn a_refused_access_is_reported_once_and_after_the_session() {
    let bench = Bench::new();
    bench.map(0x7000, 0x3000, false);
    let mut port = bench.dma().port();
    let session = port.session(None);
    assert!(session.write_slice(&[1], GuestAddress(0x7000)).is_err());
    assert!(session.write_slice(&[1], GuestAddress(0x9000)).is_err());
    assert!(bench.model.faults.lock().is_empty(), "not while the session is open");
    let fault = session.end().unwrap();
    assert_eq!(fault.address(), Iova(0x7000), "the first one counts");
    assert_eq!(bench.model.faults.lock().len(), 1);
}

#[test]
fn a_device_tlb_miss_is_missing_not_refused() {
    let bench = Bench::new();
    let own = PortSet::default();
    let mut port = bench.dma().device_tlb_port(&own);
    let session = port.session(None);
    assert!(session.read_obj::<u64>(GuestAddress(0x7008)).is_err());
    assert_eq!(session.end(), Some(DmaFault::Missing { address: Iova(0x7008), access: Access::Read }));
    assert!(bench.model.faults.lock().is_empty());
    assert!(bench.ports.is_empty(), "a device-TLB port is not the model's to visit");
}

#[test]
fn output_without_memory_is_a_fault_of_its_own() {
    let bench = Bench::new();
    bench.map(0x7000, 0x40_0000_0000, true);
    let mut port = bench.dma().port();
    let session = port.session(None);
    assert!(session.read_obj::<u8>(GuestAddress(0x7001)).is_err());
    let gone = DmaFault::NoMemory { address: Iova(0x7001), gpa: Gpa(0x40_0000_0001) };
    assert_eq!(session.end(), Some(gone));
}

#[test]
fn the_top_of_the_address_space_neither_wraps_nor_panics() {
    let bench = Bench::new();
    bench.map(0xffff_ffff_ffff_f000, 0x3000, true);
    let mut port = bench.dma().port();
    let session = port.session(None);
    assert!(session.read_obj::<u64>(GuestAddress(u64::MAX - 7)).is_ok());
    assert!(session.read_obj::<[u8; 16]>(GuestAddress(u64::MAX - 7)).is_err());
    drop(session);
    let mut direct =
        Dma::new(SourceId(0), bench.memory.clone(), Arc::new(NoTranslation), Arc::default()).port();
    assert!(direct.session(None).read_obj::<u8>(GuestAddress(u64::MAX)).is_err());
    assert!(direct.session(None).read_obj::<u8>(GuestAddress(0xf_ffff)).is_ok());
}

#[test]
fn cached_translations_stay_until_invalidated() {
    let bench = Bench::new();
    bench.map(0x7000, 0x3000, true);
    let mut port = bench.dma().port();
    port.session(None).write_obj(7u8, GuestAddress(0x7000)).unwrap();
    bench.model.unmap(None, 0x7000);
    assert!(port.session(None).read_obj::<u8>(GuestAddress(0x7000)).is_ok());
    let page = IovaRange::aligned(0x7000, 12);
    let scope = Scope::PasidRange { domain: crate::DomainId(1), pasid: Pasid::ZERO, range: page };
    bench.ports.invalidate(&Invalidation::new(scope));
    assert!(port.session(None).read_obj::<u8>(GuestAddress(0x7000)).is_err());
}

/// The promise of the drain: once `invalidate` returned, nobody writes through the old translation.
#[test]
fn invalidate_waits_for_open_sessions() {
    let bench = Bench::new();
    bench.map(0x7000, 0x3000, true);
    let stop = AtomicBool::new(false);
    let rounds = AtomicU64::new(0);
    let mut port = bench.dma().port();
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let session = port.session(None);
                for value in 1..=64u64 {
                    let _ = session.write_obj(value, GuestAddress(0x7000));
                }
                drop(session);
                rounds.fetch_add(1, Ordering::Relaxed);
            }
        });
        for _ in 0..200 {
            bench.map(0x7000, 0x3000, true);
            let seen = rounds.load(Ordering::Relaxed);
            while rounds.load(Ordering::Relaxed) < seen + 2 {
                thread::yield_now();
            }
            bench.model.unmap(None, 0x7000);
            bench.ports.invalidate(&Invalidation::ALL);
            bench.memory.write_obj(u64::MAX, GuestAddress(0x3000)).unwrap();
            thread::sleep(Duration::from_micros(20));
            assert_eq!(bench.memory.read_obj::<u64>(GuestAddress(0x3000)).unwrap(), u64::MAX);
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn abandoned_ports_do_not_pile_up() {
    let bench = Bench::new();
    let dma = bench.dma();
    for _ in 0..100 {
        drop(dma.port());
    }
    assert!(bench.ports.len() <= 2);
}
