//! A guest that means harm finds no one but itself.

use iommu_core::Gpa;
use vfio_bridge::testkit::{Answer, Call, Hardware};

use crate::common::source;
use crate::machine::{ALL_CONTEXTS, ALL_PASIDS, Guest, Machine, iotlb_page, pasid_cache, walks};

/// Tables anywhere: the host walks them through the guest's own memory, or the unit does not take them.
#[test]
fn wild_table_pointers_stay_inside_the_guest() {
    let machine = Machine::new();
    let guest = Guest::boot(&machine);
    let own = guest.bind(1, 1);
    let entry = guest.tables.context(source(0)).pasid(1);
    let _ = entry.first_stage(7);
    // (root, whether the unit takes it)
    let rows = [
        (0, true),
        (0xfee0_0000, true),
        (0xff_f000, true),
        (0x3fff_ffff_f000, true),
        (0x4000_0000_0000, false),
        (0xffff_ffff_ffff_f000, false),
        (0x1000 | 1 << 9, false),
    ];
    for (root, taken) in rows {
        entry.edit(2, |_| root);
        guest.submit(&[pasid_cache(1)]);
        let expected = if taken { walks(Gpa(root & !0xfff)) } else { Hardware::Blocked };
        assert_eq!(machine.hardware(0, 1), expected, "{root:#x}");
        assert_eq!(machine.hardware(1, 1), walks(own), "{root:#x}");
    }
    // Directories and context tables anywhere.
    for wild in [0_u64, 0xff_f000, 0x3fff_ffff_f000] {
        let at = guest.tables.context(source(0)).at();
        let low = guest.tables.word(at);
        guest.tables.set_word(at, low & 0xfff | wild);
        guest.submit(&[ALL_CONTEXTS, ALL_PASIDS]);
        assert_eq!(machine.hardware(1, 1), walks(own));
        guest.tables.set_word(at, low);
    }
    machine.finish();
}

/// The same PASIDs again and again, with requests on their way: no object is left, each group is answered once.
#[test]
fn reused_pasids_leave_nothing() {
    let machine = Machine::new();
    let guest = Guest::boot(&machine);
    let roots = [guest.bind(0, 1), guest.bind(0, 2)];
    let most = machine.kernel.audit().objects;
    let entry = guest.tables.context(source(0)).pasid(1).at();
    for round in 0..300_u32 {
        machine.kernel.request_pages(0, Some(1), round, &[0x1000]);
        machine.kernel.request_pages(0, Some(2), round, &[0x1000]);
        if round % 3 == 0 {
            machine.deliver();
        }
        match round % 4 {
            0 => guest.unbind(0, 1),
            2 => guest.serve().clear(),
            _ => {
                guest.tables.set_word(
                    Gpa(entry.0 + 16),
                    roots[(round % 2) as usize].0 + u64::from(round / 2 % 2) * 4096,
                );
                guest.tables.set_word(entry, guest.tables.word(entry) | 1);
                guest.submit(&[pasid_cache(1), iotlb_page(1, 0)]);
            }
        }
        let objects = machine.kernel.audit().objects;
        assert!(
            objects.iter().all(|(kind, count)| most.get(kind).is_some_and(|most| count <= most)),
            "{objects:?}"
        );
    }
    machine.deliver();
    guest.serve();
    let audit = machine.kernel.audit();
    assert!(audit.groups.iter().all(|answers| answers.len() == 1));
    assert_eq!(audit.stale_responses, 0);
    machine.finish();
}

/// Answers to what nobody asked cost no system call, and answer nobody else.
#[test]
fn unknown_answers_reach_nobody() {
    let machine = Machine::new();
    let guest = Guest::boot(&machine);
    guest.bind(0, 1);
    let asked = machine.kernel.request_pages(0, Some(1), 9, &[0x1000]);
    machine.deliver();
    let before = machine.calls();
    let rid = |device| u64::from(source(device).0) << 16;
    for code in 0..16 {
        let unknown = [
            // Another group, another PASID, none, another device, nobody.
            (1 << 32 | rid(0) | code << 12 | 0x19, 10 << 3),
            (2 << 32 | rid(0) | code << 12 | 0x19, 9 << 3),
            (rid(0) | code << 12 | 9, 9 << 3),
            (1 << 32 | rid(1) | code << 12 | 0x19, 9 << 3),
            (1 << 32 | 0xffff << 16 | code << 12 | 0x19, 9 << 3),
        ];
        guest.submit(&unknown.repeat(10));
    }
    assert_eq!(machine.calls(), before);
    assert_eq!(guest.serve(), [0x1000]);
    // Twice is once too often.
    guest.submit(&[(1 << 32 | rid(0) | 0x19, 9 << 3); 3]);
    assert_eq!(machine.kernel.audit().groups[asked], [Answer::Written(0)]);
    assert_eq!(machine.count(Call::FaultWrite), 1);
    machine.finish();
}

/// Rings full of descriptors that each want all there is: bounded work for the kernel.
#[test]
fn floods_become_few_system_calls() {
    let machine = Machine::new();
    let guest = Guest::boot(&machine);
    for pasid in 1..=8 {
        guest.bind(0, pasid);
    }
    let before = machine.calls();
    guest.submit(&[(0xd2, 0); 250]);
    assert_eq!(machine.calls() - before, 8, "one for each table");
    let wild: Vec<_> = (0..250).map(|n| iotlb_page(n % 8 + 1, u64::from(n) << 40 | 40)).collect();
    let before = machine.calls();
    guest.submit(&wild);
    assert_eq!(machine.calls() - before, 8);
    let before = machine.calls();
    guest.submit(&[ALL_CONTEXTS; 250]);
    assert_eq!(machine.calls(), before);
    machine.finish();
}
