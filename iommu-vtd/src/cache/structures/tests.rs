//! Which tables stay and which go.

use proptest::prelude::*;

use super::*;

const YES: fn() -> bool = || true;
const ADDRESS: u64 = 0x7f12_3456_7000;
/// In another 2 MiB block of the same GiB.
const NEAR: u64 = ADDRESS + (1 << 21);
/// In another 512 GiB block.
const FAR: u64 = ADDRESS - (1 << 39);

fn tag(domain: u32, pasid: u32, stage: StageTag) -> Tag {
    Tag { domain: DomainId(domain), pasid: Pasid::truncate(pasid), stage }
}

fn table(level: u32) -> Start {
    Start { level, table: Gpa(0x1000 * u64::from(level)), all: 0x8000_0000_0000_0027 }
}

/// Tables of levels 3 to 1, as a walk tells of them: domain 1 with PASIDs 5 and 6, domain 2 nested, second stages of
/// domains 2 and 3.
fn filled() -> PagingStructures {
    let caches = PagingStructures::new();
    for address in [ADDRESS, NEAR, FAR] {
        for level in (1..=3).rev() {
            for tag in [tag(1, 5, StageTag::First), tag(1, 6, StageTag::First), tag(2, 5, StageTag::Nested)] {
                caches.keep_first(&tag, address, table(level), YES);
            }
            for domain in [2, 3] {
                caches.keep_second(DomainId(domain), address, table(level), YES);
            }
        }
    }
    caches
}

/// The level of the lowest table known: of domain 1 with PASIDs 5 and 6 and of domain 2 nested at `ADDRESS` and `NEAR`,
/// then of the second stages of domains 2 and 3. 0: none.
fn known(caches: &PagingStructures, address: u64) -> [u32; 5] {
    let level = |start: Option<Start>| start.map_or(0, |start| start.level);
    let first = |domain, pasid, stage| level(caches.first(&tag(domain, pasid, stage), address));
    [
        first(1, 5, StageTag::First),
        first(1, 6, StageTag::First),
        first(2, 5, StageTag::Nested),
        level(caches.second(DomainId(2), address)),
        level(caches.second(DomainId(3), address)),
    ]
}

#[test]
fn the_lowest_table_is_found_with_all_that_was_told() {
    let caches = filled();
    let found = caches.first(&tag(1, 5, StageTag::First), ADDRESS + 0x5000).unwrap();
    assert_eq!((found.level, found.table), (1, Gpa(0x1000)));
    assert_eq!(found.all, 0x8000_0000_0000_0027, "permissions and marks");
    let elsewhere = caches.first(&tag(1, 5, StageTag::First), ADDRESS + (1 << 30)).unwrap();
    assert_eq!(elsewhere.level, 3, "only the table that both addresses share");
    for (name, other) in [
        ("domain", tag(9, 5, StageTag::First)),
        ("pasid", tag(1, 7, StageTag::First)),
        ("nested", tag(1, 5, StageTag::Nested)),
    ] {
        assert_eq!(caches.first(&other, ADDRESS), None, "{name}");
    }
    assert_eq!(caches.second(DomainId(1), ADDRESS), None, "stages are kept apart");
}

/// (name, scope, hint, what is left at the address, what is left 2 MiB further). A page takes all tables on its way
/// with it, also those that lead to other pages.
#[test]
fn every_granularity_drops_what_the_manual_says() {
    let (one, two, three) = (DomainId(1), DomainId(2), DomainId(3));
    let pasid = Pasid::truncate(5);
    let page = IovaRange::aligned(ADDRESS, 12);
    let gib = IovaRange::aligned(ADDRESS, 30);
    let upper = IovaRange::aligned(0xffff_8000_0000_0000, 47);
    let pages = |domain, range| Scope::DomainRange { domain, range };
    let of_pasid = |domain, range| Scope::PasidRange { domain, pasid, range };
    let all = [1, 1, 1, 1, 1];
    let rows = [
        ("global", Scope::All, false, [0; 5], [0; 5]),
        ("domain of processes", Scope::Domain(one), false, [0, 0, 1, 1, 1], [0, 0, 1, 1, 1]),
        ("nested domain", Scope::Domain(two), false, [1, 1, 0, 0, 1], [1, 1, 0, 0, 1]),
        ("page of a nested domain", pages(two, page), false, [1, 1, 0, 0, 1], [1, 1, 0, 1, 1]),
        ("leaf of a nested domain", pages(two, page), true, [1, 1, 0, 1, 1], [1, 1, 0, 1, 1]),
        ("GiB of a second stage", pages(three, gib), false, [1, 1, 1, 1, 0], [1, 1, 1, 1, 0]),
        ("page of processes' domain", pages(one, page), false, [0, 0, 1, 1, 1], [0, 0, 1, 1, 1]),
        ("pasid", Scope::Pasid { domain: one, pasid }, false, [0, 1, 1, 1, 1], [0, 1, 1, 1, 1]),
        ("nested pasid", Scope::Pasid { domain: two, pasid }, false, [1, 1, 0, 1, 1], [1, 1, 0, 1, 1]),
        ("pasid of a second stage", Scope::Pasid { domain: three, pasid }, false, all, all),
        ("page of a pasid", of_pasid(one, page), false, [0, 1, 1, 1, 1], all),
        ("leaf of a pasid", of_pasid(one, page), true, all, all),
        ("page of a nested pasid", of_pasid(two, page), false, [1, 1, 0, 1, 1], all),
        ("upper half of a pasid", of_pasid(one, upper), false, all, all),
        ("all of a pasid", of_pasid(one, IovaRange::ALL), false, [0, 1, 1, 1, 1], [0, 1, 1, 1, 1]),
    ];
    for (name, scope, leaf_only, here, near) in rows {
        let caches = filled();
        caches.invalidate(&Invalidation { leaf_only, ..Invalidation::new(scope) });
        assert_eq!(known(&caches, ADDRESS), here, "{name}: here");
        assert_eq!(known(&caches, NEAR), near, "{name}: near");
    }
}

/// Whether an entry must go, the long way.
fn must_go(invalidation: &Invalidation, first: bool, tag: &Tag, range: &IovaRange) -> bool {
    let same_domain = |domain| tag.domain == domain;
    match (invalidation.scope, first) {
        (Scope::All, _) => true,
        (Scope::Domain(domain), _) => same_domain(domain),
        (Scope::DomainRange { domain, .. }, true) => same_domain(domain),
        (Scope::DomainRange { domain, range: hit }, false) => {
            same_domain(domain) && !invalidation.leaf_only && hit.overlaps(range)
        }
        (Scope::Pasid { domain, pasid }, true) => same_domain(domain) && tag.pasid == pasid,
        (Scope::PasidRange { domain, pasid, range: hit }, true) => {
            same_domain(domain) && tag.pasid == pasid && !invalidation.leaf_only && hit.overlaps(range)
        }
        (Scope::Pasid { .. } | Scope::PasidRange { .. }, false) => false,
    }
}

fn scopes() -> impl Strategy<Value = Scope> {
    let ranges = || {
        (any::<u64>(), 12_u32..65, 0_u64..64)
            .prop_map(|(address, bits, shift)| IovaRange::aligned(address >> shift, bits))
    };
    let domain = || (1_u32..4).prop_map(DomainId);
    let pasid = || (4_u32..7).prop_map(Pasid::truncate);
    prop_oneof![
        Just(Scope::All),
        domain().prop_map(Scope::Domain),
        (domain(), ranges()).prop_map(|(domain, range)| Scope::DomainRange { domain, range }),
        (domain(), pasid()).prop_map(|(domain, pasid)| Scope::Pasid { domain, pasid }),
        (domain(), pasid(), ranges()).prop_map(|(domain, pasid, range)| Scope::PasidRange {
            domain,
            pasid,
            range
        }),
    ]
}

proptest! {
    /// One entry and one invalidation: it goes if and only if it must.
    #[test]
    fn an_entry_goes_exactly_if_it_must(
        scope in scopes(),
        leaf_only: bool,
        first: bool,
        nested: bool,
        (domain, pasid, level) in (1_u32..4, 4_u32..7, 1_u32..5),
        (address, shift) in (any::<u64>(), 0_u32..64),
    ) {
        let address = address >> shift;
        let stage = if nested { StageTag::Nested } else { StageTag::First };
        let tag = tag(domain, pasid, stage);
        let caches = PagingStructures::new();
        let invalidation = Invalidation { leaf_only, ..Invalidation::new(scope) };
        let found = || if first { caches.first(&tag, address) } else { caches.second(tag.domain, address) };
        if first {
            caches.keep_first(&tag, address, table(level), YES);
        } else {
            caches.keep_second(tag.domain, address, table(level), YES);
        }
        prop_assert_eq!(found(), Some(table(level)));
        caches.invalidate(&invalidation);
        let range = IovaRange::aligned(address, block_bits(level));
        prop_assert_eq!(found().is_none(), must_go(&invalidation, first, &tag, &range));
    }
}
