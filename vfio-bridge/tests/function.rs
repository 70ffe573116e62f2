//! An assigned function over a device that lives in memory.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

#[path = "common/function.rs"]
mod common;

use std::sync::atomic::Ordering;

use common::{MASTER, MEMORY, OFF, Rig, SOURCE, offer, read16, read32, write16, write32};
use devices::pci::{BarRange, PciFunction as _};
use iommu_core::Capabilities;
use proptest::prelude::*;
use rustix::io::Errno;
use vfio_bridge::caps::Offer;
use vfio_bridge::function::Notice;
use vfio_bridge::function_file::irq;
use vfio_bridge::testkit::{Call, Did, Failure, Model, place};

const COMMAND: u16 = 4;
const BAR0: u16 = 0x10;
const BAR2: u16 = 0x18;
/// Where synthesised capabilities are: the first gaps.
const PASID: u16 = 0x100;
const ATS: u16 = 0x110;
const PRI: u16 = 0x120;
const RESET: u16 = 1 << 15;

/// Bytes that lead to the device: gaps between capabilities, and what is in those of vendors.
fn leads(at: u16) -> bool {
    let ranges = [
        place::POWER + 8..place::MSI,
        place::MSI + 24..place::MSIX,
        place::MSIX + 12..place::EXPRESS,
        place::EXPRESS + 0x3c..place::VENDOR,
        place::VENDOR + 2..place::VENDOR + 8,
        place::VENDOR + 8..place::HIDDEN,
        place::VENDOR_EXTENDED + 8..place::VENDOR_EXTENDED + 16,
    ];
    ranges.iter().any(|range| range.contains(&at))
}

/// (name, offset, expected)
#[test]
fn the_guest_sees_what_it_may() {
    let (_rig, function) = Rig::endpoint();
    let rows = [
        ("ids", 0x00, 0x10f0_1af4),
        ("off, with a list", COMMAND, 0x0010_0000),
        ("class", 0x08, 0x0880_0001),
        ("header type 0", 0x0c, 0),
        ("a 64-bit BAR", BAR2, 4),
        ("no I/O BAR", 0x20, 0),
        ("subsystem", 0x2c, 0x0001_1af4),
        ("no ROM", 0x30, 0),
        ("first capability", 0x34, 0x40),
        ("no interrupt pin", 0x3c, 0),
        ("power states without effect", place::POWER, 0x0003_5001),
        ("no soft reset", place::POWER + 4, 8),
        ("MSI", place::MSI, 0x0186_7005),
        ("MSI-X", place::MSIX, 0x0003_8011),
        ("its table", place::MSIX + 4, 0x1002),
        ("an integrated endpoint", place::EXPRESS, 0x0092_c010),
        ("with reset", place::EXPRESS + 4, 0x1000_8001),
        ("the device's controls", place::EXPRESS + 8, 0x2810),
        ("no link", place::EXPRESS + 0xc, 0),
        ("end-end prefixes", place::EXPRESS + 0x24, 0x0060_0000),
        ("a vendor's, the last", place::VENDOR, 0x0008_0009),
        ("what is in it", place::VENDOR + 4, 0x5555_5555),
        ("a hidden one", place::HIDDEN, 0),
        ("what follows it", 0xf0, 0),
        ("PASID, first", PASID, 0x1101_001b),
        ("20 bits, privileged", PASID + 4, 0x1404),
        ("ATS, off", ATS, 0x1201_000f),
        ("page-aligned, as deep", ATS + 4, 0x25),
        ("PRI", PRI, 0x2001_0013),
        ("stopped, with PASID", PRI + 4, 0x8100_0000),
        ("capacity", PRI + 8, 64),
        ("no SR-IOV", place::SR_IOV, 0),
        ("nor what is in it", place::SR_IOV + 4, 0),
        ("a vendor's extended one", place::VENDOR_EXTENDED, 0x2401_000b),
        ("a serial number, the last", place::SERIAL, 0x0001_0003),
        ("what is in it", place::SERIAL + 4, 0x1111_2222),
        ("the end", 0xffc, 0),
    ];
    for (name, offset, expected) in rows {
        assert_eq!(read32(&function, offset), expected, "{name}: {:#x}", read32(&function, offset));
    }
}

#[test]
fn what_is_not_offered_is_not_there() {
    let only = |capabilities| Offer { capabilities, ..offer() };
    let (none, all) = (Capabilities::NONE, offer().capabilities);
    // (name, offer, ids at 0x100, 0x110, 0x120)
    let rows = [
        ("nothing", none, [0, 0, 0]),
        ("PASID only", Capabilities { pasid_bits: 16, ..none }, [0x1b, 0, 0]),
        ("no page requests", Capabilities { page_requests: false, ..all }, [0x1b, 0xf, 0]),
        ("page requests need ATS", Capabilities { device_tlb: false, ..all }, [0x1b, 0, 0]),
    ];
    for (name, capabilities, ids) in rows {
        let rig = Rig::with(Model::endpoint());
        let function = rig.build(&only(capabilities)).unwrap();
        let found = [PASID, ATS, PRI].map(|at| read16(&function, at));
        assert_eq!(found, ids, "{name}");
        let prefix = read32(&function, place::EXPRESS + 0x24) != 0;
        assert_eq!(prefix, capabilities.pasid_bits > 0, "{name}");
    }
    // Without room for them in an old device, none is made up.
    let mut old = Model::endpoint();
    old.config.truncate(256);
    old.config[usize::from(place::EXPRESS)] = 0x0c;
    let (_rig, function) = Rig::of(old);
    assert_eq!((read32(&function, 0x100), read32(&function, place::EXPRESS)), (0, 0));
}

/// Every access of every width, at every offset: only what leads to the device gets there, and no read-only bit moves.
#[test]
fn accesses_of_all_widths_at_all_offsets_are_taken() {
    for width in [1, 2, 3, 4, 8] {
        let (rig, function) = Rig::endpoint();
        let mut before = [0; 4096];
        function.config_read(0, &mut before[..]);
        for pattern in [0xff, 0x00, 0x5a] {
            for offset in 0..=4096 - u16::try_from(width).unwrap() {
                function.config_write(offset, &vec![pattern; width]);
                let mut data = vec![0; width];
                function.config_read(offset, &mut data);
            }
        }
        for at in rig.device.written() {
            assert!(leads(at), "width {width}: {at:#x}");
        }
        let mut after = [0; 4096];
        function.config_read(0, &mut after[..]);
        let constant = [0..4, 8..0xc, 0x2c..0x35, 0x3d..0x44, 0xd0..0x106, 0x110..0x116, 0x128..0x12c];
        for range in constant {
            assert_eq!(before[range.clone()], after[range.clone()], "width {width}: {range:x?}");
        }
        assert_eq!(rig.slots.shown(), [], "memory is off at the end");
    }
}

#[test]
fn bars_tell_their_size_and_move() {
    let (rig, function) = Rig::endpoint();
    for (bar, expected) in
        [(BAR0, 0xffff_f000), (BAR2, 0xffff_0004), (BAR2 + 4, u32::MAX), (0x14, 0), (0x20, 0)]
    {
        write32(&function, bar, u32::MAX);
        assert_eq!(read32(&function, bar), expected, "{bar:#x}");
    }
    assert_eq!(function.bars(), [None; 6], "memory is off");
    write32(&function, BAR0, 0xc000_0000);
    write32(&function, BAR2, 0xc001_0000);
    write32(&function, BAR2 + 4, 0);
    assert_eq!(rig.slots.shown(), []);
    write16(&function, COMMAND, MEMORY);
    assert_eq!(rig.device.command(), OFF | MEMORY);
    let range = |start, len| Some(BarRange { start, len });
    assert_eq!(function.bars()[0], range(0xc000_0000, 0x1000));
    assert_eq!(function.bars()[2], range(0xc001_0000, 0x1_0000));
    // Around the pages of MSI-X.
    let shown = [(0xc000_0000, 0x1000), (0xc001_0000, 0x1000), (0xc001_3000, 0xd000)];
    assert_eq!(rig.slots.shown(), shown);
    // (name, BAR, address, shown)
    let second = [(0xc001_0000, 0x1000), (0xc001_3000, 0xd000)];
    type Row = (&'static str, u32, Vec<(u64, u64)>);
    let rows: [Row; 5] = [
        ("elsewhere", 0xc002_0000, [vec![second[0], second[1]], vec![(0xc002_0000, 0x1000)]].concat()),
        ("over the other BAR", 0xc001_0000, second.to_vec()),
        ("over memory", 0x1000, second.to_vec()),
        ("beyond the window", 0xffff_f000, second.to_vec()),
        ("back", 0xc000_0000, shown.to_vec()),
    ];
    for (name, address, expected) in rows {
        write32(&function, BAR0, address);
        assert_eq!(rig.slots.shown(), expected, "{name}");
    }
    write16(&function, COMMAND, MASTER);
    assert_eq!((rig.slots.shown(), function.bars()), (vec![], [None; 6]));
    assert_eq!(rig.device.command(), OFF | MASTER);
}

/// Two BARs that change places while memory is on.
#[test]
fn bars_change_places() {
    let model = Model {
        bars: [0x1000, 0x1000, 0, 0, 0, 0],
        mappable: [true; 6],
        vectors: [0, 0],
        ..Model::endpoint()
    };
    let (rig, function) = Rig::of(model);
    write32(&function, BAR0, 0xc000_0000);
    write32(&function, 0x14, 0xc000_1000);
    write16(&function, COMMAND, MEMORY);
    let mut both = [0xc000_1000u32.to_le_bytes(), 0xc000_0000u32.to_le_bytes()].concat();
    function.config_write(BAR0, &both);
    assert_eq!(rig.slots.shown(), [(0xc000_0000, 0x1000), (0xc000_1000, 0x1000)]);
    both.fill(0);
    function.config_write(BAR0, &both);
    assert_eq!(rig.slots.shown(), []);
}

#[test]
fn trapped_accesses_reach_the_device_while_its_memory_is_on() {
    let (_rig, function) = Rig::endpoint();
    let read = |bar, offset| {
        let mut data = [0; 4];
        function.bar_read(bar, offset, &mut data);
        u32::from_le_bytes(data)
    };
    function.bar_write(0, 0x10, &[1; 4]);
    assert_eq!(read(0, 0x10), u32::MAX, "off");
    write16(&function, COMMAND, MEMORY);
    function.bar_write(0, 0x10, &[1; 4]);
    // (BAR, offset, expected)
    for (bar, offset, expected) in [
        (0, 0x10, 0x0101_0101),
        (0, 0, 0),
        (0, 0xffe, u32::MAX),
        (1, 0, u32::MAX),
        (4, 0, u32::MAX),
        (6, 0, u32::MAX),
        (2, 0x100c, 1),
        (2, 0x2000, 0),
        (2, u64::MAX - 1, u32::MAX),
    ] {
        assert_eq!(read(bar, offset), expected, "BAR {bar} at {offset:#x}");
    }
    // The device's own table stays as it is.
    function.bar_write(2, 0x1000, &[0xff; 8]);
    function.bar_write(2, 0x2000, &[0xff; 8]);
    assert_eq!((read(2, 0x1000), read(2, 0x2000)), (0xffff_fffc, 0));
}

/// Vector `n` sends 0x40 + n.
fn program(function: &vfio_bridge::function::AssignedFunction, vector: u64, masked: bool) {
    let at = 0x1000 + 16 * vector;
    function.bar_write(2, at, &0xfee0_1000u64.to_le_bytes());
    function.bar_write(2, at + 8, &(0x40 + u32::try_from(vector).unwrap()).to_le_bytes());
    function.bar_write(2, at + 12, &u32::from(masked).to_le_bytes());
}

const ENABLE: u16 = 1 << 15;
const MASK_ALL: u16 = 1 << 14;

fn with_msix() -> (Rig, std::sync::Arc<vfio_bridge::function::AssignedFunction>) {
    let (rig, function) = Rig::endpoint();
    write16(&function, COMMAND, MEMORY | MASTER);
    write16(&function, place::MSIX + 2, ENABLE | MASK_ALL);
    program(&function, 0, false);
    program(&function, 2, false);
    write16(&function, place::MSIX + 2, ENABLE);
    (rig, function)
}

#[test]
fn vectors_are_led_past_the_process() {
    let (rig, function) = with_msix();
    let did = rig.device.did();
    let expected =
        [Did::Command(OFF | MEMORY | MASTER), Did::Irqs(irq::MSIX, 0, 1), Did::Irqs(irq::MSIX, 2, 1)];
    assert_eq!(did[did.len() - 3..], expected, "one at first, then as the guest opens them");
    assert_eq!((rig.device.heard(irq::MSIX), rig.ways.open()), (2, 2));
    assert!(rig.device.signal(irq::MSIX, 2));
    assert_eq!((rig.ways.delivered(), function.serve(), rig.sent()), (vec![0x142], None, vec![]));
    assert!(!rig.device.signal(irq::MSIX, 1), "never opened");
    program(&function, 1, false);
    assert!(rig.device.signal(irq::MSIX, 1));
    assert_eq!(rig.ways.delivered(), [0x141]);
}

type Hold = fn(&Rig, &vfio_bridge::function::AssignedFunction, bool);

#[test]
fn held_vectors_wait_and_come_once() {
    let rows: [(&str, Hold); 3] = [
        ("mask", |_, f, held| f.bar_write(2, 0x102c, &u32::from(held).to_le_bytes())),
        ("all masked", |_, f, held| {
            write16(f, place::MSIX + 2, if held { ENABLE | MASK_ALL } else { ENABLE })
        }),
        ("bus mastering", |_, f, held| write16(f, COMMAND, if held { MEMORY } else { MEMORY | MASTER })),
    ];
    for (name, hold) in rows {
        let (rig, function) = with_msix();
        hold(&rig, &function, true);
        assert!(rig.device.signal(irq::MSIX, 2), "{name}");
        assert_eq!(rig.ways.delivered(), [0; 0], "{name}");
        assert_eq!((function.serve(), rig.sent()), (None, vec![]), "{name}");
        let mut pending = [0; 8];
        function.bar_read(2, 0x2000, &mut pending);
        assert_eq!(pending[0], 4, "{name}");
        hold(&rig, &function, false);
        assert_eq!((rig.sent(), rig.ways.open()), (vec![0x142], 2), "{name}");
        // Signalled while held, and not read until it is open again: the short way takes it.
        hold(&rig, &function, true);
        assert!(rig.device.signal(irq::MSIX, 2), "{name}");
        hold(&rig, &function, false);
        assert_eq!((rig.ways.delivered(), rig.sent()), (vec![0x142], vec![]), "{name}");
    }
}

#[test]
fn blocked_vectors_are_told_of_and_open_again() {
    let (rig, function) = with_msix();
    rig.remapper.block(true);
    assert_eq!(rig.ways.open(), 0);
    assert!(rig.device.signal(irq::MSIX, 0));
    assert_eq!((function.serve(), rig.sent()), (None, vec![]));
    assert_eq!(rig.remapper.faults.load(Ordering::Relaxed), 1);
    rig.remapper.block(false);
    assert_eq!(rig.ways.open(), 2);
    assert!(rig.device.signal(irq::MSIX, 0));
    assert_eq!(rig.ways.delivered(), [0x140]);
}

#[test]
fn without_short_ways_all_take_the_long_one() {
    let rig = Rig::with(Model::endpoint());
    rig.ways.none.store(true, Ordering::Relaxed);
    let function = rig.build(&offer()).unwrap();
    write16(&function, COMMAND, MASTER);
    write16(&function, place::MSIX + 2, ENABLE);
    program(&function, 3, false);
    assert!(rig.device.signal(irq::MSIX, 3));
    assert_eq!((function.serve(), rig.sent()), (None, vec![0x143]));
    write16(&function, place::MSIX + 2, 0);
    assert!(!rig.device.signal(irq::MSIX, 3), "switched off");
}

#[test]
fn a_kernel_that_cannot_add_vectors_gives_all_at_once() {
    let (rig, function) = Rig::of(Model { dynamic: false, ..Model::endpoint() });
    write16(&function, COMMAND, MASTER);
    write16(&function, place::MSIX + 2, ENABLE);
    program(&function, 3, false);
    assert_eq!(rig.device.did()[1..], [Did::Irqs(irq::MSIX, 0, 4)]);
    assert!(rig.device.signal(irq::MSIX, 3));
    assert_eq!(rig.ways.delivered(), [0x143]);
}

#[test]
fn messages_without_a_table_have_masks_too() {
    let (rig, function) = Rig::endpoint();
    write16(&function, COMMAND, MASTER);
    write32(&function, place::MSI + 4, 0xfee0_1000);
    write16(&function, place::MSI + 12, 0x40);
    write32(&function, place::MSI + 16, 1 << 1);
    // Four of eight.
    write16(&function, place::MSI + 2, 1 | 2 << 4);
    assert_eq!(rig.device.did().last(), Some(&Did::Irqs(irq::MSI, 0, 4)));
    assert_eq!(rig.ways.open(), 3);
    for vector in [0, 1, 3] {
        assert!(rig.device.signal(irq::MSI, vector));
    }
    assert_eq!((rig.ways.delivered(), function.serve()), (vec![0x140, 0x143], None));
    assert_eq!(read32(&function, place::MSI + 20), 1 << 1, "pending");
    write32(&function, place::MSI + 16, 0);
    assert_eq!((rig.sent(), read32(&function, place::MSI + 20)), (vec![0x141], 0));
    write16(&function, place::MSI + 2, 0);
    assert_eq!(rig.device.did(), [Did::IrqsOff(irq::MSI)]);
}

/// What a guest sees and what the device feels, in order.
#[test]
fn a_reset_stops_everything_first() {
    let (rig, function) = with_msix();
    write32(&function, BAR0, 0xc000_0000);
    write16(&function, PASID + 6, 1);
    write16(&function, PRI + 4, 1);
    assert_eq!(rig.slots.shown().len(), 1);
    let _ = rig.device.did();
    let control = read16(&function, place::EXPRESS + 8);
    write16(&function, place::EXPRESS + 8, control | RESET);
    assert_eq!(rig.device.did(), [Did::IrqsOff(irq::MSIX), Did::Command(OFF), Did::Reset]);
    assert_eq!((rig.side.resets.load(Ordering::Relaxed), rig.slots.shown(), rig.ways.open()), (1, vec![], 0));
    for (name, offset, expected) in [
        ("command", COMMAND, 0),
        ("control", place::EXPRESS + 8, 0x2810),
        ("MSI-X", place::MSIX + 2, 3),
        ("BAR", BAR0, 0),
        ("PASID", PASID + 6, 0),
        ("PRI", PRI + 4, 0),
        ("stopped", PRI + 6, 0x8100),
    ] {
        assert_eq!(read16(&function, offset), expected, "{name}");
    }
    function.reset();
    assert_eq!(rig.side.resets.load(Ordering::Relaxed), 2);
    drop(function);
    assert_eq!(
        rig.device.did()[2..],
        [Did::Command(OFF), Did::Reset, Did::Command(OFF), Did::IrqsOff(3), Did::IrqsOff(4)]
    );
}

#[test]
fn a_device_that_cannot_be_reset_says_so() {
    let (rig, function) = Rig::of(Model { can_reset: false, ..Model::endpoint() });
    assert_eq!(read32(&function, place::EXPRESS + 4), 0x8001);
    write16(&function, COMMAND, MEMORY | MASTER);
    write16(&function, place::EXPRESS + 8, RESET);
    assert_eq!(read16(&function, COMMAND), MEMORY | MASTER, "nothing happened");
    function.reset();
    assert_eq!((rig.device.command(), rig.side.resets.load(Ordering::Relaxed)), (OFF, 0));
}

#[test]
fn a_busy_device_is_reset_a_little_later() {
    let (rig, function) = Rig::endpoint();
    rig.kernel.fail(Failure { times: 3, ..Failure::next(Call::Reset, Errno::AGAIN) });
    function.reset();
    assert_eq!((rig.kernel.count(Call::Reset), rig.device.did().last()), (4, Some(&Did::Reset)));
}

#[test]
fn a_stopped_device_stays_so_until_it_is_reset() {
    let (rig, function) = Rig::endpoint();
    write16(&function, COMMAND, MEMORY | MASTER);
    function.stop_dma();
    assert_eq!(rig.device.command(), OFF | MEMORY);
    write16(&function, COMMAND, MEMORY);
    write16(&function, COMMAND, MEMORY | MASTER);
    assert_eq!((rig.device.command(), read16(&function, COMMAND)), (OFF | MEMORY, MEMORY | MASTER));
    function.reset();
    write16(&function, COMMAND, MASTER);
    assert_eq!(rig.device.command(), OFF | MASTER);
}

#[test]
fn notices_are_told_once_and_what_is_gone_is_all_ones() {
    for (kind, expected) in [(irq::ERROR, Notice::Error), (irq::REQUEST, Notice::Request)] {
        let (rig, function) = with_msix();
        write32(&function, BAR0, 0xc000_0000);
        assert_eq!(function.serve(), None);
        assert!(rig.device.signal(kind, 0));
        assert_eq!((function.serve(), function.serve()), (Some(expected), None));
        function.remove();
        function.remove();
        assert!(!function.is_there());
        assert_eq!((read32(&function, 0), read32(&function, place::VENDOR)), (u32::MAX, u32::MAX));
        assert_eq!((function.bars(), rig.slots.shown(), rig.ways.open()), ([None; 6], vec![], 0));
        assert_eq!((rig.device.command(), rig.device.heard(irq::MSIX)), (OFF, 0));
        let _ = rig.device.did();
        write16(&function, COMMAND, MASTER | MEMORY);
        function.bar_write(0, 0, &[1]);
        function.reset();
        function.stop_dma();
        let mut data = [0; 2];
        function.bar_read(0, 0, &mut data);
        assert_eq!((rig.device.did(), data), (vec![], [0xff; 2]));
    }
}

#[test]
fn what_cannot_be_assigned_is_refused() {
    let mut bridge = Model::endpoint();
    bridge.config[0xe] = 1;
    let error = Rig::with(bridge).build(&offer()).err().unwrap();
    assert_eq!(error.to_string(), format!("assign a bridge on device {SOURCE} failed"));
    let mut many = Model::endpoint();
    many.config[0xe] = 0x80;
    assert!(Rig::with(many).build(&offer()).is_ok(), "one of several functions");
}

/// While the host does not switch memory on, nothing of it is shown.
#[test]
fn memory_that_is_not_on_is_not_shown() {
    let (rig, function) = Rig::endpoint();
    write32(&function, BAR0, 0xc000_0000);
    rig.kernel.fail(Failure::next(Call::RegionWrite, Errno::IO));
    write16(&function, COMMAND, MEMORY);
    assert_eq!(rig.slots.shown(), []);
}

#[derive(Clone, Debug)]
enum Step {
    Write(u16, Vec<u8>),
    Read(u16, usize),
    BarWrite(u8, u64, Vec<u8>),
    BarRead(u8, u64, usize),
    Signal(u32, u32),
    Serve,
    Block(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = || prop::collection::vec(any::<u8>(), 1..9);
    let telling = prop_oneof![
        Just(COMMAND),
        Just(BAR0),
        Just(BAR2),
        Just(place::MSI + 2),
        Just(place::MSIX + 2),
        Just(place::EXPRESS + 8),
        0u16..4088
    ];
    let offset = prop_oneof![0xff0u64..0x1050, 0x1ff8u64..0x2010, any::<u64>()];
    prop_oneof![
        (telling, bytes()).prop_map(|(at, data)| Step::Write(at, data)),
        (0u16..4088, 1usize..9).prop_map(|(at, len)| Step::Read(at, len)),
        (0u8..7, offset.clone(), bytes()).prop_map(|(bar, at, data)| Step::BarWrite(bar, at, data)),
        (0u8..7, offset, 1usize..9).prop_map(|(bar, at, len)| Step::BarRead(bar, at, len)),
        (1u32..3, 0u32..8).prop_map(|(kind, number)| Step::Signal(kind, number)),
        Just(Step::Serve),
        any::<bool>().prop_map(Step::Block),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// No panic; nothing is shown with memory off; no message leaves with bus mastering off; only what leads to the
    /// device is written there.
    #[test]
    fn hostile_guests(steps in prop::collection::vec(step(), 0..120)) {
        let (rig, function) = Rig::endpoint();
        for step in steps {
            match step {
                Step::Write(at, data) => function.config_write(at, &data),
                Step::Read(at, len) => function.config_read(at, &mut vec![0; len]),
                Step::BarWrite(bar, at, data) => function.bar_write(bar, at, &data),
                Step::BarRead(bar, at, len) => function.bar_read(bar, at, &mut vec![0; len]),
                Step::Signal(kind, number) => drop(rig.device.signal(kind, number)),
                Step::Serve => drop(function.serve()),
                Step::Block(blocks) => rig.remapper.block(blocks),
            }
            let command = read16(&function, COMMAND);
            prop_assert_eq!(rig.device.command(), command & (MEMORY | MASTER | 0x140) | OFF);
            prop_assert!(command & MEMORY != 0 || rig.slots.shown().is_empty());
            let reached = |(start, _): &(u64, u64)| rig.kernel.lookup_bar(0, *start).is_some();
            prop_assert!(rig.slots.shown().iter().all(reached));
            let mapped = rig.kernel.count(Call::IoasMapFile) - rig.kernel.count(Call::IoasUnmap);
            prop_assert_eq!(mapped, rig.slots.shown().len());
            prop_assert!(command & MASTER != 0 || rig.ways.open() == 0);
            prop_assert!(rig.device.heard(irq::MSI) == 0 || rig.device.heard(irq::MSIX) == 0);
        }
        for at in rig.device.written() {
            prop_assert!(leads(at), "{:#x}", at);
        }
        drop(function);
        prop_assert_eq!((rig.slots.shown(), rig.ways.open(), rig.device.command()), (vec![], 0, OFF));
    }
}
