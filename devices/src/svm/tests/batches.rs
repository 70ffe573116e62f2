//! Batches and fences.

use iommu_core::{Iova, Request, ResponseCode, Translator};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::rig::{BLOCK, FENCE, INTERRUPT, PASID, Rig, SOURCE, control_page, copy};
use crate::svm::spec::{Descriptor, Record};

const ARRAY: u64 = 0x50_0000;
const SOURCE_PAGE: u64 = 0x10_0000;
const TARGET: u64 = 0x20_0000;
/// Mapped by nobody.
const NOWHERE: u64 = 0x90_0000;

fn batch(count: u64) -> Descriptor {
    Descriptor { opcode: 6, source: ARRAY.into(), length: count.into(), ..Descriptor::default() }
}

fn nop() -> Descriptor {
    Descriptor::default()
}

fn fails() -> Descriptor {
    Descriptor { flags: 0, ..copy(NOWHERE, TARGET, 8) }
}

fn fenced(descriptor: Descriptor) -> Descriptor {
    Descriptor { flags: descriptor.flags | FENCE, ..descriptor }
}

fn summary(record: &Record) -> (u8, u64, u64) {
    (record.status, record.completed.get(), record.result.get())
}

#[test]
fn batch_table() {
    const ALL: u64 = u64::MAX;
    let drain = Descriptor { opcode: 7, ..nop() };
    let strange = Descriptor { opcode: 77, ..nop() };
    type Row<'a> = (&'a str, &'a [Descriptor], &'a [u8], (u8, u64, u64));
    let rows: [Row<'_>; 9] = [
        ("of none", &[], &[], (1, 0, ALL)),
        ("all succeed", &[nop(), copy(SOURCE_PAGE, TARGET, 0x1000), nop()], &[1, 1, 1], (1, 3, ALL)),
        ("one faults, others go on", &[nop(), fails(), nop()], &[1, 2, 1], (5, 3, 1)),
        ("one is invalid", &[strange, nop()], &[3, 1], (5, 2, 0)),
        ("no batch in a batch", &[batch(1), nop()], &[3, 1], (5, 2, 0)),
        ("no drain in a batch", &[nop(), drain], &[1, 3], (5, 2, 1)),
        ("a fence lets pass", &[nop(), fenced(nop()), fenced(nop())], &[1, 1, 1], (1, 3, ALL)),
        ("a fence stops one", &[fails(), nop(), fenced(nop()), nop()], &[2, 1, 6, 1], (5, 4, 0)),
        ("a stopped one stops others", &[fails(), fenced(nop()), fenced(nop())], &[2, 6, 6], (5, 3, 0)),
    ];
    for (name, descriptors, statuses, expected) in rows {
        let rig = Rig::new();
        rig.map_range(SOURCE_PAGE, 1);
        rig.map_range(TARGET, 1);
        let records = rig.put_batch(ARRAY, descriptors);
        let record = rig.run(batch(descriptors.len() as u64));
        assert_eq!(summary(&record), expected, "{name}");
        // All of theirs are there before that of the batch.
        let found: Vec<_> = records.iter().map(|&record| rig.read_record(record).status).collect();
        assert_eq!(found, statuses, "{name}");
        rig.until_idle(0);
        assert_eq!(rig.read64(0x40), descriptors.len() as u64 + 1, "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Against the same copies and fills on a plain vector.
    #[test]
    fn batches_do_what_their_descriptors_say(
        steps in prop::collection::vec((any::<bool>(), 0_usize..0x4000, 0_usize..0x4000, 0_usize..0x2000, any::<u64>()), 0..40)
    ) {
        const SPACE: usize = 0x6000;
        let rig = Rig::new();
        rig.map_range(TARGET, SPACE as u64 / 0x1000);
        let mut expected = vec![0_u8; SPACE];
        let mut descriptors = Vec::new();
        for (fills, from, to, length, pattern) in steps {
            // Not into itself: what overlaps upwards is not specified.
            let length = if fills || to <= from { length } else { length.min(to - from) };
            let at = |offset: usize| TARGET + offset as u64;
            let operation = Descriptor { operand: pattern.into(), ..copy(at(from), at(to), length as u64) };
            if fills {
                let bytes = pattern.to_le_bytes();
                (0..length).for_each(|index| expected[to + index] = bytes[index % 8]);
                descriptors.push(Descriptor { opcode: 2, ..operation });
            } else {
                expected.copy_within(from..from + length, to);
                descriptors.push(operation);
            }
        }
        rig.put_batch(ARRAY, &descriptors);
        let record = rig.run(batch(descriptors.len() as u64));
        prop_assert_eq!(summary(&record), (1, descriptors.len() as u64, u64::MAX));
        for (page, expected) in (0..).zip(expected.chunks(0x1000)) {
            let request = Request::translation(SOURCE, Some(PASID), Iova(TARGET + page * 0x1000), true);
            let gpa = rig.iommu.translate(&request).unwrap().base;
            let mut found = vec![0; 0x1000];
            rig.memory.read_slice(&mut found, GuestAddress(gpa.0)).unwrap();
            prop_assert!(found == expected, "page {}", page);
        }
    }
}

#[test]
fn elements_are_descriptors_like_others() {
    let rig = Rig::new();
    rig.map_range(SOURCE_PAGE, 2);
    let target = rig.map(TARGET, true);
    let fill = Descriptor { opcode: 2, operand: 0x0707_0707_0707_0707.into(), ..copy(0, TARGET, 9) };
    let crc = Descriptor { opcode: 4, flags: INTERRUPT, tag: 55.into(), ..copy(TARGET, 0, 9) };
    let records = rig.put_batch(ARRAY, &[fill, crc]);
    let record = rig.run(Descriptor { flags: INTERRUPT, tag: 3.into(), ..batch(2) });
    assert_eq!((record.status, record.tag.get()), (1, 3));
    let crc = rig.read_record(records[1]);
    assert_eq!((crc.tag.get(), crc.result.get()), (55, u64::from(crc32c::crc32c(&[7; 9]))));
    assert_eq!(rig.memory.read_obj::<u8>(GuestAddress(target + 8)).unwrap(), 7);
    rig.until_idle(0);
    assert_eq!(rig.msi.sent.lock().len(), 2);
}

#[test]
fn an_array_that_cannot_be_read_ends_the_batch_there() {
    for (name, flags, response) in
        [("not asked", 0, None), ("asked in vain", BLOCK, Some(ResponseCode::Invalid))]
    {
        let rig = Rig::new();
        rig.hold_page_requests();
        let records = rig.put_batch(ARRAY, &[nop(); 70]);
        rig.iommu.unmap(Some(PASID), ARRAY + 0x1000);
        let batch = rig.start(0, Descriptor { flags, ..batch(70) });
        if let Some(code) = response {
            rig.until_page_requests(1);
            assert!(rig.iommu.page_requests.lock()[0].read);
            rig.respond(code);
        }
        let record = rig.wait(batch);
        assert_eq!(summary(&record), (2, 64, u64::MAX), "{name}");
        assert_eq!((record.fault_address.get(), record.fault_info), (ARRAY + 0x1000, 0), "{name}");
        assert_eq!(rig.read_record(records[63]).status, 1, "{name}");
        assert_eq!(rig.read_record(records[64]).status, 0, "{name}");
        rig.assert_alive(0);
    }
}

#[test]
fn an_array_that_comes_late_is_waited_for() {
    let rig = Rig::new();
    rig.hold_page_requests();
    let records = rig.put_batch(ARRAY, &[nop(); 3]);
    let request = Request::translation(SOURCE, Some(PASID), Iova(ARRAY), true);
    let gpa = rig.iommu.translate(&request).unwrap().gpa(Iova(ARRAY)).0;
    rig.iommu.unmap(Some(PASID), ARRAY);
    let batch = rig.start(0, Descriptor { flags: BLOCK, ..batch(3) });
    rig.until_page_requests(1);
    rig.map_to(ARRAY, gpa, true);
    rig.respond(ResponseCode::Success);
    let record = rig.wait(batch);
    assert_eq!((record.status, record.page_requests.get()), (1, 1));
    assert_eq!(rig.read_record(records[2]).status, 1);
}

#[test]
fn an_abort_ends_element_and_batch() {
    let rig = Rig::new();
    rig.hold_page_requests();
    rig.map_range(TARGET, 1);
    let waits = copy(NOWHERE, TARGET, 8);
    let records = rig.put_batch(ARRAY, &[nop(), waits, nop()]);
    let batch = rig.start(0, batch(3));
    rig.until_page_requests(1);
    rig.until_waiting(0);
    rig.write32(control_page(0), 0);
    assert_eq!(summary(&rig.wait(batch)), (4, 2, 1));
    let statuses: Vec<_> = records.iter().map(|&record| rig.read_record(record).status).collect();
    assert_eq!(statuses, [1, 4, 0]);
    rig.until_idle(0);
    rig.write32(control_page(0), 1);
    rig.assert_alive(0);
}

#[test]
fn a_batch_holds_one_place_until_it_ends() {
    let rig = Rig::new();
    rig.hold_page_requests();
    rig.map_range(TARGET, 1);
    rig.put_batch(ARRAY, &[nop(), copy(NOWHERE, TARGET, 8)]);
    let batch = rig.start(0, batch(2));
    rig.until_page_requests(1);
    assert_eq!([rig.free(0), rig.read32(control_page(0) + 0x10)], [7, 1]);
    rig.respond(ResponseCode::Invalid);
    assert_eq!(rig.wait(batch).status, 5);
    rig.until_idle(0);
    assert_eq!(rig.free(0), 8);
}

#[test]
fn fences_and_drains_of_a_queue() {
    let rig = Rig::new();
    rig.map_range(TARGET, 1);
    let drain = Descriptor { opcode: 7, ..nop() };
    let run = |descriptor| {
        let record = rig.run(descriptor);
        (record.status, record.result.get())
    };
    assert_eq!(run(fenced(nop())), (1, 0), "nothing before it");
    assert_eq!(run(fails()).0, 2);
    assert_eq!(run(nop()), (1, 0), "without the flag it does not care");
    assert_eq!(run(fenced(copy(TARGET, TARGET + 8, 8))), (6, 0));
    assert_eq!(run(fenced(drain)), (6, 0), "a drain may be fenced, too");
    assert_eq!(run(drain), (1, 3), "the failure and the two that it stopped");
    assert_eq!(run(fenced(nop())), (1, 0));
    assert_eq!(run(drain), (1, 0));
    // A batch counts as one.
    rig.put_batch(ARRAY, &[fails(), fails()]);
    assert_eq!(run(batch(2)), (5, 0));
    assert_eq!(run(fenced(nop())).0, 6);
    // Another queue has failures of its own, and enabling forgets.
    let other = rig.wait(rig.start(1, fenced(nop())));
    assert_eq!(other.status, 1);
    rig.write32(control_page(0), 0);
    rig.write32(control_page(0), 1);
    assert_eq!(run(fenced(nop())).0, 1);
}
