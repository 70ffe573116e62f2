//! Commands, invalidations, and who hears of them (§5.1.2, §6.5.2.5, §11.4.4).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use iommu_core::testkit::RecordingMsi;
use iommu_core::{InterruptRemapper, RemappedMsi, RouteListener, SourceId};
use iommu_core::{Msi, MsiSink};
use iommu_vtd::Profile;

use crate::bench::{
    ALL, ALL_ENTRIES, Bench, CFI, EIME, GCMD, GSTS, IRE, IRTA, OTHER_TABLE, QIE, SIRTP, SOURCE, Seen, TABLE,
    arrives, block, entry, profile, to_entry,
};

/// Linux: queue on, table, remapping on; then it frees CFI if it is set. Levels of earlier commands go along.
#[test]
fn the_boot_sequence_of_linux() {
    let bench = Bench::new(&profile());
    bench.command(QIE);
    bench.write64(IRTA, TABLE | EIME | ALL_ENTRIES);
    assert_eq!(bench.read64(IRTA), TABLE | EIME | ALL_ENTRIES);
    bench.write32(GCMD, QIE | SIRTP);
    assert_eq!(bench.read32(GSTS), QIE | SIRTP);
    bench.write32(GCMD, QIE | IRE);
    assert_eq!(bench.read32(GSTS), QIE | IRE | SIRTP, "IRTPS stays");
    bench.set_entry(1, entry(0x31, 3));
    assert_eq!(bench.send(SOURCE, to_entry(1)), arrives(0x31, 3));
}

#[test]
fn a_table_is_used_once_it_is_set() {
    let bench = Bench::on(&profile(), true);
    bench.set_entry(1, entry(0x31, 3));
    bench.set_entry_of(OTHER_TABLE, 1, entry(0x41, 4));
    bench.write64(IRTA, OTHER_TABLE | EIME | ALL_ENTRIES);
    assert_eq!(bench.send(SOURCE, to_entry(1)), arrives(0x31, 3), "the register alone does nothing");
    bench.write32(GCMD, IRE | SIRTP);
    assert_eq!(bench.send(SOURCE, to_entry(1)), arrives(0x41, 4), "while remapping is on");
}

/// A crash kernel: the queue goes off and on and the table is exchanged while remapping stays on.
#[test]
fn the_queue_and_remapping_are_switched_apart() {
    let bench = Bench::on(&profile(), true);
    bench.set_entry(1, entry(0x31, 3));
    for levels in [IRE | QIE, IRE, IRE | QIE] {
        bench.command(levels);
        assert_eq!(bench.send(SOURCE, to_entry(1)), arrives(0x31, 3));
    }
    bench.set_entry_of(OTHER_TABLE, 1, entry(0x41, 4));
    bench.set_table(OTHER_TABLE | EIME | ALL_ENTRIES, IRE | QIE);
    assert_eq!(bench.read32(GSTS), IRE | QIE | SIRTP);
    assert_eq!(bench.send(SOURCE, to_entry(1)), arrives(0x41, 4));
}

/// A level that is missing from a one-shot command is thereby switched off.
#[test]
fn a_missing_level_is_off() {
    let bench = Bench::on(&profile(), true);
    bench.write32(GCMD, SIRTP);
    assert_eq!(bench.read32(GSTS), SIRTP);
    assert_eq!(bench.send(SOURCE, to_entry(1)), Seen::Arrived(to_entry(1)));
}

/// An entry that has been used is known until it is invalidated; one that faulted is not kept.
#[test]
fn entries_are_cached_until_they_are_invalidated() {
    let hits = |index, mask| (block(index, mask), true);
    let misses = |index, mask| (block(index, mask), false);
    // (name, descriptor and whether it hits entry 1235h)
    let rows = [
        ("global", (ALL, true)),
        ("the entry", hits(0x1235, 0)),
        ("its neighbour", misses(0x1234, 0)),
        ("a block around it", hits(0x1230, 3)),
        ("the block beside", misses(0x1238, 3)),
        ("a block named by another member", hits(0x1237, 2)),
        ("the lower half", hits(0, 15)),
        ("the upper half", misses(0x8000, 15)),
    ];
    for (name, (descriptor, hit)) in rows {
        let bench = Bench::on(&profile(), true);
        bench.set_entry(0x1235, entry(0x31, 3));
        assert_eq!(bench.send(SOURCE, to_entry(0x1235)), arrives(0x31, 3));
        bench.set_entry(0x1235, entry(0x41, 4));
        assert_eq!(bench.send(SOURCE, to_entry(0x1235)), arrives(0x31, 3), "{name}: cached");
        bench.submit(descriptor, IRE);
        let expected = if hit { arrives(0x41, 4) } else { arrives(0x31, 3) };
        assert_eq!(bench.send(SOURCE, to_entry(0x1235)), expected, "{name}");
    }
}

#[test]
fn what_faults_is_not_cached() {
    let bench = Bench::on(&profile(), true);
    for bad in [0, entry(0x31, 3) | 1 << 12, entry(0x31, 3) | 1 << 82] {
        bench.set_entry(1, bad);
        assert!(matches!(bench.send(SOURCE, to_entry(1)), Seen::Fault(..)), "{bad:x}");
    }
    bench.set_entry(1, entry(0x31, 3));
    assert_eq!(bench.send(SOURCE, to_entry(1)), arrives(0x31, 3), "Linux invalidates, but need not");
}

/// ESIRTPS promises that a new table, and switching off, drop what is cached. Without it neither does.
#[test]
fn a_new_table_invalidates_if_that_is_offered() {
    for promised in [true, false] {
        let profile = Profile { interrupt_table_invalidates: promised, ..profile() };
        let fresh = if promised { arrives(0x41, 4) } else { arrives(0x31, 3) };
        let changes: [fn(&Bench); 2] = [
            |bench| bench.set_table(TABLE | EIME | ALL_ENTRIES, IRE),
            |bench| {
                bench.command(0);
                bench.command(IRE);
            },
        ];
        for change in changes {
            let bench = Bench::on(&profile, true);
            bench.set_entry(1, entry(0x31, 3));
            assert_eq!(bench.send(SOURCE, to_entry(1)), arrives(0x31, 3));
            bench.set_entry(1, entry(0x41, 4));
            change(&bench);
            assert_eq!(bench.send(SOURCE, to_entry(1)), fresh, "ESIRTPS={promised}");
        }
    }
}

/// Counts, and resolves as a holder of routes does.
struct Listener {
    remapper: Arc<dyn InterruptRemapper>,
    calls: AtomicU32,
    route: parking_lot::Mutex<Option<Msi>>,
}

impl RouteListener for Listener {
    fn routes_changed(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        *self.route.lock() = self.remapper.resolve(SOURCE, to_entry(1));
    }
}

type Step = fn(&Bench);

#[test]
fn listeners_hear_of_everything_that_may_change_routes() {
    let bench = Bench::new(&profile());
    let remapper: Arc<dyn InterruptRemapper> = bench.unit.clone();
    let listener =
        Arc::new(Listener { remapper, calls: AtomicU32::new(0), route: parking_lot::Mutex::default() });
    let weak: std::sync::Weak<Listener> = Arc::downgrade(&listener);
    bench.unit.add_listener(weak);
    let unchanged = Some(to_entry(1));
    let first = Some(Msi { address: 0xfee0_3000, data: 0x4031 });
    let second = Some(Msi { address: 0xfee0_4000, data: 0x4041 });
    // (name, what is done, calls, the route afterwards)
    let rows: [(&str, Step, u32, Option<Msi>); 9] = [
        ("register only", |b| b.write64(IRTA, TABLE | EIME | ALL_ENTRIES), 0, None),
        ("SIRTP", |b| b.write32(GCMD, SIRTP), 1, unchanged),
        ("IRE on, entry not present", |b| b.command(IRE), 1, None),
        ("entry written, not invalidated", |b| b.set_entry(1, entry(0x31, 3)), 0, None),
        ("IEC", |b| b.submit(block(1, 0), IRE), 1, first),
        ("queue on and off", |b| b.submit(0x11, IRE), 0, first),
        ("IEC global", |b| (b.set_entry(1, entry(0x41, 4)), b.submit(ALL, IRE)).1, 1, second),
        ("CFI", |b| b.command(IRE | CFI), 1, second),
        ("IRE off", |b| b.command(0), 1, unchanged),
    ];
    for (name, step, calls, route) in rows {
        listener.calls.store(0, Ordering::Relaxed);
        step(&bench);
        assert_eq!(
            (listener.calls.load(Ordering::Relaxed), *listener.route.lock()),
            (calls, route),
            "{name}"
        );
    }
    bench.command(IRE);
    bench.unit.reset();
    assert_eq!(*listener.route.lock(), unchanged, "reset");
    drop(listener);
    bench.command(IRE);
}

/// Asking for a route tells nobody of a fault.
#[test]
fn resolving_is_silent_and_agrees_with_delivery() {
    let bench = Bench::on(&profile(), true);
    bench.set_entry(1, entry(0x31, 0x203));
    let Seen::Arrived(msi) = arrives(0x31, 0x203) else { unreachable!() };
    assert_eq!(bench.unit.resolve(SOURCE, to_entry(1)), Some(msi));
    assert_eq!(bench.unit.resolve(SOURCE, to_entry(2)), None);
    assert_eq!(bench.unit.resolve(SOURCE, Msi { address: 0xfee0_0000, data: 0x31 }), None);
    assert_eq!(bench.unit.resolve(SOURCE, Msi { address: 0x1000, data: 0x31 }), None);
    assert_eq!(bench.read32(0x34), 0);
}

/// The sink in front of a sink, as devices are given it.
#[test]
fn remapped_sinks() {
    let bench = Bench::on(&profile(), true);
    bench.set_entry(1, entry(0x31, 3));
    let end = Arc::new(RecordingMsi::default());
    let sink = RemappedMsi::new(bench.unit.clone(), end.clone());
    sink.send(SOURCE, to_entry(1));
    sink.send(SOURCE, to_entry(2));
    let expected: [(SourceId, Msi); 1] = [(SOURCE, Msi { address: 0xfee0_3000, data: 0x4031 })];
    assert_eq!(*end.sent.lock(), expected);
}

#[test]
fn reset_forgets_table_and_entries() {
    let bench = Bench::on(&profile(), true);
    bench.set_entry(1, entry(0x31, 3));
    assert_eq!(bench.send(SOURCE, to_entry(1)), arrives(0x31, 3));
    bench.unit.reset();
    assert_eq!((bench.read32(GSTS), bench.read64(IRTA)), (0, 0));
    assert_eq!(bench.send(SOURCE, to_entry(1)), Seen::Arrived(to_entry(1)));
    bench.command(IRE);
    assert_eq!(bench.send(SOURCE, to_entry(1)), Seen::Fault(0x22, SOURCE, 1), "a table of two at 0");
    assert_eq!(bench.send(SOURCE, to_entry(2)), Seen::Fault(0x21, SOURCE, 2));
}
