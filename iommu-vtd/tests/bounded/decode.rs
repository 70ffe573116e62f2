//! Decoding of descriptors, interrupt messages and interrupt entries.

use iommu_core::{Msi, SourceId};
use iommu_vtd::interrupt::remap::{self, InterruptRules, Latch, Path};
use iommu_vtd::invalidation::{QueueMode, decode};
use iommu_vtd::spec::interrupt::TableAddress;
use iommu_vtd::spec::registers::TranslationTableMode;
use iommu_vtd::{Capability, Profile};

use crate::dream::Dice;

fn capabilities() -> [Capability; 3] {
    let full = Profile {
        interrupt_remapping: true,
        extended_interrupts: true,
        posted_interrupts: true,
        ..Profile::full(46)
    };
    [full, Profile::legacy(39), Profile::scalable(52)].map(|profile| Capability::new(&profile).unwrap())
}

fn modes() -> impl Iterator<Item = QueueMode> {
    use TranslationTableMode::{AbortDma, Legacy, Reserved, Scalable};
    [false, true]
        .into_iter()
        .flat_map(|wide| [Legacy, Scalable, Reserved, AbortDma].map(|tables| QueueMode { wide, tables }))
}

/// Words with one bit set, and those of the first two quadwords with two.
fn patterns() -> Vec<[u64; 4]> {
    let bit = |bit: usize| {
        let mut words = [0_u64; 4];
        words[bit / 64] = 1 << (bit % 64);
        words
    };
    let pairs = (0..128).flat_map(|first| (first + 1..128).map(move |second| (first, second)));
    let both = |(first, second)| {
        let (first, second): ([u64; 4], [u64; 4]) = (bit(first), bit(second));
        std::array::from_fn(|index| first[index] | second[index])
    };
    (0..256).map(bit).chain(pairs.map(both)).collect()
}

/// Every type with every one and every two of the other bits, in every mode of every unit.
#[test]
fn every_descriptor_is_taken_or_refused() {
    let patterns = patterns();
    let mut taken = 0_u64;
    for (capability, mode) in
        capabilities().into_iter().flat_map(|unit| modes().map(move |mode| (unit, mode)))
    {
        // All lower types, with the upper part 0 and, to see that it counts, 1.
        for kind in (0..32_u64).map(|kind| kind & 0xf | kind >> 4 << 9) {
            for pattern in &patterns {
                let words = [pattern[0] | kind, pattern[1], pattern[2], pattern[3]];
                let answer = decode(&words, mode, &capability);
                assert!(answer.is_err() || words[2] == 0 && words[3] == 0, "{words:x?}");
                taken += u64::from(answer.is_ok());
            }
        }
    }
    println!("{taken} taken");
    assert!(taken > 10_000, "{taken}");
}

/// Every address of an interrupt, and data with every bit.
#[test]
fn every_message_has_one_way() {
    for size in [0, 7, 15] {
        for (enabled, compatibility, extended) in
            [(false, false, false), (true, true, false), (true, false, false), (true, true, true)]
        {
            let table = TableAddress::new_with_raw_value(0x1000 | u64::from(extended) << 11 | size);
            let latch = Latch { enabled, compatibility, table };
            for address in 0xfee0_0000..=0xfeef_ffff_u64 {
                for data in [0, 1, 0xffff, 0x1_0000, u32::MAX] {
                    match remap::path(&latch, Msi { address, data }) {
                        Ok(Path::Entry(index)) => assert!(u32::from(index) < latch.entries() && enabled),
                        Ok(Path::Unchanged) => assert!(!enabled || compatibility && !extended),
                        Ok(Path::Memory) => panic!("{address:#x} is an interrupt"),
                        Err(_) => assert!(enabled),
                    }
                }
            }
        }
    }
}

/// Entries that are nearly good, and any.
#[test]
fn every_interrupt_entry_is_taken_or_refused() {
    let good: [[u64; 2]; 2] =
        [[0x17 << 32 | 0x41 << 16 | 1, 0], [0x5000 << 32 | 0x43 << 16 | 1 << 15 | 1, 1 << 18 | 0x18]];
    let mut dice = Dice(1);
    let anything = (0..200_000).map(|_| [dice.roll(), dice.roll()]);
    let flipped = good.into_iter().flat_map(|[low, high]| {
        (0..128_u32 * 128).map(move |pair| {
            let flips = 1_u128 << (pair / 128) | 1 << (pair % 128);
            let entry = u128::from(low) | u128::from(high) << 64;
            let [low, high] =
                [0, 64].map(|shift| u64::try_from((entry ^ flips) >> shift & u128::from(u64::MAX)).unwrap());
            [low, high]
        })
    });
    let mut taken = 0;
    for words in flipped.chain(anything) {
        for capability in capabilities() {
            for extended in [false, true] {
                let rules = InterruptRules::new(&capability);
                let entry = remap::decode(words, SourceId(0x18), extended, &rules);
                assert!(entry.is_err() || words[0] & 1 != 0, "not present: {words:x?}");
                taken += u64::from(entry.is_ok());
            }
        }
    }
    assert!(taken > 1000, "{taken}");
}
