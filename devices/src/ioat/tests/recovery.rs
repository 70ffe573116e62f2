//! What Linux's driver does about an error: it learns of it by the completion or by a timer, clears it in the channel and
//! in configuration space, resets the channel and begins a chain of one null descriptor.

use iommu_core::testkit::Page;

use crate::ioat::spec::{Descriptor, Register, TransferStatus, command, config, error};
use crate::pci::PciFunction;

use super::rig::{
    BASE, COMPLETION, DATA, DESCRIPTORS, NOWHERE, PLAIN, READ_ONLY, Rig, copy, gpa, until, with,
};

const DONE: u64 = TransferStatus::Done as u64;
const HALTED: u64 = TransferStatus::Halted as u64;
/// CHANCTRL as the driver runs a channel: re-arm, and an error is told by completion and interrupt.
const RUN: u64 = 0x1d;
/// The errors after which the driver trusts the completion; after others it waits for its timer.
const RECOVERABLE: u32 = error::READ_DATA | error::WRITE_DATA;
/// A page of which a row takes the translation away.
const LOST: u64 = DATA + 0x8000;

impl Rig {
    fn config32(&self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.function.config_read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// 64 bits as the driver writes them: the lower half first.
    fn set_halves(&self, register: u64, value: u64) {
        self.write(0x80 + register, &value.to_le_bytes()[..4]);
        self.write(0x84 + register, &value.to_le_bytes()[4..]);
    }

    fn interrupted(&self, times: usize) {
        until("interrupted", || self.interrupts().len() == times);
    }

    /// The channel as it is after an error, reset.
    fn reset_channel(&self) {
        assert_eq!(self.status(), HALTED, "neither at work nor idle: there is nothing to suspend");
        self.set(Register::Error, self.get(Register::Error));
        self.set(Register::Command, command::RESET.into());
        assert_eq!(self.get(Register::Command) & u64::from(command::RESET), 0);
        assert_eq!(self.get(Register::Error), 0);
    }

    /// A chain of one null descriptor, of which the driver is told; it re-arms the interrupt then.
    fn restart_channel(&self, interrupts: usize) {
        self.set_halves(0x18, COMPLETION);
        let told = PLAIN.with_completion(true).with_interrupt(true);
        let null = with(copy(0, 0, 1), told.with_null(true));
        self.chain(&[null, with(copy(DATA, DATA + 0x1000, 8), told)]);
        self.set_halves(0x10, DESCRIPTORS);
        self.set(Register::Count, 1);
        assert_eq!(self.settle(), DONE);
        self.interrupted(interrupts + 1);
        assert_eq!(self.completion(), DESCRIPTORS | DONE);
        self.set(Register::Control, RUN);
    }

    /// The chain goes on with a copy.
    fn go_on(&self, interrupts: usize) {
        self.fill(DATA, b"restarts");
        self.set(Register::Count, 2);
        assert_eq!(self.settle(), DONE);
        self.interrupted(interrupts + 1);
        assert_eq!(self.completion(), (DESCRIPTORS + 64) | DONE);
        assert_eq!(self.bytes(DATA + 0x1000, 8), b"restarts");
    }
}

/// (name, descriptor that fails, bits of CHANERR)
#[test]
fn the_driver_gets_over_an_error() {
    let rows: [(&str, Descriptor, u32); 6] = [
        ("source", copy(NOWHERE, DATA, 8), error::READ_DATA),
        ("destination", copy(DATA, READ_ONLY, 8), error::WRITE_DATA),
        ("source, its translation lost", copy(LOST, DATA, 8), error::READ_DATA),
        ("destination, its translation lost", copy(DATA, LOST, 8), error::WRITE_DATA),
        ("length", copy(DATA, DATA, 0), error::LENGTH),
        ("operation", with(copy(DATA, DATA, 8), PLAIN.with_operation(0x87)), error::CONTROL),
    ];
    for (name, descriptor, bits) in rows {
        let rig = Rig::new();
        rig.iommu.unmap(None, LOST);
        rig.set(Register::Control, RUN);
        rig.chain(&[copy(DATA, DATA + 0x1000, 8), descriptor, copy(DATA, DATA + 0x1000, 8)]);
        rig.start(3);
        assert_eq!(rig.settle(), HALTED, "{name}");
        rig.interrupted(1);
        assert_eq!(rig.completion(), DESCRIPTORS | HALTED, "{name}: the first was done");
        let (told, kept) = (rig.get(Register::Error), rig.config32(config::CHANERR_INT));
        assert_eq!((told, kept), (bits.into(), bits), "{name}");
        if bits & RECOVERABLE != 0 {
            rig.reset_channel();
            assert_eq!(rig.config32(config::CHANERR_INT), bits, "{name}: the reset of a channel leaves it");
            rig.set(Register::Error, told);
            rig.function.config_write(config::CHANERR_INT, &kept.to_le_bytes());
            assert_eq!(rig.config32(config::CHANERR_INT), 0, "{name}");
        } else {
            rig.reset_channel();
        }
        rig.iommu.map(Page { pasid: None, iova: LOST, gpa: gpa(LOST), write: true });
        rig.restart_channel(1);
        rig.go_on(2);
        assert_eq!(rig.get(Register::Error), 0, "{name}");
    }
}

/// The chain's own addresses, too, and an error of before makes no difference to the next.
#[test]
fn the_driver_gets_over_one_error_after_the_other() {
    let rig = Rig::new();
    let mut interrupts = 0;
    for (start, bits) in [
        (NOWHERE, error::CHAIN_ADDRESS),
        (DESCRIPTORS + 8, error::CHAIN_ADDRESS),
        (BASE - 0x1000, error::CHAIN_ADDRESS),
    ] {
        rig.set(Register::Control, RUN);
        rig.set_halves(0x18, COMPLETION);
        rig.set_halves(0x10, start);
        rig.set(Register::Count, 1);
        assert_eq!(rig.settle(), HALTED, "{start:#x}");
        rig.interrupted(interrupts + 1);
        assert_eq!(rig.completion(), HALTED, "{start:#x}: none was done");
        assert_eq!(rig.get(Register::Error), u64::from(bits), "{start:#x}");
        rig.reset_channel();
        rig.restart_channel(interrupts + 1);
        rig.go_on(interrupts + 2);
        interrupts += 3;
    }
    assert_eq!(rig.config32(config::CHANERR_INT), error::CHAIN_ADDRESS, "not cleared by anything of this");
}

/// One register for all channels: what was not cleared stays until the function is reset.
#[test]
fn errors_of_all_channels_are_kept_in_configuration_space() {
    let rig = Rig::new();
    let fails = |channel: u64, descriptor: Descriptor| {
        rig.chain(&[descriptor]);
        rig.write(channel + 0x10, &DESCRIPTORS.to_le_bytes());
        rig.write(channel + 0x06, &[1, 0]);
        until("failed", || rig.read(channel + 0x28, 4) != 0);
    };
    fails(0x80, copy(DATA, DATA, 0));
    fails(0x100, copy(NOWHERE, DATA, 8));
    assert_eq!(rig.config32(config::CHANERR_INT), error::LENGTH | error::READ_DATA);
    rig.function.config_write(config::CHANERR_INT, &error::LENGTH.to_le_bytes());
    assert_eq!(rig.config32(config::CHANERR_INT), error::READ_DATA);
    // The mask is kept, and hides nothing.
    rig.function.config_write(config::CHANERR_INT_MASK, &[0xff; 4]);
    let both = (rig.config32(config::CHANERR_INT_MASK), rig.config32(config::CHANERR_INT));
    assert_eq!(both, (error::ALL, error::READ_DATA));
    rig.function.reset();
    assert_eq!((rig.config32(config::CHANERR_INT), rig.config32(config::CHANERR_INT_MASK)), (0, 0));
}
