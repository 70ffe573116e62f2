//! Other devices of a guest's reach the memory of an assigned one where the guest sees it, and only while it is there.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

#[path = "common/function.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod common;

use std::sync::Arc;

use common::{MASTER, MEMORY, Rig, offer, read16, write16, write32};
use devices::pci::PciFunction as _;
use rustix::io::Errno;
use vfio_bridge::choice::Bridge;
use vfio_bridge::function::AssignedFunction;
use vfio_bridge::function_file::FunctionFile as _;
use vfio_bridge::testkit::{Call, Failure, FakeFunction, FakeKernel, Model, place};
use vfio_bridge::{ContainerIommu, NestedIommu, ShadowIommu};

const COMMAND: u16 = 4;
const BAR0: u16 = 0x10;
const BAR2: u16 = 0x18;
const RESET: u16 = 1 << 15;

/// Where the BARs are in these tests.
const FIRST: u32 = 0xc000_0000;
const SECOND: u32 = 0xc001_0000;
const ELSEWHERE: u32 = 0xc002_0000;

fn switch_on(function: &AssignedFunction) {
    write32(function, BAR0, FIRST);
    write32(function, BAR2, SECOND);
    write16(function, COMMAND, MEMORY | MASTER);
}

/// What the other device finds at an address: BAR and offset.
fn found(rig: &Rig, address: u32) -> Option<(u32, u64)> {
    rig.kernel.lookup_bar(0, address.into())
}

/// The memory that is mapped, in and out.
fn calls(rig: &Rig) -> (usize, usize) {
    (rig.kernel.count(Call::IoasMapFile), rig.kernel.count(Call::IoasUnmap))
}

#[test]
fn what_the_guest_sees_other_devices_reach() {
    let (rig, function) = Rig::endpoint();
    assert_eq!((rig.kernel.count(Call::Share), calls(&rig)), (3, (0, 0)), "BAR 2 around its MSI-X");
    switch_on(&function);
    // (name, address, BAR and offset)
    let rows = [
        ("BAR 0", FIRST, Some((0, 0))),
        ("its last byte", FIRST + 0xfff, Some((0, 0xfff))),
        ("behind it", FIRST + 0x1000, None),
        ("BAR 2", SECOND, Some((2, 0))),
        ("vectors", SECOND + 0x1000, None),
        ("pending bits", SECOND + 0x2000, None),
        ("BAR 2 behind them", SECOND + 0x3010, Some((2, 0x3010))),
        ("the end of BAR 2", SECOND + 0x1_0000, None),
    ];
    for (name, address, expected) in rows {
        assert_eq!(found(&rig, address), expected, "{name}");
    }
    assert_eq!(calls(&rig), (3, 0));
    drop(function);
    assert_eq!((found(&rig, FIRST), found(&rig, SECOND), calls(&rig)), (None, None, (3, 3)));
}

type Act = fn(&Rig, &AssignedFunction);
type Row = (&'static str, &'static [Act], bool, (usize, usize));

/// (name, what happens, whether BAR 0 is where it was, maps and unmaps that it takes)
#[test]
fn other_devices_follow_the_guest() {
    const OFF: Act = |_, f| write16(f, COMMAND, MASTER);
    const ON: Act = |_, f| write16(f, COMMAND, MEMORY | MASTER);
    let rows: [Row; 9] = [
        ("nothing", &[], true, (0, 0)),
        ("bus mastering", &[|_, f| write16(f, COMMAND, MEMORY), ON], true, (0, 0)),
        ("moved", &[|_, f| write32(f, BAR0, ELSEWHERE)], false, (1, 1)),
        (
            "moved and back",
            &[|_, f| write32(f, BAR0, ELSEWHERE), |_, f| write32(f, BAR0, FIRST)],
            true,
            (2, 2),
        ),
        ("moved to where no device may be", &[|_, f| write32(f, BAR0, 0x1000)], false, (0, 1)),
        ("off", &[OFF], false, (0, 3)),
        ("off and on", &[OFF, ON], true, (3, 3)),
        (
            "reset",
            &[|_, f| write16(f, place::EXPRESS + 8, read16(f, place::EXPRESS + 8) | RESET)],
            false,
            (0, 3),
        ),
        ("reset and on", &[|_, f| f.reset(), |_, f| switch_on(f)], true, (3, 3)),
    ];
    for (name, acts, stays, (maps, unmaps)) in rows {
        let (rig, function) = Rig::endpoint();
        switch_on(&function);
        let before = calls(&rig);
        acts.iter().for_each(|act| act(&rig, &function));
        assert_eq!(found(&rig, FIRST).is_some(), stays, "{name}");
        assert_eq!(calls(&rig), (before.0 + maps, before.1 + unmaps), "{name}");
        let shown = rig.slots.shown();
        assert!(shown.iter().all(|(start, _)| rig.kernel.lookup_bar(0, *start).is_some()), "{name}");
        assert_eq!(rig.kernel.count(Call::Share), 3, "{name}: made known once");
    }
}

/// A reset that somebody else began takes mappings back for good; what the guest switches on next is there again.
#[test]
fn what_the_host_took_back_comes_with_the_next_change() {
    let (rig, function) = Rig::endpoint();
    switch_on(&function);
    rig.device.revoke();
    assert_eq!(found(&rig, FIRST), None);
    write16(&function, COMMAND, MASTER);
    write16(&function, COMMAND, MASTER | MEMORY);
    assert_eq!(found(&rig, FIRST), Some((0, 0)));
}

/// (name, what the host lacks, calls that make memory known, calls that map it): it is asked once, and all else works.
#[test]
fn a_host_that_cannot_is_asked_once() {
    let rows = [
        ("no dma-bufs of devices", Call::Share, Errno::NOTTY, (1, 0)),
        ("none of this BAR", Call::Share, Errno::NODEV, (1, 0)),
        ("no mappings of files", Call::IoasMapFile, Errno::NOTTY, (3, 1)),
        ("none of a device's", Call::IoasMapFile, Errno::OPNOTSUPP, (3, 1)),
    ];
    for (name, call, errno, expected) in rows {
        let rig = Rig::with(Model::endpoint());
        rig.kernel.fail(Failure::always(call, errno));
        let function = rig.build(&offer()).unwrap();
        for _ in 0..3 {
            switch_on(&function);
            write16(&function, COMMAND, 0);
        }
        let made = (rig.kernel.count(Call::Share), rig.kernel.count(Call::IoasMapFile));
        assert_eq!((made, rig.kernel.count(Call::IoasUnmap)), (expected, 0), "{name}");
        switch_on(&function);
        assert_eq!(rig.slots.shown().len(), 3, "{name}: the guest sees it");
    }
    let (rig, _function) = Rig::of(Model { shares: false, ..Model::endpoint() });
    assert_eq!(rig.kernel.count(Call::Share), 1);
}

/// What the host refused for the moment is tried again with the next change.
#[test]
fn a_refusal_of_the_moment_is_not_for_ever() {
    for errno in [Errno::NOMEM, Errno::NODEV, Errno::EXIST, Errno::INVAL] {
        let (rig, function) = Rig::endpoint();
        rig.kernel.fail(Failure::next(Call::IoasMapFile, errno));
        switch_on(&function);
        assert_eq!((found(&rig, FIRST), found(&rig, SECOND)), (None, Some((2, 0))), "{errno}");
        assert_eq!(rig.slots.shown().len(), 3, "{errno}: the guest sees it");
        write16(&function, COMMAND, 0);
        write16(&function, COMMAND, MEMORY);
        assert_eq!(found(&rig, FIRST), Some((0, 0)), "{errno}");
    }
}

/// A mapping that the host does not take back stands in nobody's way later.
#[test]
fn what_is_not_taken_back_is_taken_back_later() {
    let (rig, function) = Rig::endpoint();
    switch_on(&function);
    rig.kernel.fail(Failure::next(Call::IoasUnmap, Errno::BUSY));
    write32(&function, BAR0, ELSEWHERE);
    assert_eq!((found(&rig, FIRST), found(&rig, ELSEWHERE)), (None, Some((0, 0))));
    assert_eq!(calls(&rig), (4, 2), "refused, and again before the next is mapped");
    rig.kernel.fail(Failure { times: 2, ..Failure::next(Call::IoasUnmap, Errno::BUSY) });
    write32(&function, BAR0, FIRST);
    write32(&function, BAR0, ELSEWHERE);
    assert_eq!((found(&rig, FIRST), found(&rig, ELSEWHERE)), (None, Some((0, 0))));
}

#[test]
fn each_way_says_whether_it_can() {
    let kernel = FakeKernel::new();
    let device = FakeFunction::new(&kernel, Model::endpoint());
    let config = device.region(7).unwrap();
    device.write(&config, COMMAND.into(), &MEMORY.to_le_bytes()).unwrap();
    let memory = device.share(0, 0..0x1000).unwrap();
    let new = || Arc::new(kernel.clone());
    let rows = [
        ("nested", Bridge::Nested(Arc::new(NestedIommu::new(new()).unwrap())), None),
        ("shadow", Bridge::Shadow(Arc::new(ShadowIommu::new(new()).unwrap())), None),
        ("container", Bridge::Container(Arc::new(ContainerIommu::default())), Some(Errno::OPNOTSUPP)),
    ];
    for (name, bridge, expected) in rows {
        let error = bridge.share(FIRST.into(), &memory).err();
        assert_eq!(error.and_then(|error| Errno::from_io_error(&error.source)), expected, "{name}");
    }
}

/// The kernel in memory refuses what Linux refuses. (name, what is mapped where, errno)
#[test]
fn the_kernel_in_memory_knows_dma_bufs() {
    let kernel = FakeKernel::new();
    let device = FakeFunction::new(&kernel, Model::endpoint());
    let host = Bridge::Nested(Arc::new(NestedIommu::new(Arc::new(kernel.clone())).unwrap()));
    let map = |at: u64, memory| {
        let error = host.share(at, memory).err();
        error.and_then(|error| Errno::from_io_error(&error.source))
    };
    let rows = [
        ("no such BAR", 1, 0..0x1000, Errno::NODEV),
        ("no such region", 9, 0..0x1000, Errno::NODEV),
        ("no whole pages", 2, 0x10..0x1010, Errno::INVAL),
        ("beyond the end", 0, 0..0x2000, Errno::INVAL),
        ("nothing", 0, 0..0, Errno::INVAL),
    ];
    for (name, bar, range, expected) in rows {
        assert_eq!(device.share(bar, range).err(), Some(expected), "{name}");
    }
    let page = device.share(0, 0..0x1000).unwrap();
    let two = device.share_ranges(2, &[0..0x1000, 0x2000..0x3000]).unwrap();
    assert_eq!(map(FIRST.into(), &page), Some(Errno::NODEV), "its memory is off");
    let config = device.region(7).unwrap();
    device.write(&config, COMMAND.into(), &MEMORY.to_le_bytes()).unwrap();
    let other = FakeFunction::new(&FakeKernel::new(), Model::endpoint());
    let foreign = other.share(0, 0..0x1000).unwrap();
    let rows = [
        ("one range", FIRST.into(), &page, None),
        ("two ranges", FIRST.into(), &two, Some(Errno::OPNOTSUPP)),
        ("another exporter's", FIRST.into(), &foreign, Some(Errno::OPNOTSUPP)),
        ("over interrupt messages", 0xfee0_0000, &page, Some(Errno::ADDRINUSE)),
        ("beyond all addresses", u64::MAX - 0xff, &page, Some(Errno::OVERFLOW)),
        ("between pages", 0xc000_0800, &page, Some(Errno::INVAL)),
    ];
    for (name, at, memory, expected) in rows {
        assert_eq!(map(at, memory), expected, "{name}");
    }
    let _held = host.share(FIRST.into(), &page).unwrap();
    assert_eq!(map(FIRST.into(), &page), Some(Errno::EXIST));
}
