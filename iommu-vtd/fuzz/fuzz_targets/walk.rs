//! Translation through tables in which anything may stand.
#![no_main]

use arbitrary::Arbitrary;
use iommu_core::{Access, AddressType, Permissions, Request, Translation, Translator};
use iommu_vtd_fuzz::{Bench, LAYOUT, RequestInput};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Step {
    Request(RequestInput),
    /// A word of the tables; those that are not 0 are counted first.
    Write {
        index: u16,
        word: u64,
    },
    /// One bit of a word that is not 0.
    Flip {
        index: u16,
        bit: u8,
    },
    /// A pointer to a page of the memory, with flags.
    Point {
        index: u16,
        page: u8,
        flags: u16,
        high: u8,
    },
    /// The root pointer, set.
    Root {
        page: u8,
        mode: u8,
    },
    RootAt(u64),
    /// Legacy mode with its tables, or scalable mode with its.
    Mode {
        legacy: bool,
    },
    /// Everything that is cached is dropped: the queue's global invalidations.
    Invalidate,
}

const HOST_BITS: u32 = 46;

/// Where the words lie that are not 0 in tables that nobody has changed.
fn live(bench: &Bench) -> Vec<u64> {
    (LAYOUT.tables.start..LAYOUT.legacy_tables.end).step_by(8).filter(|gpa| bench.word(*gpa) != 0).collect()
}

fn promises(request: &Request, translation: &Translation) {
    assert!((12..64).contains(&translation.page_bits), "{translation:?}");
    let asks = matches!(request.address_type, AddressType::Translation { .. });
    if translation.permissions == Permissions::NONE {
        // A zero-length read may go ahead by a permission that nothing else may use yet.
        let moves_nothing = request.access == Access::ZeroLengthRead;
        assert!(asks || moves_nothing, "no permission, and no fault: {translation:?}");
        return;
    }
    if !translation.untranslated_only && request.address_type != AddressType::Translated {
        let gpa = translation.gpa(request.address).0;
        assert_eq!(gpa >> HOST_BITS, 0, "{translation:?} lies beyond the machine");
    }
    if !asks && request.access != Access::ZeroLengthRead {
        assert!(translation.permissions.allow(request.access), "{request:?} with {translation:?}");
    }
}

fn set_root(bench: &Bench, register: u64) {
    bench.write64(0x20, register);
    bench.write32(0x18, 0xc400_0000);
}

/// Global invalidations, in the width that fits the mode or not.
fn invalidate(bench: &Bench) {
    let tail = bench.read64(0x88) % 4096 & !31;
    for (index, low) in [0x11, 0x37, 0x12].into_iter().enumerate() {
        for (word, value) in [low, 0, 0, 0].into_iter().enumerate() {
            bench.poke(LAYOUT.ring + (tail + 32 * index as u64 + 8 * word as u64) % 4096, value);
        }
    }
    bench.write64(0x88, (tail + 96) % 4096);
}

/// Where the words lie that are not 0, found once.
fn live_words(bench: &Bench) -> &'static [u64] {
    static LIVE: std::sync::OnceLock<Vec<u64>> = std::sync::OnceLock::new();
    LIVE.get_or_init(|| live(bench))
}

fn take(bench: &Bench, live: &[u64], step: &Step) {
    let at = |index: u16| {
        let index = usize::from(index);
        live.get(index).copied().unwrap_or(LAYOUT.tables.start + 8 * (index as u64 % 0x3400))
    };
    match step {
        Step::Request(input) => {
            let request = input.get();
            match bench.unit.translate(&request) {
                Ok(translation) => promises(&request, &translation),
                Err(fault) => {
                    assert_eq!(fault.request, request, "a fault tells whose it is");
                    bench.unit.report(&fault);
                }
            }
        }
        Step::Write { index, word } => bench.poke(at(*index), *word),
        Step::Flip { index, bit } => {
            let gpa = live[usize::from(*index) % live.len()];
            bench.poke(gpa, bench.word(gpa) ^ 1 << (bit % 64));
        }
        Step::Point { index, page, flags, high } => {
            let word = u64::from(page % 32) << 12 | u64::from(flags & 0xfff) | u64::from(*high) << 56;
            bench.poke(at(*index), word);
        }
        Step::Root { page, mode } => {
            set_root(bench, u64::from(page % 32) << 12 | u64::from(mode % 4) << 10);
        }
        Step::Mode { legacy: true } => set_root(bench, LAYOUT.legacy_tables.start),
        Step::Mode { legacy: false } => set_root(bench, LAYOUT.tables.start | 1 << 10),
        Step::Invalidate => invalidate(bench),
        Step::RootAt(root) => {
            set_root(bench, *root);
        }
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let bench = Bench::new();
    let live = live_words(&bench);
    for step in steps.iter().take(64) {
        take(&bench, live, step);
    }
});
