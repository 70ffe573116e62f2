//! Whatever a guest writes wherever: no panic, no hang, and the device works after a reset.

use proptest::prelude::*;

use super::rig::{AVAILABLE, BUFFERS, DESCRIPTORS, NOTIFY, Rig, USED, disk};
use crate::pci::PciFunction;

#[derive(Clone, Debug)]
enum Step {
    Register { bar: u8, offset: u64, data: Vec<u8> },
    Read { bar: u8, offset: u64, len: usize },
    Config { offset: u16, data: Vec<u8> },
    Memory { address: u64, data: Vec<u8> },
    Descriptor { table: u64, index: u16, buffer: (u64, u32, bool), flags: u16, next: u16 },
    Offer(u16),
    Unmap(u64),
    Kick,
}

fn page() -> impl Strategy<Value = u64> {
    prop_oneof![Just(DESCRIPTORS), Just(AVAILABLE), Just(USED), (0_u64..6).prop_map(|n| BUFFERS + n * 0x1000)]
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => (page(), 0_u64..0x1000).prop_map(|(page, at)| page + at),
        4 => page(),
        1 => any::<u64>(),
        1 => Just(u64::MAX - 3),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let data = || prop::collection::vec(prop_oneof![any::<u8>(), 0_u8..16], 1..=8);
    let len = prop_oneof![Just(16_u32), Just(512), Just(1), 0_u32..0x4000, any::<u32>()];
    prop_oneof![
        2 => (0_u64..0x40, data()).prop_map(|(offset, data)| Step::Register { bar: 0, offset, data }),
        1 => (0_u64..0x4000, data()).prop_map(|(offset, data)| Step::Register { bar: 0, offset, data }),
        1 => (0_u64..0x40, data()).prop_map(|(offset, data)| Step::Register { bar: 1, offset, data }),
        1 => (0_u8..2, 0_u64..0xff8, 1_usize..=8).prop_map(|(bar, offset, len)| Step::Read { bar, offset, len }),
        1 => (4_u16..0x108, data()).prop_map(|(offset, data)| Step::Config { offset, data }),
        3 => (page(), 0_u64..64, data()).prop_map(|(page, at, data)| Step::Memory { address: page + at, data }),
        10 => (prop_oneof![4 => Just(DESCRIPTORS), 1 => Just(BUFFERS + 0x4000)], 0_u16..16, address(), len, any::<bool>(),
               prop_oneof![0_u16..4, 0_u16..8], 0_u16..18)
            .prop_map(|(table, index, address, len, write, flags, next)| Step::Descriptor {
                table, index, buffer: (address, len, write), flags, next }),
        5 => prop_oneof![9 => 0_u16..16, 1 => any::<u16>()].prop_map(Step::Offer),
        1 => page().prop_map(Step::Unmap),
        4 => Just(Step::Kick),
    ]
}

fn apply(rig: &mut Rig, step: &Step) {
    match step {
        Step::Register { bar, offset, data } => rig.function.bar_write(*bar, *offset, data),
        Step::Read { bar, offset, len } => rig.function.bar_read(*bar, *offset, &mut vec![0; *len]),
        Step::Config { offset, data } => rig.function.config_write(*offset, data),
        Step::Memory { address, data } => rig.poke_if_mapped(*address, data),
        Step::Descriptor { table, index, buffer, flags, next } => {
            let mut bytes = [&buffer.0.to_le_bytes()[..], &buffer.1.to_le_bytes()].concat();
            bytes.extend(flags.to_le_bytes());
            bytes.extend(next.to_le_bytes());
            rig.poke_if_mapped(table + u64::from(*index) * 16, &bytes);
        }
        Step::Offer(head) => rig.offer(*head),
        Step::Unmap(page) => rig.unmap(*page),
        Step::Kick => rig.kick(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn random_rings_leave_the_device_usable(steps in prop::collection::vec(step(), 0..80)) {
        let mut rig = Rig::new();
        let pages: Vec<(u64, u64)> = [DESCRIPTORS, AVAILABLE, USED].into_iter()
            .chain((0..6).map(|n| BUFFERS + n * 0x1000)).map(|page| (page, rig.gpa(page))).collect();
        for step in &steps {
            apply(&mut rig, step);
        }
        // Whatever it was doing, a driver that does not know has a way out.
        rig.function.reset();
        for (page, gpa) in pages {
            rig.map_to(page, gpa, true);
        }
        rig.bring_up(u64::MAX);
        prop_assert_eq!(rig.request(4, 0, &[]), 0);
    }

    /// Registers alone, from power-on: constants stay.
    #[test]
    fn random_register_writes_keep_constants(
        writes in prop::collection::vec((0_u64..0x40, prop::collection::vec(any::<u8>(), 1..=8)), 0..60)
    ) {
        let rig = Rig::cold(disk(), false);
        let offered = rig.offered();
        for (offset, data) in &writes {
            rig.function.bar_write(0, *offset, data);
            rig.function.bar_write(0, NOTIFY, data);
            prop_assert_eq!(rig.read16(super::rig::reg::QUEUES), 1);
            prop_assert_eq!(rig.status() & 0x30, 0);
        }
        prop_assert_eq!(rig.offered(), offered);
    }
}
