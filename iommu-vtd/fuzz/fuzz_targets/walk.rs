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
    Write { index: u16, word: u64 },
    /// One bit of a word that is not 0.
    Flip { index: u16, bit: u8 },
    /// A pointer to a page of the memory, with flags.
    Point { index: u16, page: u8, flags: u16, high: u8 },
    /// The root pointer, set.
    Root { page: u8, mode: u8 },
    RootAt(u64),
}

const HOST_BITS: u32 = 46;

/// Where the words lie that are not 0 in tables that nobody has changed.
fn live(bench: &Bench) -> Vec<u64> {
    LAYOUT.tables.step_by(8).filter(|gpa| bench.word(*gpa) != 0).collect()
}

fn promises(request: &Request, translation: &Translation) {
    assert!((12..64).contains(&translation.page_bits), "{translation:?}");
    let asks = matches!(request.address_type, AddressType::Translation { .. });
    if translation.permissions == Permissions::NONE {
        assert!(asks, "no permission, and no fault: {translation:?}");
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

fn take(bench: &Bench, live: &[u64], step: &Step) {
    let at = |index: u16| {
        let index = usize::from(index);
        live.get(index).copied().unwrap_or(LAYOUT.tables.start + 8 * (index as u64 % 0x1800))
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
            let word = u64::from(page % 16) << 12 | u64::from(flags & 0xfff) | u64::from(*high) << 56;
            bench.poke(at(*index), word);
        }
        Step::Root { page, mode } => {
            bench.write64(0x20, u64::from(page % 16) << 12 | u64::from(mode % 4) << 10);
            bench.write32(0x18, 0xc400_0000);
        }
        Step::RootAt(root) => {
            bench.write64(0x20, *root);
            bench.write32(0x18, 0xc400_0000);
        }
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let bench = Bench::new();
    let live = live(&bench);
    for step in steps.iter().take(64) {
        take(&bench, &live, step);
    }
});
