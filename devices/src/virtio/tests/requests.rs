//! What a disk does with good requests, and with those that it refuses.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::rig::{
    AVAILABLE, BUFFERS, Buffer, DESCRIPTORS, ISR, QUEUE, Rig, USED, WITHOUT_EVENT_IDX, disk, header, sector,
    until,
};
use crate::virtio::blk::spec::feature;
use crate::virtio::blk::{Disk, MemoryDisk};
use zerocopy::IntoBytes;

const DATA: u64 = BUFFERS + 0x1000;
const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;

#[test]
fn reads_and_writes_through_any_buffers() {
    let shapes: [(&str, &[u32]); 6] = [
        ("one sector", &[512]),
        ("a page and more", &[0x1800]),
        ("odd pieces", &[100, 412, 1, 511]),
        ("an empty piece", &[0, 512, 0]),
        ("as many as fit", &[64; 8]),
        ("more than a bounce buffer holds", &[0x3_0000, 0x1_0200]),
    ];
    for (name, lens) in shapes {
        let mut rig = Rig::new();
        let buffers = |write| {
            let mut at = DATA;
            let mut place = |len: u32| {
                let start = at;
                at += u64::from(len) + 8;
                (start, len, write)
            };
            lens.iter().map(|len| place(*len)).collect::<Vec<Buffer>>()
        };
        let total: u32 = lens.iter().sum();
        let expected: Vec<u8> = (7..).flat_map(sector).take(total as usize).collect();
        assert_eq!(rig.request(READ, 7, &buffers(true)), 0, "{name}: read");
        let gather = |rig: &Rig| -> Vec<u8> {
            buffers(true).iter().flat_map(|(at, len, _)| rig.peek(*at, *len as usize)).collect()
        };
        assert!(gather(&rig) == expected, "{name}: contents read");
        let wanted: Vec<u8> = expected.iter().map(|byte| byte ^ 0x5a).collect();
        let mut rest = wanted.as_slice();
        for (at, len, _) in buffers(false) {
            let (part, more) = rest.split_at(len as usize);
            rig.poke(at, part);
            rest = more;
        }
        assert_eq!(rig.request(WRITE, 1000, &buffers(false)), 0, "{name}: write");
        assert_eq!(rig.request(READ, 1000, &buffers(true)), 0, "{name}: read back");
        assert!(gather(&rig) == wanted, "{name}: contents written");
        assert!(rig.iommu.faults.lock().is_empty(), "{name}");
    }
}

#[test]
fn every_request_has_its_status() {
    let sectors = |n: u32| -> Vec<Buffer> { vec![(DATA, n * 512, true)] };
    let out = |len: u32| -> Vec<Buffer> { vec![(DATA, len, false)] };
    type Row = (&'static str, bool, u32, u64, Vec<Buffer>, u8);
    let rows: [Row; 16] = [
        ("last sector", false, READ, 4095, sectors(1), 0),
        ("beyond the end", false, READ, 4095, sectors(2), 1),
        ("far beyond", false, READ, u64::MAX, sectors(1), 1),
        ("nothing", false, READ, 0, vec![], 0),
        ("half a sector", false, READ, 0, vec![(DATA, 256, true)], 1),
        ("write at the end", false, WRITE, 4095, out(512), 0),
        ("write beyond", false, WRITE, 4095, out(1024), 1),
        ("write to a read-only disk", true, WRITE, 0, out(512), 1),
        ("read of a read-only disk", true, READ, 0, sectors(1), 0),
        ("flush", false, FLUSH, 0, vec![], 0),
        ("get-id", false, GET_ID, 0, vec![(DATA, 20, true)], 0),
        ("get-id with little room", false, GET_ID, 0, vec![(DATA, 4, true)], 0),
        ("SCSI command", false, 2, 0, sectors(1), 2),
        ("write zeroes", false, 13, 0, out(16), 2),
        ("discard of half a segment", false, DISCARD, 0, out(8), 1),
        ("discard on a read-only disk", true, DISCARD, 0, out(16), 1),
    ];
    for (name, read_only, kind, at, data, expected) in rows {
        let mut rig = Rig::with(disk(), read_only);
        assert_eq!(rig.request(kind, at, &data), expected, "{name}");
        assert_eq!(rig.status(), 0xf, "{name}");
    }
    let mut rig = Rig::new();
    rig.request(GET_ID, 0, &[(DATA, 20, true)]);
    assert_eq!(rig.peek(DATA, 20), b"a-disk\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn discards_are_judged_whole() {
    let segment = |sector: u64, sectors: u32, flags: u32| {
        [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
    };
    type Row = (&'static str, Vec<Vec<u8>>, u8, bool);
    let rows: [Row; 6] = [
        ("one", vec![segment(0, 8, 0)], 0, true),
        ("two", vec![segment(0, 8, 0), segment(4088, 8, 0)], 0, true),
        ("the second is beyond the end", vec![segment(0, 8, 0), segment(4089, 8, 0)], 1, false),
        ("the second has flags", vec![segment(0, 8, 0), segment(8, 8, 1)], 2, false),
        ("too long", vec![segment(0, u32::MAX, 0)], 1, false),
        ("too many", vec![segment(0, 8, 0); 33], 1, false),
    ];
    for (name, segments, expected, gone) in rows {
        let mut rig = Rig::new();
        let bytes = segments.concat();
        rig.poke(DATA, &bytes);
        let len = u32::try_from(bytes.len()).unwrap();
        assert_eq!(rig.request(DISCARD, 0, &[(DATA, len, false)]), expected, "{name}");
        rig.request(READ, 1, &[(DATA, 512, true)]);
        let content = if gone { vec![0; 512] } else { sector(1) };
        assert_eq!(rig.peek(DATA, 512), content, "{name}");
    }
}

/// How many bytes the used ring says were written: what is said to be written is.
#[test]
fn used_lengths() {
    for (name, kind, data, expected) in [
        ("read", READ, vec![(DATA, 1024, true)], 1025),
        ("write", WRITE, vec![(DATA, 512, false)], 1),
        ("get-id", GET_ID, vec![(DATA, 20, true)], 21),
        ("get-id with much room", GET_ID, vec![(DATA, 512, true)], 20),
        ("failed read", READ, vec![(DATA, 100, true)], 0),
    ] {
        let mut rig = Rig::new();
        let buffers = rig.prepare(kind, 0, &data);
        let head = rig.submit(&buffers);
        assert_eq!(rig.wait(), (head, expected), "{name}");
    }
}

/// The device looks at bytes, not at buffers (§2.7.4.1).
#[test]
fn framing_is_free() {
    let rows: [(&str, &[u32], &[u32]); 3] = [
        ("all in two buffers", &[16], &[513]),
        ("header in pieces", &[1, 7, 8], &[512, 1]),
        ("status behind an empty buffer", &[16], &[500, 13, 0]),
    ];
    for (name, readable, writable) in rows {
        let mut rig = Rig::new();
        rig.poke(BUFFERS, header(READ, 9).as_bytes());
        let mut buffers = Vec::new();
        let (mut at, mut to) = (BUFFERS, DATA);
        for len in readable {
            buffers.push((at, *len, false));
            at += u64::from(*len);
        }
        for len in writable {
            buffers.push((to, *len, true));
            to += u64::from(*len);
        }
        rig.submit(&buffers);
        rig.wait();
        assert_eq!(rig.peek(DATA, 513), [sector(9), vec![0]].concat(), "{name}");
    }
}

#[test]
fn indirect_tables_work() {
    let mut rig = Rig::new();
    let buffers = rig.prepare(READ, 5, &[(DATA, 256, true), (DATA + 0x2000, 256, true)]);
    // Crosses a page: each half is translated on its own.
    let table = BUFFERS + 0x4000 - 32;
    rig.chain(table, 0, 64, &buffers);
    rig.descriptor(DESCRIPTORS, 0, (table, 64, false), (4, 0));
    rig.offer(0);
    rig.kick();
    assert_eq!(rig.wait(), (0, 513));
    assert_eq!(rig.peek(DATA + 0x2000, 256), sector(5)[..256]);
}

/// A driver that shrinks its queue may still make the chains that it made for a longer one.
#[test]
fn indirect_tables_may_be_longer_than_the_queue() {
    for (name, pieces, status) in [("longer than the queue", 64_u16, 0xf), ("too long", 1023, 0x4f)] {
        let mut rig = Rig::new();
        rig.poke(BUFFERS, header(READ, 0).as_bytes());
        let piece = |n: u16| (DATA + u64::from(n) * 8, 8, true);
        let mut buffers: Vec<Buffer> = vec![(BUFFERS, 16, false)];
        buffers.extend((0..pieces).map(piece));
        buffers.push((BUFFERS + 0x100, 1, true));
        rig.chain(BUFFERS + 0x4000, 0, u16::MAX, &buffers);
        let len = u32::try_from(buffers.len() * 16).unwrap();
        rig.descriptor(DESCRIPTORS, 0, (BUFFERS + 0x4000, len, false), (4, 0));
        rig.offer(0);
        rig.kick();
        until(name, || rig.used_index() == 1 || rig.status() != 0xf);
        assert_eq!(rig.status(), status, "{name}");
    }
}

#[test]
fn a_queue_goes_round_many_times() {
    let mut rig = Rig::new();
    for round in 0..200_u64 {
        assert_eq!(rig.request(READ, round, &[(DATA, 512, true)]), 0);
        assert_eq!(rig.peek(DATA, 512), sector(round));
    }
    assert_eq!(rig.used_index(), 200);
}

#[test]
fn requests_that_come_together_are_all_served() {
    let mut rig = Rig::new();
    for slot in 0..5_u16 {
        let at = BUFFERS + 0x1_0000 + u64::from(slot) * 0x1000;
        rig.poke(at, header(READ, slot.into()).as_bytes());
        let chain = [(at, 16, false), (at + 0x200, 512, true), (at + 0x100, 1, true)];
        rig.chain(DESCRIPTORS, slot * 3, QUEUE, &chain);
        rig.offer(slot * 3);
    }
    rig.kick();
    for slot in 0..5_u16 {
        assert_eq!(rig.wait(), (slot * 3, 513));
        let at = BUFFERS + 0x1_0000 + u64::from(slot) * 0x1000;
        assert_eq!(rig.peek(at + 0x200, 512), sector(slot.into()));
    }
}

#[test]
fn interrupts_come_as_the_driver_wants_them() {
    type Ask = fn(&Rig);
    let rows: [(&str, u64, Ask, usize); 4] = [
        ("event index: at once", u64::MAX, |_| {}, 1),
        ("event index: much later", u64::MAX, |rig| rig.poke(AVAILABLE + 4 + 32, &[9, 0]), 0),
        ("flags: always", WITHOUT_EVENT_IDX, |_| {}, 1),
        ("flags: not", WITHOUT_EVENT_IDX, |rig| rig.poke(AVAILABLE, &[1, 0]), 0),
    ];
    for (name, features, ask, expected) in rows {
        let mut rig = Rig::cold(disk(), false);
        rig.bring_up(features);
        ask(&rig);
        rig.request(FLUSH, 0, &[]);
        // The interrupt follows the used buffer, and the next rearming follows the interrupt.
        let rearmed = |rig: &Rig| match features {
            u64::MAX => rig.peek(USED + 4 + 128, 2) == [1, 0],
            _ => rig.peek(USED, 2) == [0, 0],
        };
        until("rearmed", || rearmed(&rig));
        assert_eq!(rig.interrupts(), vec![1; expected], "{name}");
        assert_eq!(rig.read8(ISR), u8::from(expected > 0), "{name}");
        assert_eq!(rig.read8(ISR), 0, "{name}: reading clears");
    }
}

/// Takes note of flushes, and fails on demand.
#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Vec<&'static str>>>, bool);

impl Disk for Notes {
    fn len(&self) -> u64 {
        1 << 20
    }
    fn read(&mut self, _: u64, _: &mut [u8]) -> io::Result<()> {
        self.note("read")
    }
    fn write(&mut self, _: u64, _: &[u8]) -> io::Result<()> {
        self.note("write")
    }
    fn flush(&mut self) -> io::Result<()> {
        self.note("flush")
    }
    fn discard(&mut self, _: u64, _: u64) -> io::Result<()> {
        self.note("discard")
    }
}

impl Notes {
    fn note(&self, what: &'static str) -> io::Result<()> {
        self.0.lock().push(what);
        if self.1 { Err(io::ErrorKind::Other.into()) } else { Ok(()) }
    }
}

#[test]
fn writes_are_durable_unless_the_driver_can_flush() {
    for (features, expected) in [(u64::MAX, vec!["write"]), (!feature::FLUSH, vec!["write", "flush"])] {
        let notes = Notes::default();
        let mut rig = Rig::cold(notes.clone(), false);
        rig.bring_up(features);
        assert_eq!(rig.request(WRITE, 0, &[(DATA, 512, false)]), 0);
        assert_eq!(*notes.0.lock(), expected);
    }
}

#[test]
fn a_failing_disk_fails_requests_and_nothing_else() {
    let mut rig = Rig::with(Notes(Arc::default(), true), false);
    rig.poke(BUFFERS + 0x8000, &[0; 16]);
    for (kind, data) in [
        (READ, vec![(DATA, 512, true)]),
        (WRITE, vec![(DATA, 512, false)]),
        (FLUSH, vec![]),
        (DISCARD, vec![(BUFFERS + 0x9000, 16, false)]),
    ] {
        rig.poke(BUFFERS + 0x9008, &[8]);
        assert_eq!(rig.request(kind, 0, &data), 1, "{kind}");
        assert_eq!(rig.status(), 0xf);
    }
}

#[test]
fn a_disk_of_broken_sectors_ends_before_the_rest() {
    let mut rig = Rig::with(MemoryDisk(vec![1; 1300]), false);
    assert_eq!(rig.request(READ, 1, &[(DATA, 512, true)]), 0);
    assert_eq!(rig.request(READ, 2, &[(DATA, 512, true)]), 1);
}
