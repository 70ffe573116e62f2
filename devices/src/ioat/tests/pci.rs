//! What a driver finds before it gives work.

use iommu_core::testkit::{ListTranslator, RecordingMsi};
use iommu_core::{Dma, PortSet};
use std::sync::Arc;
use vm_memory::GuestAddress;

use super::rig::{Memory, Rig, SOURCE};
use crate::ioat::{IoatConfig, IoatError, IoatFunction};
use crate::pci::PciFunction;

#[test]
fn the_driver_finds_what_it_looks_for() {
    let rig = Rig::cold(IoatConfig { channels: 4, transfer_log2: 20 });
    assert_eq!((rig.config16(0), rig.config16(2)), (0x8086, 0x2021));
    for (name, offset, bytes, expected) in [
        ("CHANCNT", 0, 1, 4),
        ("XFERCAP", 1, 1, 20),
        ("INTRCTRL", 3, 1, 0),
        ("CBVER", 8, 1, 0x33),
        ("DMACAPABILITY", 0x10, 4, 0),
        ("DCAOFFSET", 0x14, 2, 0),
        ("the first four at once", 0, 4, 0x1404),
        ("CHANSTS of the last channel", 0x208, 8, 3),
        ("behind the last channel", 0x280, 8, 0),
        ("over the end of the channels", 0x27c, 8, 0),
        ("before the table", 0x1ff8, 8, 0),
    ] {
        assert_eq!(rig.read(offset, bytes), expected, "{name}");
    }
    // The whole of configuration space is there; there are no extended capabilities, and no error yet.
    for offset in [0x100, 0x148, 0x180, 0x184, 0xffe] {
        assert_eq!(rig.config16(offset), 0, "{offset:#x}");
    }
}

#[test]
fn interrupt_control_keeps_its_bits_and_a_reset_clears_them() {
    let rig = Rig::new();
    rig.write(3, &[0xff]);
    assert_eq!(rig.read(3, 1), 9);
    rig.write(0, &[0; 8]);
    assert_eq!(rig.read(0, 4), 0x1102, "all but INTRCTRL is read-only");
    rig.write(3, &[9]);
    rig.function.reset();
    assert_eq!(rig.read(3, 1), 0);
}

/// (channels, logarithm of a transfer, what is said)
#[test]
fn limits_are_kept() {
    let memory = Memory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    for (channels, transfer_log2, expected) in [
        (1, 12, None),
        (4, 20, None),
        (0, 12, Some("1 to 4")),
        (5, 12, Some("1 to 4")),
        (1, 11, Some("2^12 to 2^20")),
        (1, 21, Some("2^12 to 2^20")),
    ] {
        let dma = Dma::new(SOURCE, memory.clone(), ListTranslator::new(), Arc::new(PortSet::default()));
        let config = IoatConfig { channels, transfer_log2 };
        let error: Option<IoatError> =
            IoatFunction::new(config, &dma, Arc::new(RecordingMsi::default())).err();
        let said = error.map(|error| error.to_string());
        let right = said.as_deref().map(|said| expected.is_some_and(|expected| said.contains(expected)));
        assert!(right.unwrap_or(expected.is_none()), "{channels} {transfer_log2}: {said:?}");
    }
}
