//! The interrupt line of an assigned function, over a device that lives in memory.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
#![allow(dead_code, reason = "helpers of other tests")]

#[path = "common/function.rs"]
mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::{Line, MASTER, MEMORY, OFF, Rig, offer, read16, read32, write16};
use devices::irq::EndOfInterrupt as _;
use devices::pci::PciFunction as _;
use rustix::io::Errno;
use vfio_bridge::function::AssignedFunction;
use vfio_bridge::function_file::irq;
use vfio_bridge::testkit::{Call, Did, Failure, Model, place};

const COMMAND: u16 = 4;
const STATUS: u16 = 6;
const INTERRUPT: u16 = 1 << 3;
const DISABLE: u16 = 1 << 10;
const ON: u16 = MEMORY | MASTER;
const ENABLE: u16 = 1 << 15;

/// A device with a line, off.
fn rig() -> (Rig, Arc<AssignedFunction>) {
    let mut rig = Rig::with(Model::endpoint());
    rig.line = Some(Arc::default());
    let function = rig.build(&offer()).expect("a function");
    drop(rig.device.did());
    (rig, function)
}

/// The same, in use.
fn in_use() -> (Rig, Arc<AssignedFunction>) {
    let (rig, function) = rig();
    write16(&function, COMMAND, ON);
    let did = rig.device.did();
    assert_eq!(did, [Did::Command(OFF | ON), Did::Irqs(irq::INTX, 0, 1), Did::Command(ON)]);
    (rig, function)
}

fn line(rig: &Rig) -> &Line {
    rig.line.as_ref().expect("a line")
}

fn is_asserted(rig: &Rig) -> bool {
    line(rig).asserted.load(Ordering::Relaxed)
}

#[test]
fn the_guest_is_told_of_a_pin() {
    let (_rig, function) = rig();
    assert_eq!(read32(&function, 0x3c), 0x100);
    let without = Rig::with(Model { line: false, ..Model::endpoint() });
    let without = Rig { line: Some(Arc::default()), ..without };
    assert_eq!(read32(&without.build(&offer()).unwrap(), 0x3c), 0, "the host gives none");
}

#[test]
fn an_interrupt_is_asserted_until_its_end_and_again_while_there_is_reason() {
    let (rig, function) = in_use();
    rig.device.assert_line(true);
    assert_eq!(read16(&function, STATUS) & INTERRUPT, INTERRUPT);
    assert_eq!((function.serve(), is_asserted(&rig)), (None, true));
    // The guest is done, the device is not: it is lowered in between.
    function.ended();
    assert!(!is_asserted(&rig));
    assert_eq!((function.serve(), is_asserted(&rig)), (None, true));
    rig.device.assert_line(false);
    assert_eq!(read16(&function, STATUS) & INTERRUPT, 0);
    assert!(is_asserted(&rig), "the guest has not said so");
    function.ended();
    assert_eq!((function.serve(), is_asserted(&rig)), (None, false));
    assert_eq!(line(&rig).edges.load(Ordering::Relaxed), 4);
    assert_eq!(rig.device.did(), [Did::Unmasked, Did::Unmasked]);
}

/// As a driver does that masks in the command register and serves later.
#[test]
fn a_guest_may_switch_it_off_at_the_device() {
    let (rig, function) = in_use();
    rig.device.assert_line(true);
    function.serve();
    write16(&function, COMMAND, ON | DISABLE);
    assert!(!is_asserted(&rig));
    assert_eq!(read16(&function, STATUS) & INTERRUPT, INTERRUPT, "the status stays");
    function.ended();
    assert_eq!((function.serve(), is_asserted(&rig)), (None, false));
    write16(&function, COMMAND, ON);
    assert_eq!((function.serve(), is_asserted(&rig)), (None, true), "still asserted");
    let did = rig.device.did();
    assert_eq!(did, [Did::Command(ON | DISABLE), Did::Unmasked, Did::Command(ON)]);
}

/// A signal that was on its way when the guest switched it off does not come through.
#[test]
fn a_late_signal_asserts_nothing() {
    let (rig, function) = in_use();
    rig.device.assert_line(true);
    write16(&function, COMMAND, ON | DISABLE);
    assert_eq!((function.serve(), is_asserted(&rig)), (None, false));
    write16(&function, COMMAND, ON);
    rig.device.assert_line(false);
    write16(&function, COMMAND, 0);
    assert_eq!((function.serve(), is_asserted(&rig)), (None, false));
}

/// (name, control register of the messages, kind)
#[test]
fn messages_take_its_place() {
    for (name, control, kind) in [("MSI-X", place::MSIX + 2, irq::MSIX), ("MSI", place::MSI + 2, irq::MSI)] {
        let (rig, function) = in_use();
        rig.device.assert_line(true);
        function.serve();
        let enable = if kind == irq::MSI { 1 } else { ENABLE };
        write16(&function, control, enable);
        assert!(!is_asserted(&rig), "{name}");
        let did = rig.device.did();
        let first = [Did::IrqsOff(irq::INTX), Did::Command(OFF | ON), Did::Irqs(kind, 0, 1)];
        assert_eq!(did.first_chunk(), Some(&first), "{name}: {did:?}");
        assert_eq!((rig.device.heard(irq::INTX), rig.device.heard(kind)), (0, 1), "{name}");
        function.ended();
        write16(&function, control, 0);
        assert_eq!((rig.device.heard(irq::INTX), rig.device.heard(kind)), (1, 0), "{name}");
        let last = [Did::IrqsOff(kind), Did::Irqs(irq::INTX, 0, 1), Did::Command(ON)];
        assert_eq!(rig.device.did(), last, "{name}");
        assert_eq!((function.serve(), is_asserted(&rig)), (None, true), "{name}: the device waits still");
    }
}

/// (name, what ends it)
#[test]
fn it_goes_with_the_device() {
    type End = fn(&AssignedFunction);
    let ends: [(&str, End); 4] = [
        ("off", |function| write16(function, COMMAND, 0)),
        ("reset", |function| function.reset()),
        ("function-level reset", |function| write16(function, place::EXPRESS + 8, 1 << 15)),
        ("removed", |function| function.remove()),
    ];
    for (name, end) in ends {
        let (rig, function) = in_use();
        rig.device.assert_line(true);
        function.serve();
        end(&function);
        assert_eq!((is_asserted(&rig), rig.device.heard(irq::INTX)), (false, 0), "{name}");
        assert_eq!(rig.device.command(), OFF, "{name}");
        function.ended();
        assert_eq!((function.serve(), is_asserted(&rig)), (None, false), "{name}");
    }
}

#[test]
fn a_host_that_gives_none_is_asked_once() {
    let (rig, function) = rig();
    rig.kernel.fail(Failure::always(Call::SetIrqs, Errno::BUSY));
    let asked = rig.kernel.count(Call::SetIrqs);
    write16(&function, COMMAND, ON);
    write16(&function, COMMAND, ON | DISABLE);
    assert_eq!(rig.kernel.count(Call::SetIrqs) - asked, 1);
    assert_eq!(rig.device.command(), OFF | ON, "silent, and works");
    rig.kernel.heal();
    write16(&function, COMMAND, 0);
    write16(&function, COMMAND, ON);
    assert_eq!((rig.device.heard(irq::INTX), rig.device.command()), (1, ON));
}

#[test]
fn a_host_that_does_not_unmask_leaves_it_lowered() {
    let (rig, function) = in_use();
    rig.device.assert_line(true);
    function.serve();
    rig.kernel.fail(Failure::next(Call::UnmaskIrqs, Errno::IO));
    function.ended();
    assert_eq!((function.serve(), is_asserted(&rig)), (None, false));
}
