//! Descriptors through the portal to the record and the interrupt.

use std::sync::atomic::Ordering;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};
use zerocopy::FromBytes;

use super::rig::{INTERRUPT, RECORDS, Rig, control_page, copy, until};
use crate::pci::PciFunction;
use crate::svm::spec::{Descriptor, Status};

#[test]
fn every_opcode_through_the_portal() {
    let rig = Rig::new();
    rig.map_range(0x10_0000, 4);
    let fill = Descriptor {
        opcode: 2,
        destination: 0x10_0ffd.into(),
        length: 0x1003.into(),
        operand: 0x0807_0605_0403_0201.into(),
        ..Descriptor::default()
    };
    let rows = [
        ("nop", Descriptor::default(), 0, 0),
        ("fill", fill, 0x1003, 0),
        ("copy", copy(0x10_0ffd, 0x10_2001, 0x1003), 0x1003, 0),
        ("compare", Descriptor { opcode: 3, ..copy(0x10_0ffd, 0x10_2001, 0x1003) }, 0x1003, u64::MAX),
        ("compare, shifted", Descriptor { opcode: 3, ..copy(0x10_0ffd, 0x10_2002, 16) }, 0, 0),
        (
            "crc",
            Descriptor { opcode: 4, ..copy(0x10_0ffd, 0, 8) },
            8,
            u64::from(crc32c::crc32c(&[1, 2, 3, 4, 5, 6, 7, 8])),
        ),
        ("chase", Descriptor { opcode: 5, ..copy(0x10_0000, 0, 8) }, 0, 0x10_0000),
    ];
    for (name, descriptor, completed, result) in rows {
        let record = rig.run(Descriptor { tag: 77.into(), ..descriptor });
        assert_eq!(record.status, Status::Success as u8, "{name}");
        assert_eq!((record.completed.get(), record.result.get()), (completed, result), "{name}");
        assert_eq!((record.tag.get(), record.page_requests.get(), record.fault_info), (77, 0, 0), "{name}");
    }
    rig.until_idle(0);
    assert_eq!(rig.read64(0x40), rows.len() as u64);
    assert_eq!(rig.read64(control_page(0) + 0x40), rows.len() as u64);
}

#[test]
fn invalid_descriptors_touch_nothing_but_their_record() {
    let rig = Rig::new();
    let gpa = rig.map(0x5000, true);
    let record = rig.run(Descriptor {
        opcode: 2,
        flags: 0x80,
        destination: 0x5000.into(),
        length: 8.into(),
        operand: 1.into(),
        ..Default::default()
    });
    assert_eq!(record.status, Status::Invalid as u8);
    assert_eq!(rig.memory.read_obj::<u64>(GuestAddress(gpa)).unwrap(), 0);
    // A record that is not aligned is lost.
    rig.submit(0, &Descriptor { flags: 1, record: (RECORDS + 8).into(), ..Default::default() });
    until("lost record", || rig.read64(0x88) == 1);
    assert_eq!(rig.read64(control_page(0) + 0x58), RECORDS + 8);
    rig.assert_alive(0);
}

#[test]
fn interrupts_follow_the_flag_and_the_register() {
    let rig = Rig::new();
    let sent = || rig.msi.sent.lock().iter().map(|(_, msi)| msi.data).collect::<Vec<_>>();
    rig.run(Descriptor::default());
    rig.until_idle(0);
    assert_eq!(sent(), [0_u32; 0]);
    rig.wait(rig.start(1, Descriptor { flags: INTERRUPT, ..Default::default() }));
    rig.until_idle(1);
    assert_eq!(sent(), [2]);
    rig.run(Descriptor { opcode: 99, flags: INTERRUPT, ..Default::default() });
    rig.until_idle(0);
    assert_eq!(sent(), [2, 1], "however it ended");
    rig.submit(0, &Descriptor { flags: INTERRUPT, ..Default::default() });
    rig.until_idle(0);
    assert_eq!(sent(), [2, 1, 1], "also without a record");
    rig.write32(control_page(0) + 0xc, 1);
    rig.run(Descriptor { flags: INTERRUPT, ..Default::default() });
    rig.write32(control_page(0) + 0xc, 1 << 31 | 0x7ff);
    rig.run(Descriptor { flags: INTERRUPT, ..Default::default() });
    rig.until_idle(0);
    assert_eq!(sent(), [2, 1, 1], "off, then a vector that does not exist");
}

#[test]
fn a_masked_vector_is_pending_until_it_is_unmasked() {
    let rig = Rig::new();
    let sent = || rig.msi.sent.lock().iter().map(|(_, msi)| msi.data).collect::<Vec<_>>();
    let mask = |masked: u8| rig.function.bar_write(1, 16 + 12, &[masked]);
    let pending = || {
        let mut bits = [0];
        rig.function.bar_read(1, 0x800, &mut bits);
        bits[0]
    };
    mask(1);
    for _ in 0..3 {
        rig.run(Descriptor { flags: INTERRUPT, ..Descriptor::default() });
    }
    rig.until_idle(0);
    rig.run(Descriptor::default());
    assert_eq!((sent(), pending()), (vec![], 1 << 1));
    mask(0);
    assert_eq!((sent(), pending()), (vec![1], 0), "once, for all three");
    // The vector of commands is masked alone.
    rig.function.bar_write(1, 12, &[1]);
    rig.write32(0x20, 1 | 1 << 5);
    rig.run(Descriptor { flags: INTERRUPT, ..Descriptor::default() });
    rig.until_idle(0);
    assert_eq!((sent(), pending()), (vec![1, 1], 1));
}

#[test]
fn the_record_is_whole_when_its_status_shows() {
    let rig = Rig::new();
    rig.map_range(0x10_0000, 2);
    let word = |record: u64| {
        let gpa = rig.records_at(record);
        rig.memory.load::<u64>(GuestAddress(gpa), Ordering::Acquire).unwrap()
    };
    for _ in 0..300 {
        let record = rig.start(0, copy(0x10_0000, 0x10_1000, 123));
        while word(record) == 0 {
            std::hint::spin_loop();
        }
        assert_eq!(rig.read_record(record).completed.get(), 123);
    }
}

#[test]
fn a_place_is_free_when_the_record_shows() {
    let rig = Rig::new();
    for _ in 0..300 {
        let records: Vec<_> = (0..8).map(|_| rig.start(0, Descriptor::default())).collect();
        for record in records {
            rig.wait(record);
        }
        assert_eq!(rig.free(0), 8);
    }
    assert_eq!(rig.read64(0x80), 0, "never dropped");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_descriptor_ends(bytes in any::<[u8; 64]>(), opcode in 0_u8..7, plausible: bool) {
        let rig = Rig::new();
        rig.map_range(0x10_0000, 4);
        let mut descriptor = Descriptor::read_from_bytes(&bytes).unwrap();
        if plausible {
            descriptor.opcode = opcode;
            descriptor.flags &= 7;
            descriptor.reserved_03 = 0;
            (descriptor.reserved_30, descriptor.reserved_38) = (0.into(), 0.into());
            descriptor.length = (descriptor.length.get() % 0x5000).into();
            descriptor.source = (0x10_0000 + descriptor.source.get() % 0x5000).into();
            descriptor.destination = (0x10_0000 + descriptor.destination.get() % 0x5000).into();
        }
        let record = rig.run(descriptor);
        prop_assert!((1..=3).contains(&record.status), "{record:?}");
        prop_assert_eq!(record.tag, descriptor.tag);
        rig.assert_alive(0);
    }
}
