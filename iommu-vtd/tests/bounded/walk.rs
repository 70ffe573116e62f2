//! Requests through tables of all modes that are made up as they are read.

use std::collections::HashMap;

use iommu_core::{
    Access, AddressType, GroupIndex, Iova, PageRequest, Pasid, Permissions, Request, SourceId, VendorData,
};
use iommu_vtd::ats::admit_page_request;
use iommu_vtd::rules::Rules;
use iommu_vtd::spec::registers::{Cap, Ecap};
use iommu_vtd::tables::{Context, RootLatch};
use iommu_vtd::translate::translate;

use crate::dream::{Dice, Dream};

fn cases() -> u64 {
    std::env::var("BOUNDED_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(100_000)
}

fn request(dice: &mut Dice, legacy: bool) -> Request {
    // Mostly one that every directory has.
    let pasid_bits = dice.pick(&[13, 13, 13, 20]);
    let with_pasid = !legacy && dice.below(4) != 0;
    let address = match dice.below(8) {
        0 => dice.roll(),
        1 => dice.roll() | !0 << 47,
        _ => dice.roll() & 0x7fff_ffff_ffff,
    };
    Request {
        source: SourceId(u16::try_from(dice.below(0x1_0000)).unwrap()),
        pasid: with_pasid.then(|| Pasid::truncate(u32::try_from(dice.below(1 << pasid_bits)).unwrap())),
        address: Iova(address),
        access: dice.pick(&[Access::Read, Access::Write, Access::Atomic, Access::ZeroLengthRead]),
        address_type: dice.pick(&[
            AddressType::Untranslated,
            AddressType::Untranslated,
            AddressType::Translated,
            AddressType::Translation { no_write: false },
            AddressType::Translation { no_write: true },
        ]),
        privileged: dice.below(8) == 0,
        execute: dice.below(8) == 0,
    }
}

fn page_request(request: &Request) -> PageRequest {
    PageRequest {
        source: request.source,
        pasid: request.pasid,
        address: request.address,
        read: true,
        write: request.access.is_write(),
        execute: request.execute,
        privileged: request.privileged,
        last: true,
        group: GroupIndex::truncate(0),
        vendor: VendorData::NONE,
    }
}

/// A unit that offers everything, or anything.
fn rules(dice: &mut Dice) -> (Rules, u32) {
    const MGAW: u64 = 0x3f << 16;
    const PSS: u64 = 0x1f << 35;
    let mgaw = dice.pick(&[47_u64, 56]) << 16;
    let (any_cap, any_ecap) = (dice.roll(), dice.roll());
    let (cap, ecap) =
        if dice.below(4) == 0 { (any_cap & !MGAW | mgaw, any_ecap) } else { (!MGAW | mgaw, !PSS | 19 << 35) };
    let host_bits = dice.pick(&[36, 39, 46, 52]);
    let (cap, ecap) = (Cap::new_with_raw_value(cap), Ecap::new_with_raw_value(ecap));
    (Rules::from_registers(host_bits, cap, ecap), host_bits)
}

/// How many requests ended how, by the number of entries that were read.
#[derive(Default)]
struct Tally(HashMap<(bool, bool), HashMap<usize, u64>>);

impl Tally {
    fn count(&mut self, legacy: bool, allowed: bool, reads: usize) {
        *self.0.entry((legacy, allowed)).or_default().entry(reads).or_default() += 1;
    }

    fn of(&self, legacy: bool, allowed: bool, at_least: usize) -> u64 {
        let reads = self.0.get(&(legacy, allowed));
        reads.into_iter().flatten().filter(|(reads, _)| **reads >= at_least).map(|(_, count)| count).sum()
    }
}

fn case(seed: u64, tally: &mut Tally) {
    let mut dice = Dice(seed);
    let legacy = dice.below(3) == 0;
    let (rules, host_bits) = rules(&mut dice);
    let root = dice.roll() & 0x3fff_f000;
    let mode = if dice.below(32) == 0 { dice.below(4) } else { u64::from(!legacy) };
    let memory = Dream::new(dice.roll(), root, legacy, host_bits);
    let root = RootLatch::new(root | mode << 10, dice.below(32) != 0);
    let context = Context { memory: &memory, rules: &rules, root };
    let request = request(&mut dice, legacy);
    if dice.below(8) == 0 {
        let _ = admit_page_request(&context, &page_request(&request));
        return;
    }
    let answer = translate(&context, &request);
    tally.count(legacy, answer.is_ok_and(|found| found.permissions != Permissions::NONE), memory.reads());
    match answer {
        Ok(found) => {
            assert!((12..64).contains(&found.page_bits), "{found:?}");
            let asks = matches!(request.address_type, AddressType::Translation { .. });
            // A zero-length read may go ahead by a permission that nothing else may use yet.
            let moves_nothing = request.access == Access::ZeroLengthRead;
            let allowed = found.permissions.allow(request.access) || moves_nothing;
            assert!(asks || allowed, "{request:?}: {found:?}");
        }
        Err(fault) => assert_eq!(fault.request, request),
    }
}

#[test]
fn walks_stay_in_their_tables() {
    let mut tally = Tally::default();
    for seed in 0..cases() {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case(seed, &mut tally)));
        assert!(result.is_ok(), "case {seed}");
    }
    // What was gone through: (name, legacy, went ahead, entries read at least, one of so many cases).
    let rows = [
        ("legacy walks", true, true, 4, 200),
        ("legacy faults", true, false, 1, 50),
        ("scalable walks of one stage", false, true, 6, 200),
        ("nested walks", false, true, 14, 1000),
        ("deep nested walks", false, true, 24, 20_000),
        ("scalable faults", false, false, 1, 50),
    ];
    for (name, legacy, allowed, at_least, of) in rows {
        let count = tally.of(legacy, allowed, at_least);
        println!("{name}: {count}");
        assert!(count >= cases() / of, "{name}: only {count}");
    }
}
