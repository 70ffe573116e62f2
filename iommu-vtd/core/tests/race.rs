//! Ports against invalidation, in every interleaving: after an invalidation no session uses what it dropped.
//!
//! Compiled with `--cfg shuttle` only: `cargo race`.
#![cfg(shuttle)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::sync::Arc;

use iommu_core::sync::atomic::{AtomicBool, Ordering};
use iommu_core::testkit::{ListTranslator, Page};
use iommu_core::{
    Access, DeviceTlbInvalidation, Dma, Invalidation, Iova, IovaRange, Pasid, Port, PortKind, PortSet,
    SourceId,
};
use shuttle::scheduler::DfsScheduler;
use shuttle::{Config, Runner};
use vm_memory::{GuestAddress, GuestMemoryMmap};

const SOURCE: SourceId = SourceId(0x18);
const IOVA: u64 = 0x7000;
const OLD: u64 = 0x1000;
const NEW: u64 = 0x2000;
const PASID: Option<Pasid> = Pasid::new(1);

struct World {
    translator: Arc<ListTranslator>,
    ports: Arc<PortSet>,
    /// The invalidation has returned.
    done: AtomicBool,
}

impl World {
    fn new() -> Self {
        let translator = ListTranslator::new();
        translator.map(page(OLD));
        Self { translator, ports: Arc::default(), done: AtomicBool::new(false) }
    }

    fn port(&self, kind: PortKind) -> Port<GuestMemoryMmap> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let dma = Dma::new(SOURCE, memory, self.translator.clone(), self.ports.clone());
        match kind {
            PortKind::Untranslated => dma.port(),
            PortKind::DeviceTlb => dma.device_tlb_port(&self.ports),
        }
    }

    /// One access of a device. `end_early` is the mistake that the harness has to see.
    fn access(&self, port: &mut Port<GuestMemoryMmap>, end_early: bool) {
        let was_done = self.done.load(Ordering::SeqCst);
        let session = port.session(PASID);
        let hit = session.translate(Iova(IOVA), Access::Read).unwrap();
        if end_early {
            assert_eq!(session.end(), None);
        }
        // The access itself: time passes.
        let is_done = self.done.load(Ordering::SeqCst);
        assert!(hit.gpa.0 == NEW || !was_done, "an old translation, found after the invalidation");
        assert!(hit.gpa.0 == NEW || !is_done, "an old translation, in use after the invalidation");
    }

    fn invalidate(&self, kind: PortKind) {
        self.translator.map(page(NEW));
        match kind {
            PortKind::Untranslated => self.ports.invalidate(&Invalidation::ALL),
            PortKind::DeviceTlb => {
                let range = IovaRange::ALL;
                let all = DeviceTlbInvalidation { source: SOURCE, pasid: PASID, all_pasids: false, range };
                let _ = self.ports.invalidate_device_tlb(&all);
            }
        }
        self.done.store(true, Ordering::SeqCst);
    }
}

fn page(gpa: u64) -> Page {
    Page { pasid: PASID, iova: IOVA, gpa, write: true }
}

/// `devices` functions with `accesses` each, and one invalidation.
fn race(kind: PortKind, devices: usize, accesses: usize, end_early: bool) {
    let world = Arc::new(World::new());
    let threads: Vec<_> = (0..devices)
        .map(|_| {
            let (world, mut port) = (world.clone(), world.port(kind));
            shuttle::thread::spawn(move || {
                for _ in 0..accesses {
                    world.access(&mut port, end_early);
                }
            })
        })
        .collect();
    world.invalidate(kind);
    for thread in threads {
        thread.join().unwrap();
    }
}

/// The whole space, to its end: (ports, devices, accesses of each). A second device makes it millions.
#[test]
fn every_interleaving() {
    for (kind, devices, accesses) in [
        (PortKind::Untranslated, 1, 1),
        (PortKind::DeviceTlb, 1, 1),
        (PortKind::Untranslated, 1, 2),
        (PortKind::DeviceTlb, 1, 2),
    ] {
        let runner = Runner::new(DfsScheduler::new(None, false), Config::default());
        let interleavings = runner.run(move || race(kind, devices, accesses, false));
        println!("{kind:?}, {devices} with {accesses}: {interleavings}");
    }
}

#[test]
fn many_interleavings_of_two_devices() {
    for kind in [PortKind::Untranslated, PortKind::DeviceTlb] {
        shuttle::check_random(move || race(kind, 2, 2, false), 20_000);
        shuttle::check_pct(move || race(kind, 2, 2, false), 20_000, 3);
    }
}

/// The harness is not blind: an access that outlives its session is found.
#[test]
#[should_panic(expected = "in use after the invalidation")]
fn an_access_outside_its_session_is_found() {
    shuttle::check_dfs(|| race(PortKind::Untranslated, 1, 1, true), None);
}
