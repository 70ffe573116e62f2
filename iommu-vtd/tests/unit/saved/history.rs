//! A random history, with a move in the middle of it.

use std::sync::Arc;

use iommu_core::testkit::RecordingEndpoint;
use iommu_core::{
    Access, DeviceTlbInvalidation, GroupIndex, InterruptRemapper, Iova, Msi, PageRequest, PageResponse,
    Pasid, Request, SourceId, Translator, VendorData,
};
use iommu_vtd::UnitState;
use proptest::collection::vec;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::{VIRTUAL, bound, moved, remapping};
use crate::driver::{
    ENDPOINT, FSTS, GCMD, GSTS, IQA, IQE, IQH, IQT, Machine, PQA, PQH, PQT, PRS, QIE, RING, STATUS, TE,
};

const IRE: u32 = 1 << 25;
const CFI: u32 = 1 << 23;
const LEVELS: u32 = TE | QIE | IRE | CFI;
/// The interrupt remapping table: 16 entries.
const IRT: u64 = 0x6_0000;

#[derive(Clone, Debug)]
enum Step {
    Fault {
        pasid: u32,
        page: u64,
    },
    PageRequest {
        pasid: u32,
        group: u16,
        last: bool,
    },
    /// Into the ring; the tail follows or does not.
    Submit {
        words: [u64; 2],
        kick: bool,
    },
    Repair,
    Consume {
        status: u32,
    },
    ClearRecord(u64),
    ClearFaults(u32),
    Mask {
        control: u64,
        on: bool,
    },
    Write {
        offset: u64,
        value: u32,
    },
    /// An interrupt, by an entry or in compatibility format.
    Interrupt {
        index: u64,
        remappable: bool,
    },
    SetTable,
    Level {
        bit: u32,
        on: bool,
    },
    Queue {
        small: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let words = prop::sample::select(vec![
        [0x11, 0],
        [0x37, 0],
        [0xd2, 0],
        [0x1_0001_0026, 0],
        [1 << 32 | 0x18 << 16 | 0x108, 0x7fff_ffff_ffff_f800],
        [1 << 32 | 0x18 << 16 | 0x19, 3 << 3],
        [2 << 32 | 0x25, STATUS],
        [3 << 32 | 0xb5, STATUS + 8],
        [0xf, 0],
        [0x11 | 1 << 63, 0],
    ]);
    let control = || prop::sample::select(vec![0x38, 0xa0, 0xe0]);
    let plain = prop::sample::select(vec![
        0x3c, 0x40, 0x44, 0xa4, 0xa8, 0xe4, 0xe8, 0x28, 0x2c, 0xf0, 0xf8, 0xfc, 0x9c,
    ]);
    prop_oneof![
        4 => (0_u32..3, 0_u64..4).prop_map(|(pasid, page)| Step::Fault { pasid, page }),
        6 => (0_u32..3, 0_u16..9, any::<bool>())
            .prop_map(|(pasid, group, last)| Step::PageRequest { pasid, group, last }),
        6 => (words, any::<bool>()).prop_map(|(words, kick)| Step::Submit { words, kick }),
        2 => Just(Step::Repair),
        1 => (0_u32..4).prop_map(|status| Step::Consume { status }),
        2 => (0_u64..8).prop_map(Step::ClearRecord),
        1 => (0_u32..128).prop_map(Step::ClearFaults),
        3 => (control(), any::<bool>()).prop_map(|(control, on)| Step::Mask { control, on }),
        2 => (plain, any::<u32>()).prop_map(|(offset, value)| Step::Write { offset, value }),
        1 => (prop::sample::select(vec![TE, QIE, IRE, CFI]), prop::bool::weighted(0.8))
            .prop_map(|(bit, on)| Step::Level { bit, on }),
        1 => any::<bool>().prop_map(|small| Step::Queue { small }),
        4 => (0_u64..18, prop::bool::weighted(0.8))
            .prop_map(|(index, remappable)| Step::Interrupt { index, remappable }),
        1 => Just(Step::SetTable),
    ]
}

/// A machine, its endpoint, and what the endpoint and its function saw.
struct World {
    machine: Machine,
    endpoint: Arc<RecordingEndpoint>,
    outcomes: Vec<String>,
}

/// Everything that a guest or a device can tell two worlds apart by.
#[derive(Debug, PartialEq)]
struct Seen {
    registers: Vec<u8>,
    memory: Vec<u8>,
    interrupts: Vec<(SourceId, Msi)>,
    invalidations: Vec<DeviceTlbInvalidation>,
    responses: Vec<PageResponse>,
    outcomes: Vec<String>,
    state: UnitState,
}

impl World {
    fn new() -> Self {
        let machine = remapping();
        bound(&machine);
        for vector in 0..16 {
            machine.set_word(IRT + 16 * vector, (0x30 + vector) << 16 | 1);
        }
        machine.write64(0xb8, IRT | 3);
        // 127 page requests fill the queue.
        machine.write64(PQA, 0x2_0000);
        let endpoint = Arc::new(RecordingEndpoint::default());
        machine.attach(&endpoint);
        Self { machine, endpoint, outcomes: Vec::new() }
    }

    fn moved(&mut self) {
        self.machine = moved(&self.machine);
        self.machine.attach(&self.endpoint);
        self.machine.unit.resume();
    }

    fn step(&mut self, step: &Step) {
        let machine = &self.machine;
        match *step {
            Step::Fault { pasid, page } => {
                let request =
                    Request::untranslated(ENDPOINT, Pasid::new(pasid), Iova(page << 12), Access::Write);
                let outcome = machine.unit.translate(&request).inspect_err(|f| machine.unit.report(f));
                self.outcomes.push(format!("{outcome:?}"));
            }
            Step::PageRequest { pasid, group, last } => self.page_requests(pasid, group, last),
            Step::Submit { words, kick } => {
                let tail = (machine.read64(IQT) % 4096) & !31;
                for (index, word) in words.into_iter().chain([0, 0]).enumerate() {
                    machine.set_word(RING + tail + 8 * index as u64, word);
                }
                if kick {
                    machine.write64(IQT, (tail + 32) % 4096);
                }
            }
            Step::Repair => {
                let head = machine.read64(IQH);
                for (index, word) in [2 << 32 | 0x25, STATUS, 0, 0].into_iter().enumerate() {
                    machine.set_word(RING + head + 8 * index as u64, word);
                }
                machine.write32(FSTS, IQE);
            }
            Step::Consume { status } => {
                machine.write64(PQH, machine.read64(PQT));
                machine.write32(PRS, status);
            }
            Step::ClearRecord(record) => machine.write32(0x22c + 16 * record, 1 << 31),
            Step::ClearFaults(bits) => machine.write32(FSTS, bits),
            Step::Mask { control, on } => machine.write32(control, u32::from(on) << 31),
            Step::Write { offset, value } => machine.write32(offset, value),
            Step::Level { bit, on } => {
                let levels = machine.read32(GSTS) & LEVELS;
                machine.write32(GCMD, if on { levels | bit } else { levels & !bit });
            }
            Step::SetTable => machine.write32(GCMD, machine.read32(GSTS) & LEVELS | 1 << 24),
            Step::Interrupt { index, remappable } => {
                let address = 0xfee0_0000 | index << 5 | u64::from(remappable) << 4;
                machine.unit.deliver(ENDPOINT, Msi { address, data: 0 }, &*machine.msi);
            }
            Step::Queue { small } => machine.write64(IQA, RING | 1 << 11 | u64::from(!small)),
        }
    }

    /// Some at once: a queue of 127 overflows within a short history.
    fn page_requests(&mut self, pasid: u32, group: u16, last: bool) {
        let request = PageRequest {
            source: ENDPOINT,
            pasid: Pasid::new(pasid),
            address: Iova(VIRTUAL),
            read: true,
            write: false,
            execute: false,
            privileged: false,
            last,
            group: GroupIndex::truncate(group),
            vendor: VendorData::NONE,
        };
        for _ in 0..=group * group {
            let outcome = self.machine.unit.page_request(&request);
            self.outcomes.push(format!("{outcome:?}"));
        }
    }

    fn seen(&self) -> Seen {
        let mut registers = vec![0; 4096];
        self.machine.unit.mmio_read(0, &mut registers);
        let mut memory = vec![0; 0x11_0000];
        self.machine.memory.read_slice(&mut memory, GuestAddress(0)).unwrap();
        Seen {
            registers,
            memory,
            interrupts: self.machine.msi.sent.lock().clone(),
            invalidations: self.endpoint.invalidations.lock().clone(),
            responses: self.endpoint.responses.lock().clone(),
            outcomes: self.outcomes.clone(),
            state: self.machine.unit.save(),
        }
    }
}

proptest! {
    /// Two machines live through the same history, and one of them gets a new unit in the middle of it.
    #[test]
    fn a_move_is_not_noticed(steps in vec(step(), 1..60), at in any::<prop::sample::Index>()) {
        let (mut stays, mut moves) = (World::new(), World::new());
        let at = at.index(steps.len());
        for (index, step) in steps.iter().enumerate() {
            if index == at {
                moves.moved();
            }
            stays.step(step);
            moves.step(step);
        }
        prop_assert_eq!(stays.seen(), moves.seen());
    }
}
