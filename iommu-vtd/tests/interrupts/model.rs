//! A naive model of §5.1, straight from the manual's tables, and random messages through both.

use iommu_core::{Msi, SourceId};
use iommu_vtd::Profile;
use proptest::prelude::*;

use crate::bench::{Bench, CFI, EIME, IRE, Seen, TABLE, profile};

/// What commands have set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    pub(crate) remapping: bool,
    pub(crate) compatibility: bool,
    pub(crate) extended: bool,
    pub(crate) size: u32,
    pub(crate) posting: bool,
}

/// Bits hi:lo of a number.
fn bits(value: u128, high: u32, low: u32) -> u128 {
    value >> low & ((1 << (high - low + 1)) - 1)
}

/// Which entry a message asks for, or what else becomes of it.
pub(crate) fn index_of(setting: Setting, source: SourceId, msi: Msi) -> Result<u16, Seen> {
    let address = u128::from(msi.address);
    if bits(address, 63, 20) != 0xfee {
        return Err(Seen::Nothing);
    }
    if !setting.remapping {
        return Err(Seen::Arrived(msi));
    }
    if bits(address, 4, 4) == 0 {
        let blocked = setting.extended || !setting.compatibility;
        return Err(if blocked { Seen::Fault(0x25, source, 0) } else { Seen::Arrived(msi) });
    }
    let mut index = bits(address, 19, 5) + 0x8000 * bits(address, 2, 2);
    if bits(address, 3, 3) == 1 {
        if bits(msi.data.into(), 31, 16) != 0 {
            return Err(Seen::Fault(0x20, source, 0));
        }
        index += bits(msi.data.into(), 15, 0);
    }
    let named = u16::try_from(index & 0xffff).unwrap();
    if index >= 1 << (setting.size + 1) { Err(Seen::Fault(0x21, source, named)) } else { Ok(named) }
}

/// What an entry does to a message of `source`. Its descriptor, if it has one, is all zero.
pub(crate) fn by_entry(setting: Setting, source: SourceId, index: u16, entry: u128) -> Seen {
    let fault = |reason| {
        if bits(entry, 1, 1) == 1 { Seen::Nothing } else { Seen::Fault(reason, source, index) }
    };
    if bits(entry, 0, 0) == 0 {
        return fault(0x22);
    }
    let sid = bits(entry, 79, 64);
    let asks = u128::from(source.0);
    let known = match bits(entry, 83, 82) {
        0 => true,
        1 => {
            let ignored: &[u32] =
                [&[][..], &[2], &[2, 1], &[2, 1, 0]][usize::try_from(bits(entry, 81, 80)).unwrap()];
            (0..16).all(|bit| ignored.contains(&bit) || bits(sid, bit, bit) == bits(asks, bit, bit))
        }
        2 => bits(sid, 15, 8) <= bits(asks, 15, 8) && bits(asks, 15, 8) <= bits(sid, 7, 0),
        _ => return fault(0x24),
    };
    if !known {
        return fault(0x26);
    }
    let reserved: &[(u32, u32)] = match (bits(entry, 15, 15), setting.extended) {
        (0, true) => &[(13, 12), (14, 14), (31, 24), (127, 84)],
        (0, false) => &[(13, 12), (14, 14), (31, 24), (127, 84), (39, 32), (63, 48)],
        (_, _) if setting.posting => &[(4, 2), (7, 5), (13, 12), (37, 24), (95, 84), (127, 110)],
        (_, _) => return fault(0x24),
    };
    if reserved.iter().any(|(high, low)| bits(entry, *high, *low) != 0) {
        return fault(0x24);
    }
    if bits(entry, 15, 15) == 1 {
        let address = bits(entry, 127, 96) << 32 | bits(entry, 63, 38) << 6;
        // 16 MiB of memory. The notification of an empty descriptor: vector 0 to CPU 0.
        let empty = Msi { address: 0xfee0_0000, data: 0x4000 };
        return if address < 16 << 20 { Seen::Arrived(empty) } else { fault(0x27) };
    }
    let mode = bits(entry, 7, 5);
    if mode == 3 || mode == 6 {
        return fault(0x24);
    }
    let destination = if setting.extended { bits(entry, 63, 32) } else { bits(entry, 47, 40) };
    let address = bits(destination, 31, 8) << 40
        | 0xfee << 20
        | bits(destination, 7, 0) << 12
        | bits(entry, 3, 3) << 3
        | bits(entry, 2, 2) << 2;
    let data = bits(entry, 4, 4) << 15 | 1 << 14 | mode << 8 | bits(entry, 23, 16);
    Seen::Arrived(Msi { address: u64::try_from(address).unwrap(), data: u32::try_from(data).unwrap() })
}

/// Entries that are mostly good: random in all fields, reserved bits seldom set.
pub(crate) fn entries() -> impl Strategy<Value = u128> {
    let fields: u128 = 0x0000_0000_000f_ffff_ffff_ffff_00ff_0fff;
    let posted: u128 = 0x0000_0000_000f_ffff_00ff_ffc0_00ff_4f03 | 1 << 15;
    let sid = prop_oneof![Just(0u128), Just(0x18), Just(0x0005), Just(0x1c)];
    let good = (any::<u128>(), any::<bool>(), sid, 0u128..4, prop_oneof![4 => 0u128..3, 1 => Just(3)])
        .prop_map(move |(random, posts, sid, sq, svt)| {
            let format = if posts { random & posted | 1 << 15 } else { random & fields };
            let clear = !(0xffff_u128 << 64 | 0xf << 80);
            (format & clear) | svt << 82 | sq << 80 | sid << 64
        });
    let present = prop_oneof![5 => Just(1u128), 1 => Just(0)];
    let silent = prop_oneof![5 => Just(0u128), 1 => Just(2)];
    let flip = prop_oneof![3 => Just(0u128), 1 => (0u32..128).prop_map(|bit| 1 << bit)];
    (good, present, silent, flip)
        .prop_map(|(good, present, silent, flip)| ((good & !3) | present | silent) ^ flip)
}

pub(crate) fn sources() -> impl Strategy<Value = SourceId> {
    prop_oneof![Just(0x18u16), Just(0x1c), Just(0), Just(0x0300), any::<u16>()].prop_map(SourceId)
}

fn messages() -> impl Strategy<Value = Msi> {
    let address = prop_oneof![
        8 => (0u64..1 << 20).prop_map(|low| 0xfee0_0000 | low),
        4 => (0u64..1 << 20).prop_map(|low| 0xfee0_0010 | low),
        1 => any::<u64>(),
        1 => any::<u32>().prop_map(u64::from),
    ];
    let data = prop_oneof![4 => 0u32..8, 1 => any::<u32>(), 1 => any::<u16>().prop_map(u32::from)];
    (address, data).prop_map(|(address, data)| Msi { address, data })
}

fn settings() -> impl Strategy<Value = Setting> {
    let remapping = prop_oneof![9 => Just(true), 1 => Just(false)];
    let size = prop_oneof![4 => Just(15u32), 1 => 0u32..16];
    (remapping, any::<bool>(), any::<bool>(), size, any::<bool>()).prop_map(
        |(remapping, compatibility, extended, size, posting)| Setting {
            remapping,
            compatibility,
            extended,
            size,
            posting,
        },
    )
}

pub(crate) fn bench(setting: Setting) -> Bench {
    let bench = Bench::new(&Profile { posted_interrupts: setting.posting, ..profile() });
    let extended = if setting.extended { EIME } else { 0 };
    bench.set_table(TABLE | u64::from(setting.size) | extended, 0);
    let levels = if setting.remapping { IRE } else { 0 } | if setting.compatibility { CFI } else { 0 };
    bench.command(levels);
    bench
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// One message by one entry: the same outcome as the model's, from memory and, if it is kept, from the cache.
    #[test]
    fn messages_become_what_the_model_says(
        setting in settings(), entry in entries(), source in sources(), msi in messages(),
    ) {
        let bench = bench(setting);
        let expected = match index_of(setting, source, msi) {
            Err(seen) => seen,
            Ok(index) => {
                bench.set_entry(index, entry);
                by_entry(setting, source, index, entry)
            }
        };
        prop_assert_eq!(bench.send(source, msi), expected.clone());
        let posted = entry >> 15 & 1 == 1;
        if !posted {
            prop_assert_eq!(bench.send(source, msi), expected);
        }
    }
}
