//! Behind a real model: a host's faults go through a VT-d unit's page request queue, and what a guest puts into its
//! invalidation queue releases the device.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{PASS, check_nothing_left, source};
use iommu_core::testkit::RecordingMsi;
use iommu_core::{
    DeviceTlbCompletion, DeviceTlbInvalidation, Domain, DomainId, Endpoint, FirstStage, Gpa, HostIommu,
    Invalidation, IovaRange, PageResponse, Pasid, Scope, SourceId,
};
use iommu_vtd::testkit::Tables;
use iommu_vtd::{Capability, Profile, Unit, UnitConfig};
use vfio_bridge::NestedIommu;
use vfio_bridge::testkit::{Answer, FakeKernel};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

type Memory = GuestMemoryMmap;

const RING: u64 = 0x1_0000;
const STATUS: u64 = 0x1_3000;
const PAGE_QUEUE: u64 = 0x2_0000;
// Registers.
const GCMD: u64 = 0x18;
const RTADDR: u64 = 0x20;
const IQT: u64 = 0x88;
const IQA: u64 = 0x90;
const PQH: u64 = 0xc0;
const PQT: u64 = 0xc8;
const PQA: u64 = 0xd0;
const PRS: u64 = 0xdc;
const PASIDS: [u32; 2] = [1, 2];
const DOMAIN: u16 = 7;

/// What stands for an assigned function in the model.
struct Assigned(Arc<NestedIommu>);

impl Endpoint for Assigned {
    fn invalidate_device_tlb(&self, _: &DeviceTlbInvalidation) -> DeviceTlbCompletion {
        // The host does it with every table it flushes.
        DeviceTlbCompletion::Complete
    }

    fn page_group_response(&self, response: &PageResponse) {
        self.0.respond(response).unwrap();
    }
}

struct Machine {
    kernel: FakeKernel,
    host: Arc<NestedIommu>,
    memory: Memory,
    unit: Arc<Unit<Memory>>,
    assigned: Arc<dyn Endpoint>,
}

impl Machine {
    fn new() -> Self {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
        let profile = Profile { interrupt_remapping: false, ..Profile::svm(46) }.settled();
        let config = UnitConfig { capability: Capability::new(&profile).unwrap(), source: SourceId(0) };
        let unit = Arc::new(Unit::new(&config, memory.clone(), Arc::new(RecordingMsi::default())));
        let kernel = FakeKernel::new();
        let host = Arc::new(NestedIommu::new(Arc::new(kernel.clone())).unwrap());
        host.add_device(source(0), Box::new(kernel.add_device(0))).unwrap();
        host.add_memory(&memory).unwrap();
        let assigned: Arc<dyn Endpoint> = Arc::new(Assigned(host.clone()));
        unit.attach_endpoint(source(0), Arc::downgrade(&assigned));
        Self { kernel, host, memory, unit, assigned }
    }

    fn write(&self, register: u64, value: u64) {
        let len = if matches!(register, GCMD | PRS) { 4 } else { 8 };
        self.unit.mmio_write(register, &value.to_le_bytes()[..len]);
    }

    fn read(&self, register: u64) -> u64 {
        let mut data = [0; 8];
        self.unit.mmio_read(register, &mut data);
        u64::from_le_bytes(data)
    }

    fn word(&self, gpa: u64) -> u64 {
        self.memory.read_obj(GuestAddress(gpa)).unwrap()
    }

    /// Switches everything on. Binds both PASIDs in the guest's tables and returns their roots.
    fn boot(&self) -> [Gpa; 2] {
        let tables = Tables::new(&self.memory, 0x10_0000..0x40_0000);
        let context = tables.context(source(0));
        let roots = PASIDS.map(|pasid| context.pasid(pasid).first_stage(DOMAIN).root());
        self.write(IQA, RING | 1 << 11 | 1);
        self.write(GCMD, 1 << 26);
        self.write(RTADDR, tables.root_register().raw_value());
        self.write(GCMD, 1 << 26 | 1 << 30);
        self.write(PQA, PAGE_QUEUE | 4);
        self.write(GCMD, 1 << 26 | 1 << 31);
        roots
    }

    /// What the model is to do when it finds a PASID entry changed.
    fn bind(&self, pasid: u32, domain: &Domain) {
        self.host.set_domain(source(0), Pasid::new(pasid), domain).unwrap();
    }
}

fn table(root: Gpa) -> Domain {
    let table = FirstStage { root, input_bits: 48, format: common::format() };
    Domain::FirstStage { id: DomainId(u32::from(DOMAIN)), table }
}

/// The guest's side of the queues.
struct Guest<'m> {
    machine: &'m Machine,
    tail: u64,
    head: u64,
}

impl<'m> Guest<'m> {
    fn new(machine: &'m Machine) -> Self {
        Self { machine, tail: 0, head: 0 }
    }

    fn submit(&mut self, low: u64, high: u64) {
        for (low, high) in [(low, high), (2 << 32 | 0x25, STATUS)] {
            for (index, word) in [low, high, 0, 0].into_iter().enumerate() {
                let at = GuestAddress(RING + 32 * self.tail + 8 * index as u64);
                self.machine.memory.write_obj(word, at).unwrap();
            }
            self.tail = (self.tail + 1) % 256;
        }
        self.machine.memory.write_obj(0_u32, GuestAddress(STATUS)).unwrap();
        self.machine.write(IQT, self.tail * 32);
        assert_eq!(self.machine.memory.read_obj::<u32>(GuestAddress(STATUS)).unwrap(), 2);
    }

    /// Answers all page requests that are in the queue. The addresses of those that were last of a group.
    fn serve(&mut self) -> Vec<u64> {
        self.machine.write(PRS, 1);
        let tail = self.machine.read(PQT);
        let mut served = Vec::new();
        while self.head != tail {
            let [low, high] = [0, 8].map(|word| self.machine.word(PAGE_QUEUE + self.head + word));
            let (pasid, group) = (low >> 32 & 0xf_ffff, high >> 3 & 0x1ff);
            assert_eq!(low >> 16 & 0xffff, u64::from(source(0).0));
            if high & 4 != 0 {
                served.push(high & !0xfff);
                self.submit(pasid << 32 | low & 0xffff_0000 | 0x19, group << 3);
            }
            self.head = (self.head + 32) % (16 << 12);
        }
        self.machine.write(PQH, self.head);
        // Overflow ends when there is room.
        self.machine.write(PRS, 2);
        served
    }
}

#[test]
fn a_hosts_fault_goes_through_the_guests_queues() {
    let machine = Machine::new();
    let roots = machine.boot();
    machine.bind(1, &table(roots[0]));
    let bound = machine.kernel.request_pages(0, Some(1), 5, &[0x7000_0000, 0x7000_1000]);
    machine.host.deliver_page_requests(&*machine.unit).unwrap();
    let mut guest = Guest::new(&machine);
    assert_eq!(guest.serve(), [0x7000_1000]);
    assert_eq!(machine.kernel.audit().groups[bound], [Answer::Written(0)]);
    // The host has it, the guest has not: the unit answers.
    machine.bind(3, &PASS);
    machine.bind(3, &table(roots[0]));
    let unknown = machine.kernel.request_pages(0, Some(3), 6, &[0x7000_0000]);
    machine.host.deliver_page_requests(&*machine.unit).unwrap();
    assert_eq!(guest.serve(), [] as [u64; 0]);
    assert_eq!(machine.kernel.audit().groups[unknown], [Answer::Written(1)]);
    end(machine);
}

/// More than the guest's queue holds: the unit makes the device ask again.
#[test]
fn a_flood_overflows_the_guests_queue_and_loses_nothing() {
    let machine = Machine::new();
    let roots = machine.boot();
    machine.bind(1, &table(roots[0]));
    let pages: Vec<u64> = (0..300).map(|n| n << 12).collect();
    for group in 0..10 {
        machine.kernel.request_pages(0, Some(1), group, &pages);
    }
    while machine.host.deliver_page_requests(&*machine.unit).unwrap() != 0 {}
    let mut guest = Guest::new(&machine);
    assert_eq!(guest.serve().len(), 6, "2047 entries hold six whole groups");
    let audit = machine.kernel.audit();
    assert!(audit.groups.iter().all(|answers| answers[..] == [Answer::Written(0)]));
    end(machine);
}

/// Devices ask, the guest answers, binds and flushes, all at once. Nobody waits for ever, nothing is lost.
#[test]
fn model_and_host_never_wait_for_each_other() {
    let machine = Machine::new();
    let roots = machine.boot();
    PASIDS.iter().zip(roots).for_each(|(pasid, root)| machine.bind(*pasid, &table(root)));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let device = scope.spawn(|| {
            for n in 0..3000_u32 {
                machine.kernel.request_pages(0, Some(n % 2 + 1), n % 512, &[0x1000, u64::from(n) << 12]);
                std::thread::yield_now();
            }
        });
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                machine.host.deliver_page_requests(&*machine.unit).unwrap();
            }
        });
        let mut guest = Guest::new(&machine);
        let mut round = 0;
        while !device.is_finished() || round < 200 {
            round += 1;
            guest.serve();
            let root = if round % 2 == 0 { roots[0] } else { Gpa(0x50_0000) };
            machine.bind(1, &table(root));
            let pasid = Pasid::truncate(2);
            let scope =
                Scope::PasidRange { domain: DomainId(7), pasid, range: IovaRange::aligned(round << 12, 12) };
            machine.host.invalidate(&Invalidation::new(scope));
            machine.host.sync().unwrap();
        }
        done.store(true, Ordering::Release);
    });
    let mut guest = Guest { machine: &machine, tail: machine.read(IQT) / 32, head: machine.read(PQH) };
    while machine.host.deliver_page_requests(&*machine.unit).unwrap() != 0 {
        guest.serve();
    }
    guest.serve();
    let audit = machine.kernel.audit();
    assert!(audit.groups.iter().all(|answers| answers.len() == 1), "one answer for each");
    assert!(audit.groups.iter().flatten().filter(|answer| **answer == Answer::Written(0)).count() > 100);
    end(machine);
}

fn end(machine: Machine) {
    let Machine { kernel, host, assigned, unit, .. } = machine;
    drop((unit, assigned));
    assert_eq!(Arc::strong_count(&host), 1);
    drop(host);
    check_nothing_left(&kernel);
}
