//! What may be the case: registers, tables, requests, and what spoils them.

use proptest::prelude::*;
use proptest::sample::select;

use crate::oracle::{self, Registers};

const SOURCES: [u16; 4] = [0x0018, 0x0098, 0x1218, 0x0019];
const PASIDS: [u32; 6] = [0, 5, 63, 64, 0x2000, 0xf_ffff];
/// Input addresses: both halves, all widths, around the interrupt range, and not canonical.
const INPUTS: [u64; 14] = [
    0x7f12_3456_7000,
    0xffff_8123_4567_8000,
    0x00ab_cdef_1234_5000,
    0xff12_3456_789a_b000,
    0xfee0_1000,
    0xfeef_f000,
    0xfef0_0000,
    0xfed0_0000,
    0xc000_0000,
    0x8000_0000_0000,
    0x0100_0000_0000_0000,
    0x1000,
    0x40_0000_0000,
    0x7f_ffff_f000,
];
/// Inputs of the second stage. None shares its 1 GiB with where first-stage tables are mapped.
const MIDDLES: [u64; 5] = [0x12_3456_7000, 0xfee0_1000, 0xfef0_0000, 0x7f_ffff_f000, 0x3f_c000_0000];
/// Output addresses, before they are aligned to the size of the page.
const OUTPUTS: [u64; 7] =
    [0x1234_5000, 0xfee0_0000, 0xfeef_f000, 0xfed0_0000, 0xc000_0000, 0x3f_ffff_f000, 0x1_0000_0000];

/// How one word is spoiled.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Damage {
    Flip(u32),
    Zero,
    Ones,
    /// An address at which there is no memory.
    Astray,
}

impl Damage {
    pub(crate) fn apply(self, word: u64) -> u64 {
        match self {
            Self::Flip(bit) => word ^ 1 << bit,
            Self::Zero => 0,
            Self::Ones => u64::MAX,
            Self::Astray => word & 0xfff | 1 << 32,
        }
    }
}

/// One stage: how far down its tables go, and the flags of its entries by level.
#[derive(Clone, Debug)]
pub(crate) struct Stage {
    pub(crate) leaf_level: u64,
    pub(crate) flags: [u64; 5],
}

impl Stage {
    pub(crate) fn page_bits(&self) -> u64 {
        12 + 9 * (self.leaf_level - 1)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Tables {
    pub(crate) legacy: bool,
    /// TT of the legacy context entry.
    pub(crate) tt: u64,
    pub(crate) rid_pasid: u32,
    pub(crate) rid_priv: bool,
    /// DTE, PASIDE, PRE, FPD, EPTR.
    pub(crate) context: [bool; 5],
    pub(crate) pdts: u64,
    pub(crate) fpd: [bool; 2],
    pub(crate) pgtt: u64,
    pub(crate) five_level: bool,
    /// PWSNP, PGSNP, SRE, WPE, EAFE, SSADE.
    pub(crate) entry: [bool; 6],
    pub(crate) aw: u64,
    pub(crate) domain: u16,
    pub(crate) first: Stage,
    pub(crate) second: Stage,
    /// Flags of the second-stage pages that hold first-stage tables, and the level of their leaf.
    pub(crate) under: [u64; 5],
    pub(crate) under_level: u64,
    pub(crate) input: u64,
    pub(crate) middle: u64,
    pub(crate) output: u64,
    /// (which word of those on the path, how).
    pub(crate) damage: Vec<(usize, Damage)>,
}

impl Tables {
    /// The base of the page that is mapped, and the logarithm of its size.
    pub(crate) fn mapped(&self) -> (u64, u64) {
        let (address, bits) = if self.legacy || self.pgtt == 2 {
            (self.middle, self.second.page_bits())
        } else {
            (self.input, self.first.page_bits())
        };
        (address >> bits << bits, bits)
    }
}

/// A bit that is usually on or off.
fn mostly(on: bool) -> impl Strategy<Value = bool> {
    prop::bool::weighted(if on { 0.9 } else { 0.1 })
}

fn damage() -> impl Strategy<Value = (usize, Damage)> {
    let how = prop_oneof![
        6 => (0u32..64).prop_map(Damage::Flip),
        1 => Just(Damage::Zero),
        1 => Just(Damage::Ones),
        2 => Just(Damage::Astray),
    ];
    (0usize..96, how)
}

fn bits<const N: usize>(always: u64, bits: [(u32, f64); N]) -> impl Strategy<Value = u64> {
    bits.map(|(bit, weight)| prop::bool::weighted(weight).prop_map(move |on| u64::from(on) << bit))
        .prop_map(move |set| always | set.into_iter().sum::<u64>())
}

/// P is on; the others are those that the walk looks at or must not look at.
fn first_flags() -> impl Strategy<Value = u64> {
    bits(
        1,
        [
            (1, 0.8),
            (2, 0.9),
            (3, 0.2),
            (5, 0.6),
            (6, 0.5),
            (8, 0.2),
            (9, 0.2),
            (10, 0.5),
            (58, 0.2),
            (63, 0.2),
        ],
    )
}

fn second_flags() -> impl Strategy<Value = u64> {
    bits(
        0,
        [
            (0, 0.93),
            (1, 0.9),
            (2, 0.2),
            (5, 0.2),
            (6, 0.2),
            (8, 0.6),
            (9, 0.5),
            (10, 0.2),
            (55, 0.2),
            (61, 0.2),
            (63, 0.2),
        ],
    )
}

fn five<S: Strategy<Value = u64>>(flags: fn() -> S) -> impl Strategy<Value = [u64; 5]> {
    [flags(), flags(), flags(), flags(), flags()]
}

fn stage<S: Strategy<Value = u64>>(flags: fn() -> S) -> impl Strategy<Value = Stage> {
    (1u64..=3, five(flags)).prop_map(|(leaf_level, flags)| Stage { leaf_level, flags })
}

pub(crate) fn tables() -> impl Strategy<Value = Tables> {
    let context = (
        prop_oneof![6 => Just(0u32), 1 => select(&PASIDS[..])],
        mostly(false),
        [mostly(true), mostly(true), mostly(true), mostly(false), mostly(false)],
        prop_oneof![4 => Just(0u64), 1 => Just(7)],
        [mostly(false), mostly(false)],
        (prop::bool::weighted(0.2), select(&[0u64, 1, 1, 1, 2, 3][..])),
    );
    let entry = (
        prop_oneof![7 => Just(1u64), 7 => Just(2), 9 => Just(3), 2 => Just(4), 1 => Just(0)],
        any::<bool>(),
        (mostly(true), [any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()]),
        prop_oneof![12 => 1u64..=3, 1 => 0u64..=7],
        any::<u16>(),
    );
    let snoop = prop::bool::weighted(0.2);
    let pages = (
        (stage(first_flags), stage(second_flags), snoop),
        (five(second_flags), 1u64..=3),
        (select(&INPUTS[..]), select(&MIDDLES[..]), select(&OUTPUTS[..])),
        prop_oneof![2 => Just(Vec::new()), 3 => prop::collection::vec(damage(), 1..3)],
    );
    (context, entry, pages).prop_map(|(context, entry, pages)| {
        let (first, mut second, snoop) = pages.0;
        // SNP belongs to leaves.
        second.flags[usize::try_from(second.leaf_level - 1).unwrap()] |= u64::from(snoop) << 11;
        let [pgsnp, sre, wpe, eafe, ssade] = entry.2.1;
        Tables {
            legacy: context.5.0,
            tt: context.5.1,
            rid_pasid: context.0,
            rid_priv: context.1,
            context: context.2,
            pdts: context.3,
            fpd: context.4,
            pgtt: entry.0,
            five_level: entry.1,
            entry: [entry.2.0, pgsnp, sre, wpe, eafe, ssade],
            aw: entry.3,
            domain: entry.4,
            first,
            second,
            under: pages.1.0,
            under_level: pages.1.1,
            input: pages.2.0,
            middle: pages.2.1,
            output: pages.2.2,
            damage: pages.3,
        }
    })
}

pub(crate) fn registers() -> impl Strategy<Value = Registers> {
    // DT PT SC NEST PRS SRS NWFS EAFS PASID SMTS SSADS SSTS FSTS SMPWCS RPS RPRIVS
    let often = [2, 6, 7, 26, 29, 31, 33, 34, 40, 43, 45, 46, 47, 48, 49, 53];
    // ADMS PTRS
    let seldom = [52, 56];
    let ecap = (
        prop::collection::vec(prop::bool::weighted(0.012), often.len()),
        prop::collection::vec(any::<bool>(), seldom.len()),
        prop_oneof![4 => Just(19u64), 1 => Just(4), 1 => Just(12)],
    )
        .prop_map(move |(off, on, pss)| {
            let often = often.iter().zip(off).filter(|(_, off)| !off).map(|(bit, _)| 1u64 << bit);
            let seldom = seldom.iter().zip(on).filter(|(_, on)| *on).map(|(bit, _)| 1u64 << bit);
            often.chain(seldom).sum::<u64>() | pss << 35
        });
    // ND, SAGAW, MGAW, ZLR, SSLPS, FS1GP, FS5LP.
    let cap = (
        prop_oneof![4 => Just(6u64), 1 => Just(2)],
        (
            prop_oneof![8 => Just(7u64), 1 => 0u64..8],
            prop_oneof![4 => Just(56u64), 2 => Just(47), 1 => Just(38), 2 => Just(37), 1 => Just(36)],
        ),
        (mostly(true), prop_oneof![5 => Just(3u64), 1 => 0u64..4]),
        (mostly(true), mostly(true)),
    )
        .prop_map(|(nd, (sagaw, mgaw), (zlr, sslps), (gib, five))| {
            let second = sagaw << 9 | mgaw << 16 | u64::from(zlr) << 22 | sslps << 34;
            nd | second | u64::from(gib) << 56 | u64::from(five) << 60
        });
    let rtaddr = prop_oneof![
        30 => Just(0x400u64),
        1 => Just(0u64),
        1 => Just(0x800),
        1 => Just(0xc00),
        1 => Just(1 << 30 | 0x400),
    ];
    (select(&[39u32, 46, 52][..]), cap, ecap, mostly(true), rtaddr)
        .prop_map(|(haw, cap, ecap, enabled, rtaddr)| Registers { haw, cap, ecap, enabled, rtaddr })
}

#[derive(Clone, Debug)]
pub(crate) struct Ask {
    /// What another CPU does to the tables before.
    pub(crate) before: Option<(usize, Damage)>,
    pub(crate) request: oracle::Request,
    /// Use the address that is mapped, with this offset; else `request.address`.
    pub(crate) mapped: Option<u64>,
    /// Keep the PASID in legacy mode.
    pub(crate) keep_pasid: bool,
}

pub(crate) fn ask() -> impl Strategy<Value = Ask> {
    use oracle::{Access, AddressType};
    let at = prop_oneof![
        4 => Just(AddressType::Untranslated),
        2 => Just(AddressType::Translation { nw: false }),
        2 => Just(AddressType::Translation { nw: true }),
        1 => Just(AddressType::Translated),
    ];
    let access = select(&[Access::Read, Access::Write, Access::Atomic, Access::ZeroLength][..]);
    let pasid = prop_oneof![3 => Just(None), 6 => Just(Some(5u32)), 2 => select(&PASIDS[..]).prop_map(Some)];
    let source = prop_oneof![8 => Just(SOURCES[0]), 1 => select(&SOURCES[..])];
    let mapped = prop_oneof![
        4 => (0u64..0x1000).prop_map(Some),
        2 => (0u64..0x40_0000).prop_map(Some),
        1 => Just(None),
    ];
    let request = (source, pasid, select(&INPUTS[..]), access, at, mostly(false), mostly(false)).prop_map(
        |(source, pasid, address, access, at, pr, er)| oracle::Request {
            source,
            pasid,
            address,
            access,
            at,
            pr,
            er,
        },
    );
    let before = prop_oneof![6 => Just(None), 1 => damage().prop_map(Some)];
    (before, request, mapped, mostly(false)).prop_map(|(before, request, mapped, keep_pasid)| Ask {
        before,
        request,
        mapped,
        keep_pasid,
    })
}
