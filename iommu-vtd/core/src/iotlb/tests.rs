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

#[derive(Clone, Debug)]
enum Step {
    Insert { pasid: u32, page: u64, big: bool, domain: u32, write: bool },
    Invalidate(Scope),
    DeviceTlb(DeviceTlbInvalidation),
}

fn scope() -> impl Strategy<Value = Scope> {
    let domain = (0..3u32).prop_map(DomainId);
    let range = (0..2048u64, 12..24u32).prop_map(|(page, bits)| IovaRange::aligned(page << 12, bits));
    let pasid = Just(Pasid::truncate(5));
    prop_oneof![
        Just(Scope::All),
        domain.clone().prop_map(Scope::Domain),
        (domain.clone(), range.clone()).prop_map(|(domain, range)| Scope::DomainRange { domain, range }),
        (domain.clone(), pasid).prop_map(|(domain, pasid)| Scope::Pasid { domain, pasid }),
        (domain, pasid, range).prop_map(|(domain, pasid, range)| Scope::PasidRange { domain, pasid, range }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..3u32, 0..2048u64, any::<bool>(), 0..3u32, any::<bool>())
            .prop_map(|(pasid, page, big, domain, write)| Step::Insert { pasid, page, big, domain, write }),
        1 => scope().prop_map(Step::Invalidate),
        1 => (0..3u32, 0..2048u64, 12..24u32).prop_map(|(pasid, page, bits)| {
            Step::DeviceTlb(DeviceTlbInvalidation {
                source: crate::SourceId(0),
                pasid: pasid_of(pasid),
                all_pasids: false,
                range: IovaRange::aligned(page << 12, bits),
            })
        }),
    ]
}

/// 0 stands for "no PASID".
fn pasid_of(n: u32) -> Option<Pasid> {
    n.checked_sub(1).and_then(Pasid::new)
}

proptest! {
    /// Whatever the cache still answers was inserted and not hit by an invalidation since.
    #[test]
    fn never_answers_from_what_was_dropped(steps in proptest::collection::vec(step(), 1..200)) {
        let mut tlb = Iotlb::default();
        let mut naive: Vec<(Option<Pasid>, Translation)> = Vec::new();
        for step in steps {
            match step {
                Step::Insert { pasid, page, big, domain, write } => {
                    let t = translation(page, if big { 21 } else { 12 }, domain, write);
                    tlb.insert(pasid_of(pasid), &t);
                    naive.push((pasid_of(pasid), t));
                }
                Step::Invalidate(scope) => {
                    let inv = Invalidation::new(scope);
                    tlb.invalidate(&inv);
                    naive.retain(|(_, t)| !inv.hits(&t.tag, &t.range()));
                }
                Step::DeviceTlb(inv) => {
                    tlb.invalidate_device_tlb(&inv);
                    naive.retain(|(pasid, t)| !inv.hits(*pasid, &t.range()));
                }
            }
            for page in (0..2048).step_by(61) {
                for pasid in 0..3 {
                    let iova = Iova(page << 12 | 0x123);
                    if let Some(hit) = tlb.lookup(pasid_of(pasid), iova, Access::Read) {
                        let known = naive.iter().any(|(p, t)| {
                            *p == pasid_of(pasid) && t.range().contains(iova.0) && t.gpa(iova) == hit.gpa
                        });
                        prop_assert!(known, "stale hit {hit:?} for {iova}");
                    }
                }
            }
        }
    }
}
