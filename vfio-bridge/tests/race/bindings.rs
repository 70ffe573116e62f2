//! The bridge alone: the host's faults against changes of what they come through.

use std::sync::Arc;

use crate::common::{check_nothing_left, first, pasid, response, source};
use iommu_core::sync::atomic::{AtomicBool, Ordering};
use iommu_core::testkit::ListTranslator;
use iommu_core::{Domain, HostIommu, PageRequestOutcome, ResponseCode};
use shuttle::thread;
use vfio_bridge::NestedIommu;
use vfio_bridge::testkit::{Answer, FakeKernel};

use crate::explore;

const PASID: Option<u32> = Some(5);
const OLD: u16 = 3;
const NEW: u16 = 4;

struct World {
    kernel: FakeKernel,
    host: NestedIommu,
    guest: Arc<ListTranslator>,
    /// The old table is gone.
    gone: Arc<AtomicBool>,
}

impl World {
    fn new() -> Self {
        let kernel = FakeKernel::new();
        let host = NestedIommu::new(Arc::new(kernel.clone())).unwrap();
        host.add_device(source(0), Box::new(kernel.add_device(0))).unwrap();
        host.set_domain(source(0), pasid(PASID), &first(1, 0x1000)).unwrap();
        let guest = ListTranslator::new();
        let gone = Arc::new(AtomicBool::new(false));
        let is_gone = gone.clone();
        guest.on_page_request(move |_, request| {
            let late = is_gone.load(Ordering::SeqCst) && request.group.get() == OLD;
            assert!(!late, "a request came after its table was gone");
            PageRequestOutcome::Queued
        });
        Self { kernel, host, guest, gone }
    }

    fn deliver(&self) {
        self.host.deliver_page_requests(&*self.guest).unwrap();
    }

    fn respond(&self, group: u16) {
        self.host.respond(&response((0, PASID), group, ResponseCode::Success)).unwrap();
    }

    /// Replaces the table, and has the device ask through the new one. Returns the new group.
    fn replace(&self, next: &Domain) -> usize {
        self.host.set_domain(source(0), pasid(PASID), next).unwrap();
        self.gone.store(true, Ordering::SeqCst);
        self.kernel.request_pages(0, PASID, u32::from(NEW), &[0x2000])
    }
}

/// One asks, one reads, one answers the old group, one replaces the table.
fn race() {
    let world = Arc::new(World::new());
    let old = world.kernel.request_pages(0, PASID, u32::from(OLD), &[0x1000]);
    let spawn = |work: fn(&World)| {
        let world = world.clone();
        thread::spawn(move || work(&world))
    };
    let threads = [
        spawn(|world| {
            world.deliver();
            world.deliver();
        }),
        spawn(|world| {
            world.respond(OLD);
            world.respond(OLD);
        }),
    ];
    let new = world.replace(&first(1, 0x2000));
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(world.kernel.audit().groups[old].len(), 1);
    assert_eq!(world.kernel.audit().groups[new], [], "nobody has answered it yet");
    world.deliver();
    world.respond(NEW);
    assert_eq!(world.kernel.audit().groups[new], [Answer::Written(0)]);
    let kernel = world.kernel.clone();
    drop(world);
    check_nothing_left(&kernel);
}

/// Devices leave while they are asked about.
fn unplug() {
    let world = Arc::new(World::new());
    world.kernel.request_pages(0, PASID, u32::from(OLD), &[0x1000]);
    let pump = world.clone();
    let pump = thread::spawn(move || pump.deliver());
    let guest = world.clone();
    let guest = thread::spawn(move || guest.respond(OLD));
    world.host.remove_device(source(0));
    world.gone.store(true, Ordering::SeqCst);
    pump.join().unwrap();
    guest.join().unwrap();
    let kernel = world.kernel.clone();
    drop(world);
    check_nothing_left(&kernel);
}

#[test]
fn no_group_is_lost_or_answered_twice() {
    explore(2_000, 4, race);
}

#[test]
fn a_device_may_go_at_any_moment() {
    explore(1_000, 3, unplug);
}
