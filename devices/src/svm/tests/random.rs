//! Whatever a guest writes wherever: no panic, no work that never ends, nothing written outside the address space, and
//! the device still works afterwards.

use iommu_core::{PageRequestOutcome, PageResponse, ResponseCode};
use proptest::prelude::*;

use super::rig::{MEMORY_BYTES, PASID, RECORDS, Rig, control_page, portal_page, response, window_page};
use crate::pci::PciFunction;
use crate::svm::spec::Descriptor;
use iommu_core::testkit::Page;
use vm_memory::{Bytes, GuestAddress};
use zerocopy::IntoBytes;

/// Where the pages that steps map are in memory.
const OWN: u64 = 0x80_0000;
/// As many as there are.
const OWN_BYTES: u64 = 0x1_3000;

#[derive(Clone, Debug)]
enum Step {
    Write {
        bar: u8,
        offset: u64,
        data: Vec<u8>,
    },
    Read {
        bar: u8,
        offset: u64,
        length: usize,
    },
    Config {
        offset: u16,
        data: Vec<u8>,
    },
    Respond {
        group: u16,
        code: ResponseCode,
    },
    Invalidate {
        page: u64,
    },
    Map {
        page: u64,
    },
    Unmap {
        page: u64,
    },
    /// A descriptor that makes some sense, through a page of BAR0.
    Submit {
        at: u64,
        descriptor: Descriptor,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let data = || prop::collection::vec(prop_oneof![any::<u8>(), 0_u8..10], 1..=8);
    let register = || {
        prop_oneof![
            4 => (0_u8..2, 0_u64..0x48).prop_map(|(q, at)| portal_page(q) + at),
            2 => (0_u8..2, 0_u64..0x60).prop_map(|(q, at)| control_page(q) + at),
            2 => (0_u8..4, 0_u64..0x50).prop_map(|(w, at)| window_page(w) + at),
            1 => 0_u64..0x140,
            1 => 0x800_u64..0x840,
            1 => 0_u64..0x3_fff8,
        ]
    };
    let code =
        prop_oneof![Just(ResponseCode::Success), Just(ResponseCode::Invalid), Just(ResponseCode::Failure)];
    prop_oneof![
        6 => (register(), data()).prop_map(|(offset, data)| Step::Write { bar: 0, offset, data }),
        4 => (page(), descriptor()).prop_map(|(at, descriptor)| Step::Submit { at, descriptor }),
        3 => (0_u8..2, 0_usize..10).prop_map(|(q, fill)| Step::Write {
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

/// Portals and windows.
fn page() -> impl Strategy<Value = u64> {
    prop_oneof![(0_u8..2).prop_map(portal_page), (0_u8..3).prop_map(window_page)]
}

/// Over the pages that steps map, and a little beyond.
fn descriptor() -> impl Strategy<Value = Descriptor> {
    let fields = (0_u8..10, 0_u8..32, 0_u8..20, 0_u64..32);
    let spans = (0_u64..0x1_2000, 0_u64..0x1_2000, 0_u64..0x9000);
    (fields, spans).prop_map(|((opcode, flags, ahead, record), (source, destination, length))| {
        let is_batch = opcode == 6;
        Descriptor {
            opcode,
            flags,
            ahead,
            record: (RECORDS + record * 16).into(),
            source: (if is_batch { source & !0x3f } else { source }).into(),
            destination: destination.into(),
            length: (if is_batch { length % 200 } else { length }).into(),
            operand: (length % 2).into(),
            ..Descriptor::default()
        }
    })
}

fn apply(rig: &Rig, step: &Step) {
    let iova = |page: &u64| page * 0x1000;
    match step {
        Step::Write { bar, offset, data } => rig.function.bar_write(*bar, *offset, data),
        Step::Read { bar, offset, length } => {
            rig.function.bar_read(*bar, *offset, &mut vec![0; *length]);
        }
        Step::Config { offset, data } => rig.function.config_write(*offset, data),
        Step::Submit { at, descriptor } => {
            for (offset, word) in (*at..).step_by(8).zip(descriptor.as_bytes().chunks(8)) {
                rig.function.bar_write(0, offset, word);
            }
        }
        Step::Respond { group, code } => rig.respond_to(iommu_core::GroupIndex::truncate(*group), *code),
        Step::Invalidate { page } => rig.invalidate(iova(page)),
        Step::Map { page } => rig.map_to(iova(page), OWN + iova(page), page % 3 != 0),
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

/// Maps the even pages that steps name, and refuses all others.
fn serve(rig: &Rig) {
    let function = std::sync::Arc::downgrade(&rig.function);
    rig.iommu.on_page_request(move |iommu, request| {
        let iova = request.address.0;
        let good = iova < OWN_BYTES && iova & 0x1000 == 0;
        if good {
            iommu.map(Page { pasid: request.pasid, iova, gpa: OWN + iova, write: true });
        }
        let code = if good { ResponseCode::Success } else { ResponseCode::Invalid };
        match function.upgrade() {
            Some(function) if request.last => {
                let response = PageResponse { pasid: request.pasid, ..response(request.group, code) };
                iommu_core::Endpoint::page_group_response(&*function, &response);
                PageRequestOutcome::Queued
            }
            _ => PageRequestOutcome::Queued,
        }
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
    fn what_it_does_ends_and_stays_inside(steps in prop::collection::vec(step(), 0..60)) {
        const POISON: u8 = 0xa5;
        let rig = Rig::new();
        let records = rig.records_at(RECORDS);
        rig.memory.write_slice(&vec![POISON; MEMORY_BYTES], GuestAddress(0)).unwrap();
        rig.memory.write_slice(&[0; 4096], GuestAddress(records)).unwrap();
        serve(&rig);
        rig.share(1);
        rig.open_window(0, 1, PASID);
        for step in &steps {
            apply(&rig, step);
        }
        for queue in 0..2 {
            rig.until_idle(queue);
        }
        let mut page = [0; 4096];
        for gpa in (0..MEMORY_BYTES as u64).step_by(4096) {
            let own = gpa == records || (OWN..OWN + OWN_BYTES).contains(&gpa);
            rig.memory.read_slice(&mut page, GuestAddress(gpa)).unwrap();
            prop_assert!(own || page == [POISON; 4096], "written at {:#x}", gpa);
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
