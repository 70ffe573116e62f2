//! Chains of descriptors in memory, done by the worker.

use iommu_core::testkit::Page;

use crate::ioat::spec::{Descriptor, DescriptorControl, Register, TransferStatus, command, error};
use crate::no_memory::NO_MEMORY;
use crate::pci::PciFunction;

use super::rig::{COMPLETION, DATA, DESCRIPTORS, NOWHERE, PLAIN, READ_ONLY, Rig, copy, until, with};

const DONE: u64 = TransferStatus::Done as u64;
const HALTED: u64 = TransferStatus::Halted as u64;
const SUSPENDED: u64 = TransferStatus::Suspended as u64;

#[test]
fn copies_of_many_lengths_arrive_and_nothing_else_changes() {
    for (source, destination, size) in [
        (DATA, DATA + 0x1_0000, 1),
        (DATA + 0xfff, DATA + 0x1_0fff, 2),
        (DATA + 7, DATA + 0x1_0003, 0x1fff),
        (DATA, DATA + 0x1_9000, 0x1_8000),
        (DATA + 1, DATA + 0x1_9001, 0x1_0001),
    ] {
        let rig = Rig::new();
        let bytes: Vec<u8> = (0..size).map(|n: u32| n.to_le_bytes()[0] | 1).collect();
        rig.fill(source, &bytes);
        rig.chain(&[copy(source, destination, size)]);
        rig.start(1);
        assert_eq!(rig.settle(), DONE, "{size:#x}");
        assert_eq!(rig.bytes(destination, bytes.len()), bytes, "{size:#x}");
        assert_eq!(rig.bytes(destination + u64::from(size), 16), [0; 16], "{size:#x}: behind it");
        assert_eq!(rig.bytes(destination - 1, 1), [0], "{size:#x}: before it");
        assert_eq!((rig.completion(), rig.interrupts()), (0, vec![]), "nobody asked to be told");
    }
}

/// (name, descriptor, bits of CHANERR)
#[test]
fn what_cannot_be_done_halts_the_channel() {
    let top = u64::MAX - 3;
    let rows: [(&str, Descriptor, u32); 13] = [
        ("source", copy(NOWHERE, DATA, 8), error::READ_DATA),
        ("end of the source", copy(READ_ONLY + 0xffc, DATA, 8), error::READ_DATA),
        ("destination", copy(DATA, NOWHERE, 8), error::WRITE_DATA),
        ("read-only destination", copy(DATA, READ_ONLY, 8), error::WRITE_DATA),
        ("source at the top", copy(top, DATA, 8), error::READ_DATA),
        ("destination at the top", copy(DATA, top, 8), error::WRITE_DATA),
        ("source beyond the top", copy(u64::MAX - 0x1_0000, DATA, 0x1_8000), error::READ_DATA),
        ("no length", copy(DATA, DATA, 0), error::LENGTH),
        ("too long", copy(DATA, DATA, 0x2_0001), error::LENGTH),
        ("much too long", copy(DATA, DATA, u32::MAX), error::LENGTH),
        ("exclusive or", with(copy(DATA, DATA, 8), PLAIN.with_operation(0x87)), error::CONTROL),
        ("no such thing", with(copy(DATA, DATA, 8), PLAIN.with_operation(0xff)), error::CONTROL),
        ("null without length", with(copy(DATA, DATA, 0), PLAIN.with_null(true)), error::LENGTH),
    ];
    for (name, descriptor, bits) in rows {
        let rig = Rig::new();
        let good = copy(DATA, DATA + 0x1000, 8);
        rig.chain(&[good, with(descriptor, told(&descriptor))]);
        rig.start(2);
        assert_eq!(rig.settle(), HALTED, "{name}");
        assert_eq!(rig.get(Register::Error), u64::from(bits), "{name}");
        assert_eq!(rig.get(Register::Status) & !7, DESCRIPTORS, "{name}: the first was done");
        assert_eq!(rig.get(Register::Current), DESCRIPTORS + 64, "{name}");
        assert_eq!((rig.completion(), rig.interrupts()), (0, vec![]), "{name}");
        rig.assert_alive();
    }
}

/// (name, chain address, what the one descriptor there leads to, descriptors wanted, bits of CHANERR)
#[test]
fn chains_that_lead_nowhere_halt_the_channel() {
    let rows = [
        ("nothing there", NOWHERE, DESCRIPTORS, 1, error::CHAIN_ADDRESS),
        ("not aligned", DESCRIPTORS + 32, DESCRIPTORS, 1, error::CHAIN_ADDRESS),
        ("leads nowhere", DESCRIPTORS, NOWHERE, 2, error::NEXT_ADDRESS),
        ("leads to 0", DESCRIPTORS, 0, 2, error::NEXT_ADDRESS),
        ("leads beside", DESCRIPTORS, DESCRIPTORS + 8, 2, error::NEXT_ALIGNMENT),
        ("leads nowhere in the end", DESCRIPTORS, NOWHERE, 1, 0),
    ];
    for (name, start, next, count, bits) in rows {
        let rig = Rig::new();
        let descriptor = Descriptor { next: next.into(), ..copy(DATA, DATA + 0x1000, 8) };
        rig.fill(DESCRIPTORS, zerocopy::IntoBytes::as_bytes(&descriptor));
        rig.set(Register::ChainAddress, start);
        rig.set(Register::Count, count);
        assert_eq!(rig.settle(), if bits == 0 { DONE } else { HALTED }, "{name}");
        assert_eq!(rig.get(Register::Error), u64::from(bits), "{name}");
        rig.assert_alive();
    }
}

/// First the data, then the completion, then the interrupt.
#[test]
fn completion_and_interrupt_tell_of_the_descriptor() {
    let rig = Rig::new();
    let told = PLAIN.with_completion(true).with_interrupt(true);
    let null = with(copy(NOWHERE, NOWHERE, 1), told.with_null(true));
    rig.fill(DATA, b"hello");
    rig.chain(&[with(copy(DATA, DATA + 0x1000, 5), PLAIN), null]);
    rig.start(2);
    assert_eq!(rig.settle(), DONE);
    until("interrupted", || !rig.interrupts().is_empty());
    assert_eq!(rig.completion(), (DESCRIPTORS + 64) | DONE);
    assert_eq!(rig.interrupts(), [0]);
    assert_eq!(rig.bytes(DATA + 0x1000, 5), b"hello");
    assert_eq!(rig.read(4, 4), 1, "ATTNSTATUS");
    assert_eq!(rig.read(4, 4), 0, "reading clears it");
}

#[test]
fn an_error_is_told_if_that_was_asked_for() {
    let rig = Rig::new();
    rig.set(Register::Control, 0x1d);
    rig.chain(&[copy(NOWHERE, DATA, 5)]);
    rig.start(1);
    assert_eq!(rig.settle(), HALTED);
    until("interrupted", || !rig.interrupts().is_empty());
    assert_eq!((rig.completion(), rig.get(Register::Error)), (HALTED, u64::from(error::READ_DATA)));
}

/// Where the function's address leads to no RAM, each of its accesses is an error of its own.
#[test]
fn what_is_no_memory_halts_the_channel() {
    /// The page that leads there.
    const PEER: u64 = DATA + 0x8000;
    let rows: [(&str, u64, u64, Descriptor, u32); 4] = [
        ("source", DESCRIPTORS, COMPLETION, copy(PEER, DATA, 8), error::READ_DATA),
        ("destination", DESCRIPTORS, COMPLETION, copy(DATA, PEER, 8), error::WRITE_DATA),
        ("descriptor", PEER, COMPLETION, copy(DATA, DATA, 8), error::CHAIN_ADDRESS),
        ("completion", DESCRIPTORS, PEER, copy(DATA, DATA, 8), error::COMPLETION_ADDRESS),
    ];
    for ((place, page), (name, chain, completion, descriptor, bits)) in
        NO_MEMORY.into_iter().flat_map(|place| rows.map(|row| (place, row)))
    {
        let rig = Rig::new();
        rig.iommu.map(Page { pasid: None, iova: PEER, gpa: page, write: true });
        rig.chain(&[with(descriptor, told(&descriptor))]);
        rig.set(Register::CompletionAddress, completion);
        rig.set(Register::ChainAddress, chain);
        rig.set(Register::Count, 1);
        assert_eq!(rig.settle(), HALTED, "{place} as {name}");
        assert_eq!(rig.get(Register::Error), u64::from(bits), "{place} as {name}");
        assert!(rig.iommu.faults.lock().is_empty() && rig.interrupts().is_empty(), "{place} as {name}");
        rig.assert_alive();
    }
}

#[test]
fn a_completion_that_cannot_be_written_is_an_error() {
    let rig = Rig::new();
    rig.chain(&[with(copy(DATA, DATA + 0x1000, 5), PLAIN.with_completion(true).with_interrupt(true))]);
    rig.set(Register::CompletionAddress, NOWHERE);
    rig.set(Register::ChainAddress, DESCRIPTORS);
    rig.set(Register::Count, 1);
    assert_eq!(rig.settle(), HALTED);
    assert_eq!(rig.get(Register::Error), u64::from(error::COMPLETION_ADDRESS));
    assert_eq!(rig.interrupts(), [0_u32; 0]);
}

/// One descriptor that leads to itself, as often as can be asked for.
#[test]
fn a_descriptor_that_leads_to_itself_is_done_as_often_as_asked() {
    let rig = Rig::new();
    rig.chain(&[copy(DATA, DATA + 0x1000, 8)]);
    rig.start(u16::MAX);
    assert_eq!(rig.settle(), DONE);
    // The next count is one that has passed 2^16.
    rig.chain(&[with(copy(DATA, DATA + 0x1000, 8), PLAIN.with_completion(true))]);
    rig.set(Register::Count, 0);
    assert_eq!(rig.settle(), DONE);
    assert_eq!(rig.completion(), DESCRIPTORS | DONE);
}

/// A suspended channel goes on where it stopped, a halted one begins anew, and neither makes a driver wait.
#[test]
fn endless_work_can_be_stopped() {
    for (name, bits, status) in [
        ("suspend", command::SUSPEND, SUSPENDED),
        ("abort", command::ABORT, HALTED),
        ("reset", command::RESET, HALTED),
    ] {
        let rig = Rig::new();
        rig.chain(&[copy(DATA, DATA + 0x1_0000, 0x8000)]);
        rig.start(u16::MAX);
        rig.set(Register::Command, bits.into());
        assert_eq!(rig.settle(), status, "{name}");
        assert_eq!(rig.get(Register::Command), 0, "{name}");
        // Nothing is under way any more.
        rig.fill(DATA + 0x1_0000, &[0xcc; 0x8000]);
        assert_eq!(rig.bytes(DATA + 0x1_0000, 0x8000), [0xcc; 0x8000], "{name}");
        rig.assert_alive();
    }
}

/// No access of the old work after the write that ends it, however it ends.
#[test]
fn what_ends_work_waits_for_its_last_access() {
    type End = fn(&Rig);
    let ends: [(&str, End); 5] = [
        ("reset", |rig| rig.set(Register::Command, command::RESET.into())),
        ("abort", |rig| rig.set(Register::Command, command::ABORT.into())),
        ("another chain", |rig| rig.set(Register::ChainAddress, DESCRIPTORS)),
        ("bus mastering", |rig| rig.function.config_write(4, &2_u16.to_le_bytes())),
        ("conventional reset", |rig| rig.function.reset()),
    ];
    for (name, end) in ends {
        let rig = Rig::new();
        rig.chain(&[copy(DATA, DATA + 0x1_0000, 0x8000)]);
        rig.start(u16::MAX);
        end(&rig);
        for _ in 0..10 {
            rig.fill(DATA + 0x1_0000, &[0xcc; 0x8000]);
            std::thread::yield_now();
            assert_eq!(rig.bytes(DATA + 0x1_0000, 0x8000), [0xcc; 0x8000], "{name}");
        }
        rig.bring_up();
        rig.assert_alive();
    }
}

/// Without bus mastering there is no DMA, and the driver learns it.
#[test]
fn a_function_that_is_no_bus_master_moves_nothing() {
    let rig = Rig::new();
    rig.function.config_write(4, &2_u16.to_le_bytes());
    rig.chain(&[copy(DATA, DATA + 0x1000, 8)]);
    rig.set(Register::Control, 0x1d);
    rig.start(1);
    assert_eq!((rig.settle(), rig.completion()), (HALTED, 0));
    rig.function.config_write(4, &6_u16.to_le_bytes());
    rig.assert_alive();
}

/// The second channel has registers, a thread and a vector of its own.
#[test]
fn channels_are_apart() {
    let rig = Rig::new();
    let told = PLAIN.with_completion(true).with_interrupt(true);
    rig.chain(&[with(copy(DATA, DATA + 0x1000, 8), told)]);
    rig.write(0x100 + 0x18, &COMPLETION.to_le_bytes());
    rig.write(0x100 + 0x10, &DESCRIPTORS.to_le_bytes());
    rig.write(0x100 + 0x06, &[1, 0]);
    until("interrupted", || !rig.interrupts().is_empty());
    assert_eq!(rig.interrupts(), [1]);
    assert_eq!((rig.read(0x108, 8), rig.status()), (DESCRIPTORS | DONE, HALTED));
    assert_eq!(rig.read(4, 4), 2, "ATTNSTATUS");
}

/// The same control word, and completion and interrupt asked for.
fn told(descriptor: &Descriptor) -> DescriptorControl {
    DescriptorControl::new_with_raw_value(descriptor.control.get()).with_completion(true).with_interrupt(true)
}
