//! Whatever a guest writes wherever: no panic, and the device still works afterwards.

use iommu_core::{PageRequestOutcome, ResponseCode};
use proptest::prelude::*;

use super::rig::{Rig, control_page, portal_page, response};
use crate::pci::PciFunction;

#[derive(Clone, Debug)]
enum Step {
    Write { bar: u8, offset: u64, data: Vec<u8> },
    Read { bar: u8, offset: u64, length: usize },
    Config { offset: u16, data: Vec<u8> },
    Respond { group: u16, code: ResponseCode },
    Invalidate { page: u64 },
    Map { page: u64 },
    Unmap { page: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let data = || prop::collection::vec(prop_oneof![any::<u8>(), 0_u8..7], 1..=8);
    let register = || {
        prop_oneof![
            4 => (0_u8..2, 0_u64..0x48).prop_map(|(q, at)| portal_page(q) + at),
            2 => (0_u8..2, 0_u64..0x60).prop_map(|(q, at)| control_page(q) + at),
            1 => 0_u64..0x100,
            1 => 0_u64..0x3_fff8,
        ]
    };
    let code =
        prop_oneof![Just(ResponseCode::Success), Just(ResponseCode::Invalid), Just(ResponseCode::Failure)];
    prop_oneof![
        6 => (register(), data()).prop_map(|(offset, data)| Step::Write { bar: 0, offset, data }),
        3 => (0_u8..2, 0_usize..8).prop_map(|(q, fill)| Step::Write {
            bar: 0, offset: portal_page(q) + 0x38, data: vec![u8::try_from(fill).unwrap(); 8]
        }),
        1 => (0_u64..0xff8, data()).prop_map(|(offset, data)| Step::Write { bar: 1, offset, data }),
        1 => (0_u8..2, 0_u64..0xff8, 1_usize..=8)
            .prop_map(|(bar, offset, length)| Step::Read { bar, offset, length }),
        1 => (0x4_u16..0x1f8, data()).prop_map(|(offset, data)| Step::Config { offset, data }),
        1 => (0_u16..8, code).prop_map(|(group, code)| Step::Respond { group, code }),
        1 => (0_u64..16).prop_map(|page| Step::Invalidate { page }),
        1 => (0_u64..16).prop_map(|page| Step::Map { page }),
        1 => (0_u64..16).prop_map(|page| Step::Unmap { page }),
    ]
}

fn apply(rig: &Rig, step: &Step) {
    let iova = |page: &u64| page * 0x1000;
    match step {
        Step::Write { bar, offset, data } => rig.function.bar_write(*bar, *offset, data),
        Step::Read { bar, offset, length } => {
            rig.function.bar_read(*bar, *offset, &mut vec![0; *length]);
        }
        Step::Config { offset, data } => rig.function.config_write(*offset, data),
        Step::Respond { group, code } => rig.respond_to(iommu_core::GroupIndex::truncate(*group), *code),
        Step::Invalidate { page } => rig.invalidate(iova(page)),
        Step::Map { page } => rig.map_to(iova(page), 0x80_0000 + iova(page), page % 3 != 0),
        Step::Unmap { page } => rig.iommu.unmap(Some(super::rig::PASID), iova(page)),
    }
}

/// Answers of all kinds, by address.
fn answer(rig: &Rig) {
    let function = std::sync::Arc::downgrade(&rig.function);
    rig.iommu.on_page_request(move |_, request| match request.address.0 >> 12 & 7 {
        0 => PageRequestOutcome::Queued,
        1 => PageRequestOutcome::Dropped,
        2 => PageRequestOutcome::Answered(ResponseCode::Success),
        3 => PageRequestOutcome::Answered(ResponseCode::Failure),
        4 => {
            // Success that helps nobody, a few times.
            let code =
                if request.group.get() % 4 == 0 { ResponseCode::Invalid } else { ResponseCode::Success };
            if let Some(function) = function.upgrade() {
                iommu_core::Endpoint::page_group_response(&*function, &response(request.group, code));
            }
            PageRequestOutcome::Queued
        }
        _ => PageRequestOutcome::Answered(ResponseCode::Invalid),
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn random_accesses_leave_the_device_usable(steps in prop::collection::vec(step(), 0..80)) {
        let rig = Rig::new();
        answer(&rig);
        for step in &steps {
            apply(&rig, step);
        }
        // What a driver does that finds the device in an unknown state.
        rig.function.reset();
        for queue in 0..2 {
            rig.until_idle(queue);
        }
        rig.bring_up();
        for queue in 0..2 {
            rig.assert_alive(queue);
        }
    }

    #[test]
    fn random_portal_stores_never_hang_the_queue(
        stores in prop::collection::vec((0_u64..0x48, prop::collection::vec(any::<u8>(), 1..=8)), 0..60)
    ) {
        let rig = Rig::new();
        for (offset, data) in &stores {
            rig.function.bar_write(0, portal_page(0) + offset, data);
        }
        // Complete what is staged; it is then empty.
        rig.function.bar_write(0, portal_page(0) + 0x3f, &[0]);
        rig.until_idle(0);
        rig.assert_alive(0);
    }
}
