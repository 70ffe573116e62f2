//! The IOMMU refuses, or the driver makes a mistake.

use vm_memory::{Bytes, GuestAddress};
use zerocopy::IntoBytes;

use crate::no_memory::NO_MEMORY;

use super::rig::{AVAILABLE, BUFFERS, DESCRIPTORS, ISR, QUEUE, Rig, USED, disk, header, reg, until};

const HEADER: u64 = BUFFERS;
const DATA: u64 = BUFFERS + 0x1000;
const MORE: u64 = BUFFERS + 0x2000;
const STATUS: u64 = BUFFERS + 0x3000;
const TABLE: u64 = BUFFERS + 0x4000;

/// What is expected of a request.
#[derive(Clone, Copy)]
enum Expected {
    /// This status; the device goes on.
    Status(u8),
    NeedsReset,
}
use Expected::{NeedsReset, Status};

/// A request with head 0 that the device does not see yet: one that was just started looks without being notified, and
/// would be done before a page is gone.
fn prepare(rig: &mut Rig, kind: u32, indirect: bool) {
    let buffers = [(HEADER, 16, false), (DATA, 512, kind == 0), (MORE, 512, kind == 0), (STATUS, 1, true)];
    rig.poke(HEADER, header(kind, 0).as_bytes());
    rig.poke(STATUS, &[0xff]);
    if indirect {
        rig.chain(TABLE, 0, 4, &buffers);
        rig.descriptor(DESCRIPTORS, 0, (TABLE, 64, false), (4, 0));
    } else {
        rig.chain(DESCRIPTORS, 0, QUEUE, &buffers);
    }
}

/// Makes it available, by the ring at guest address `available`, whatever became of its mapping, and notifies.
fn publish(rig: &Rig, available: u64) {
    rig.memory.write_obj([1_u16, 0], GuestAddress(available + 2)).unwrap();
    rig.kick();
}

#[test]
fn what_cannot_be_accessed_fails_the_request_or_the_device() {
    // Name, request, indirect, page, whether it is read-only instead of gone, what follows, whether a fault is recorded.
    type Row = (&'static str, u32, bool, u64, bool, Expected, bool);
    let rows: [Row; 13] = [
        ("available ring", 0, false, AVAILABLE, false, NeedsReset, true),
        ("descriptors", 0, false, DESCRIPTORS, false, NeedsReset, true),
        ("used ring", 0, false, USED, false, NeedsReset, true),
        ("read-only used ring", 0, false, USED, true, NeedsReset, true),
        ("read-only available ring", 0, false, AVAILABLE, true, Status(0), false),
        ("indirect table", 0, true, TABLE, false, NeedsReset, true),
        ("status", 0, false, STATUS, false, NeedsReset, true),
        ("header", 0, false, HEADER, false, Status(1), true),
        ("data to write", 0, false, DATA, false, Status(1), true),
        ("second buffer to write", 0, true, MORE, false, Status(1), true),
        ("read-only data to write", 0, false, DATA, true, Status(1), true),
        ("data to read", 1, false, DATA, false, Status(1), true),
        ("read-only data to read", 1, false, DATA, true, Status(0), false),
    ];
    for (name, kind, indirect, page, read_only, expected, recorded) in rows {
        let mut rig = Rig::new();
        prepare(&mut rig, kind, indirect);
        let (gpa, available) = (rig.gpa(page), rig.gpa(AVAILABLE));
        let (used, status) = (rig.gpa(USED) + 2, rig.gpa(STATUS));
        if read_only {
            rig.map_to(page, gpa, false);
        } else {
            rig.unmap(page);
        }
        publish(&rig, available);
        match expected {
            NeedsReset => {
                rig.until_needs_reset();
                until("the driver is told", || rig.interrupts() == [0]);
                assert_eq!(rig.read8(ISR), 2, "{name}");
            }
            Status(expected) => {
                until("used buffer", || rig.memory.read_obj::<u16>(GuestAddress(used)).unwrap() == 1);
                assert_eq!(rig.memory.read_obj::<u8>(GuestAddress(status)).unwrap(), expected, "{name}");
                assert_eq!(rig.status(), 0xf, "{name}");
            }
        }
        let faults = rig.iommu.faults.lock().clone();
        let whose = |fault: &iommu_core::Fault| (fault.request.address.0 & !0xfff, fault.request.pasid);
        assert!(faults.iter().all(|fault| whose(fault) == (page, None)), "{name}: {faults:x?}");
        assert_eq!(!faults.is_empty(), recorded, "{name}");
        rig.map_to(page, gpa, true);
        rig.assert_recovers();
    }
}

/// (name, request, page, whether the device goes on)
#[test]
fn what_is_no_memory_fails_the_request_or_the_device() {
    let rows = [
        ("available ring", 0, AVAILABLE, false),
        ("descriptors", 0, DESCRIPTORS, false),
        ("used ring", 0, USED, false),
        ("status", 0, STATUS, false),
        ("header", 0, HEADER, true),
        ("data to write", 0, DATA, true),
        ("data to read", 1, DATA, true),
    ];
    for ((place, there), (name, kind, page, goes_on)) in
        NO_MEMORY.into_iter().flat_map(|place| rows.map(|row| (place, row)))
    {
        let mut rig = Rig::new();
        prepare(&mut rig, kind, false);
        let (gpa, available, status) = (rig.gpa(page), rig.gpa(AVAILABLE), rig.gpa(STATUS));
        rig.map_to(page, there, true);
        publish(&rig, available);
        if goes_on {
            until("an answer", || rig.memory.read_obj::<u8>(GuestAddress(status)).unwrap() != 0xff);
            let answer = rig.memory.read_obj::<u8>(GuestAddress(status)).unwrap();
            assert_eq!((answer, rig.status()), (1, 0xf), "{place} as {name}");
        } else {
            rig.until_needs_reset();
        }
        assert!(rig.iommu.faults.lock().is_empty(), "{place} as {name}: the IOMMU had nothing against it");
        rig.map_to(page, gpa, true);
        rig.assert_recovers();
    }
}

type Make = fn(&mut Rig);

const MALFORMED: [(&str, Make); 14] = [
    ("a request whose status points nowhere", |rig| {
        rig.descriptor(DESCRIPTORS, 0, (HEADER, 16, false), (1, 1));
        rig.descriptor(DESCRIPTORS, 1, (STATUS, 1, true), (3, QUEUE));
        rig.offer(0);
    }),
    ("a request whose status points to itself", |rig| {
        rig.descriptor(DESCRIPTORS, 0, (HEADER, 16, false), (1, 1));
        rig.descriptor(DESCRIPTORS, 1, (STATUS, 1, true), (3, 1));
        rig.offer(0);
    }),
    ("head out of range", |rig| rig.offer(QUEUE)),
    ("far head", |rig| rig.offer(u16::MAX)),
    ("a circle", |rig| {
        rig.descriptor(DESCRIPTORS, 0, (HEADER, 16, false), (1, 0));
        rig.offer(0);
    }),
    ("next out of range", |rig| {
        rig.descriptor(DESCRIPTORS, 0, (HEADER, 16, false), (1, QUEUE));
        rig.offer(0);
    }),
    ("to be read behind to be written", |rig| {
        rig.chain(DESCRIPTORS, 0, QUEUE, &[(DATA, 512, true), (HEADER, 16, false), (STATUS, 1, true)]);
        rig.offer(0);
    }),
    ("no status", |rig| {
        rig.chain(DESCRIPTORS, 0, QUEUE, &[(HEADER, 16, false)]);
        rig.offer(0);
    }),
    ("an empty status", |rig| {
        rig.chain(DESCRIPTORS, 0, QUEUE, &[(HEADER, 16, false), (STATUS, 0, true)]);
        rig.offer(0);
    }),
    ("2^32 bytes", |rig| {
        rig.chain(DESCRIPTORS, 0, QUEUE, &[(HEADER, 16, false), (DATA, u32::MAX, true), (STATUS, 1, true)]);
        rig.offer(0);
    }),
    ("an indirect table in an indirect table", |rig| {
        rig.descriptor(TABLE, 0, (TABLE, 16, false), (4, 0));
        rig.descriptor(DESCRIPTORS, 0, (TABLE, 16, false), (4, 0));
        rig.offer(0);
    }),
    ("an indirect table of half a descriptor", |rig| {
        rig.descriptor(DESCRIPTORS, 0, (TABLE, 24, false), (4, 0));
        rig.offer(0);
    }),
    ("an indirect circle", |rig| {
        rig.descriptor(TABLE, 0, (HEADER, 1, false), (1, 0));
        rig.descriptor(DESCRIPTORS, 0, (TABLE, 0xf_fff0, false), (4, 0));
        rig.offer(0);
    }),
    ("available index too far", |rig| rig.poke(AVAILABLE + 2, &[QUEUE.to_le_bytes()[0] + 1, 0])),
];

#[test]
fn malformed_chains_end_in_needs_reset() {
    for (name, make) in MALFORMED {
        let mut rig = Rig::new();
        make(&mut rig);
        rig.kick();
        rig.until_needs_reset();
        assert_eq!(rig.used_index(), 0, "{name}");
        rig.kick();
        rig.assert_recovers();
    }
}

#[test]
fn a_header_that_is_too_short_fails_the_request() {
    for (name, len) in [("15 bytes", 15), ("nothing", 0)] {
        let mut rig = Rig::new();
        rig.submit(&[(HEADER, len, false), (STATUS, 1, true)]);
        rig.wait();
        assert_eq!(rig.peek(STATUS, 1), [1], "{name}");
    }
}

/// A wrong place is noticed when the driver says that it runs.
#[test]
fn queues_at_impossible_places_end_in_needs_reset() {
    for (name, register, value) in [
        ("descriptors unaligned", reg::DESC, DESCRIPTORS + 8),
        ("available ring unaligned", reg::DRIVER, AVAILABLE + 1),
        ("used ring unaligned", reg::DEVICE, USED + 2),
        ("available ring nowhere", reg::DRIVER, 0x10_0000),
        ("descriptors wrap", reg::DESC, u64::MAX - 15),
        ("used ring at zero", reg::DEVICE, 0),
    ] {
        let mut rig = Rig::cold(disk(), false);
        crate::pci::PciFunction::config_write(&*rig.function, 4, &[6, 0]);
        rig.write8(reg::STATUS, 3);
        rig.accept(rig.offered());
        rig.write8(reg::STATUS, 0xb);
        rig.write16(reg::ENABLE, 0);
        rig.place(QUEUE, &[(register, value)]);
        rig.write8(reg::STATUS, 0xf);
        until(name, || rig.status() == 0x4f);
        rig.assert_recovers();
    }
}
