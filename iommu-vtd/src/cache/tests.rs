//! Tickets and views.

use iommu_core::Gpa;

use super::*;

const SOURCE: SourceId = SourceId(0x0108);
const DOMAIN: DomainId = DomainId(2);
const TABLE: Start = Start { level: 1, table: Gpa(0x5000), all: 0x3 };

fn knows(caches: &Caches) -> bool {
    caches.view().second(DOMAIN, 0x7000).is_some()
}

#[test]
fn a_view_keeps_and_finds() {
    let caches = Caches::new();
    let view = caches.view();
    assert_eq!((view.second(DOMAIN, 0x7000), view.was_used()), (None, false));
    view.keep_second(DOMAIN, 0x7000, TABLE);
    assert_eq!((view.second(DOMAIN, 0x7000), view.was_used()), (Some(TABLE), true));
    assert_eq!(view.unread().second(DOMAIN, 0x7000), None);
    let context = ContextEntry::from_words([0x1005, 0x7]);
    view.unread().keep_context(SOURCE, &context);
    assert_eq!(caches.view().context(SOURCE), Some(context), "kept without being read");
    assert!(caches.view().legacy_context(SOURCE).is_none(), "modes are kept apart");
    caches.clear();
    assert!(!knows(&caches) && caches.view().context(SOURCE).is_none());
}

/// What a look-up has read is not kept once an invalidation came between, whatever that was about.
#[test]
fn what_an_invalidation_overtook_is_not_kept() {
    type Row = (&'static str, fn(&Caches));
    let rows: [Row; 4] = [
        ("contexts", |c| c.invalidate_contexts(&ContextScope::Source { source: SourceId(1), mask: 0 })),
        ("pasids", |c| c.invalidate_pasids(&PasidScope::Domain(DomainId(9)))),
        ("translations", |c| c.invalidate_structures(&Invalidation::new(Scope::Domain(DomainId(9))))),
        ("everything", Caches::clear),
    ];
    for (name, invalidate) in rows {
        let caches = Caches::new();
        let view = caches.view();
        invalidate(&caches);
        view.keep_second(DOMAIN, 0x7000, TABLE);
        view.keep_context(SOURCE, &ContextEntry::from_words([0x1005, 0x7]));
        assert!(!knows(&caches) && caches.view().context(SOURCE).is_none(), "{name}");
        caches.view().keep_second(DOMAIN, 0x7000, TABLE);
        assert!(knows(&caches), "{name}: who begins later may");
    }
}
