//! The cache against a naive list of translations, over random histories.

use super::*;
use crate::invalidation::Scope;
use crate::request::StageTag;
use proptest::prelude::*;

fn translation(page: u64, bits: u32, domain: u32, write: bool) -> Translation {
    Translation {
        iova: Iova(page << 12),
        base: Gpa((page << 12 & !((1 << bits) - 1)) + (u64::from(domain) << 40)),
        page_bits: bits,
        permissions: Permissions { read: true, write },
        untranslated_only: false,
        tag: Tag { domain: DomainId(domain), pasid: Pasid::truncate(5), stage: StageTag::First },
    }
}

#[test]
fn a_hit_says_where_and_how_far() {
    let mut tlb = Iotlb::default();
    tlb.insert(None, &translation(0x200, 21, 1, true));
    let hit = tlb.lookup(None, Iova(0x20_1234), Access::Write).unwrap();
    assert_eq!(hit, Hit { gpa: Gpa((1 << 40) + 0x20_1234), contiguous: 0x20_0000 - 0x1234 });
    assert_eq!(tlb.lookup(Some(Pasid::ZERO), Iova(0x20_1234), Access::Read), None, "PASID 0 is not no PASID");
}

#[test]
fn a_write_needs_the_permission_and_replaces_the_read_only_entry() {
    let mut tlb = Iotlb::default();
    tlb.insert(None, &translation(1, 12, 1, false));
    assert!(tlb.lookup(None, Iova(0x1000), Access::Read).is_some());
    assert!(tlb.lookup(None, Iova(0x1000), Access::Write).is_none());
    tlb.insert(None, &translation(1, 12, 1, true));
    assert!(tlb.lookup(None, Iova(0x1000), Access::Write).is_some());
    assert_eq!(tlb.len(), 1);
}

#[test]
fn empty_answers_are_not_kept() {
    let mut tlb = Iotlb::default();
    let mut empty = translation(1, 12, 1, false);
    empty.permissions = Permissions::NONE;
    tlb.insert(None, &empty);
    assert!(tlb.is_empty());
}

#[test]
fn huge_blocks_are_kept_piecewise() {
    let mut tlb = Iotlb::default();
    let mut all = translation(0, 63, 0, true);
    all.iova = Iova(0x12_3456_7890);
    tlb.insert(None, &all);
    let hit = tlb.lookup(None, Iova(0x12_3456_7890), Access::Read).unwrap();
    assert_eq!(hit.gpa, Gpa(0x12_3456_7890));
    assert!(hit.contiguous <= 1 << 30);
}

/// The PASID that stands for none.
const STANDS_FOR_NONE: Pasid = Pasid::truncate(1);
const STAGES: [StageTag; 4] = [StageTag::First, StageTag::Second, StageTag::Nested, StageTag::PassThrough];

#[derive(Clone, Debug)]
enum Step {
    Insert { pasid: u32, page: u64, big: bool, domain: u32, stage: StageTag },
    Invalidate(Scope),
    DeviceTlb(DeviceTlbInvalidation),
}

fn scope() -> impl Strategy<Value = Scope> {
    let domain = (0..3u32).prop_map(DomainId);
    let range = (0..2048u64, 12..24u32).prop_map(|(page, bits)| IovaRange::aligned(page << 12, bits));
    let pasid = (0..8u32).prop_map(Pasid::truncate);
    prop_oneof![
        Just(Scope::All),
        domain.clone().prop_map(Scope::Domain),
        (domain.clone(), range.clone()).prop_map(|(domain, range)| Scope::DomainRange { domain, range }),
        (domain.clone(), pasid.clone()).prop_map(|(domain, pasid)| Scope::Pasid { domain, pasid }),
        (domain, pasid, range).prop_map(|(domain, pasid, range)| Scope::PasidRange { domain, pasid, range }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0..8u32, 0..2048u64, any::<bool>(), 0..3u32, 0..4usize).prop_map(
            |(pasid, page, big, domain, stage)| Step::Insert { pasid, page, big, domain, stage: STAGES[stage] }
        ),
        1 => scope().prop_map(Step::Invalidate),
        1 => (0..8u32, any::<bool>(), 0..2048u64, 12..24u32).prop_map(|(pasid, all_pasids, page, bits)| {
            Step::DeviceTlb(DeviceTlbInvalidation {
                source: crate::SourceId(0),
                pasid: pasid_of(pasid),
                all_pasids,
                range: IovaRange::aligned(page << 12, bits),
            })
        }),
    ]
}

/// 0 stands for "no PASID".
fn pasid_of(n: u32) -> Option<Pasid> {
    n.checked_sub(1).and_then(Pasid::new)
}

/// What was inserted and not hit by an invalidation since, and under which PASID.
type Naive = Vec<(Option<Pasid>, Translation)>;

/// A sample of look-ups: PASID, address, and where it leads.
fn answers(tlb: &mut Iotlb, pasids: u32) -> Vec<(Option<Pasid>, Iova, Gpa)> {
    let samples = (0..2048).step_by(61).flat_map(|page| (0..pasids).map(move |pasid| (page, pasid)));
    samples
        .filter_map(|(page, pasid)| {
            let iova = Iova(page << 12 | 0x123);
            let hit = tlb.lookup(pasid_of(pasid), iova, Access::Read)?;
            Some((pasid_of(pasid), iova, hit.gpa))
        })
        .collect()
}

/// Applies a step to both.
fn apply(step: &Step, pasids: u32, tlb: &mut Iotlb, naive: &mut Naive) {
    match step {
        Step::Insert { pasid, page, big, domain, stage } => {
            let pasid = pasid_of(pasid % pasids);
            let mut t = translation(*page, if *big { 21 } else { 12 }, *domain, true);
            t.tag.pasid = pasid.unwrap_or(STANDS_FOR_NONE);
            t.tag.stage = *stage;
            // An output of its own, so that an answer tells which entry gave it.
            let number = STAGES.iter().position(|s| s == stage).unwrap() as u64;
            t.base.0 += number << 44 | u64::from(*big) << 48;
            tlb.insert(pasid, &t);
            // One block has one entry.
            naive.retain(|(p, old)| *p != pasid || old.range() != t.range());
            naive.push((pasid, t));
        }
        Step::Invalidate(scope) => {
            let inv = Invalidation::new(*scope);
            tlb.invalidate(&inv);
            naive.retain(|(_, t)| !inv.hits(&t.tag, &t.range()));
        }
        Step::DeviceTlb(inv) => {
            tlb.invalidate_device_tlb(inv);
            naive.retain(|(pasid, t)| !inv.hits(*pasid, &t.range()));
        }
    }
}

proptest! {
    /// Whatever the cache answers was inserted and not hit by an invalidation since; and an invalidation takes
    /// nothing with it but what it hits. With few PASIDs in one port and with many.
    #[test]
    fn invalidations_drop_all_they_hit_and_nothing_else(
        steps in proptest::collection::vec(step(), 1..200),
        pasids in 1..9u32,
    ) {
        let (mut tlb, mut naive) = (Iotlb::default(), Naive::new());
        for step in steps {
            if matches!(step, Step::Insert { .. }) {
                apply(&step, pasids, &mut tlb, &mut naive);
                continue;
            }
            let before = answers(&mut tlb, pasids);
            apply(&step, pasids, &mut tlb, &mut naive);
            let after = answers(&mut tlb, pasids);
            let known = |(pasid, iova, gpa): &(Option<Pasid>, Iova, Gpa)| {
                naive.iter().any(|(p, t)| p == pasid && t.range().contains(iova.0) && t.gpa(*iova) == *gpa)
            };
            prop_assert!(after.iter().all(known), "stale: {:?}", after.iter().find(|answer| !known(answer)));
            // Where blocks of two sizes overlap, either may answer.
            let answered = |(pasid, iova, _): &_| after.iter().any(|(p, i, _)| (p, i) == (pasid, iova));
            let lost = before.iter().find(|answer| known(answer) && !answered(answer));
            prop_assert_eq!(lost, None, "{:?}", step);
        }
    }
}
