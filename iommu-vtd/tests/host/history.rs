//! Random histories of a driver that announces what it changes: after every wait the host's bindings are what a
//! naive reading of the tables says.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use iommu_core::sync::Mutex;
use iommu_core::testkit::{HostCall, HostOutcome};
use iommu_core::{Domain, DomainId, FirstStage, Gpa, Pasid, SourceId, TableFormat};
use iommu_vtd::testkit::Tables;
use proptest::prelude::*;

use crate::driver::{Driver, ENDPOINT, Memory, TE, desc};
use crate::world::{OTHER, World, first, pass};

const FUNCTIONS: [SourceId; 2] = [ENDPOINT, OTHER];
/// Of two PASID tables and of two pages of the directory.
const PASIDS: [u32; 6] = [0, 1, 63, 64, 700, 0x7fff];
const ROOTS: [u64; 3] = [0x50_0000, 0x51_0000, 0x52_0000];

#[derive(Clone, Copy, Debug)]
enum Entry {
    Clear,
    First { did: u16, root: usize },
    Pass { did: u16 },
    Spoilt,
}

#[derive(Clone, Copy, Debug)]
enum How {
    Pasid,
    Domain,
    AllPasids,
    Contexts,
}

#[derive(Clone, Debug)]
enum Step {
    /// Entries change, and are announced together, in one of the ways that cover them.
    Change { entries: Vec<(usize, usize, Entry)>, how: How },
    /// A context entry comes or goes.
    Context { function: usize, present: bool },
    /// Translation off and on.
    Switch,
    /// The function is taken out and put in again.
    Replug { function: usize },
    /// The unit is reset, and boots with the tables as they are.
    Reboot,
}

fn entry() -> impl Strategy<Value = Entry> {
    prop_oneof![
        2 => Just(Entry::Clear),
        4 => (1..4_u16, 0..ROOTS.len()).prop_map(|(did, root)| Entry::First { did, root }),
        2 => (1..4_u16).prop_map(|did| Entry::Pass { did }),
        1 => Just(Entry::Spoilt),
    ]
}

/// Entries change.
fn changes() -> impl Strategy<Value = Step> {
    let how = prop_oneof![
        3 => Just(How::Pasid),
        1 => Just(How::Domain),
        1 => Just(How::AllPasids),
        1 => Just(How::Contexts),
    ];
    let entries = prop::collection::vec((0..FUNCTIONS.len(), 0..PASIDS.len(), entry()), 1..5);
    (entries, how).prop_map(|(entries, how)| Step::Change { entries, how })
}

fn step() -> impl Strategy<Value = Step> {
    let function = || 0..FUNCTIONS.len();
    prop_oneof![
        8 => changes(),
        1 => (function(), any::<bool>()).prop_map(|(function, present)| Step::Context { function, present }),
        1 => Just(Step::Switch),
        1 => function().prop_map(|function| Step::Replug { function }),
        1 => Just(Step::Reboot),
    ]
}

/// What a reader with the manual makes of the tables, word by word.
fn naive(tables: &Tables<'_, Memory>, source: SourceId, pasid: u32) -> Domain {
    let at = |base: u64, offset: u64| tables.word(Gpa(base + offset));
    let devfn = u64::from(source.0 & 0xff);
    let root = at(tables.root().0, u64::from(source.0 >> 8) * 16 + (devfn >> 7) * 8);
    if root & 1 == 0 {
        return Domain::Blocked;
    }
    let context = at(root & !0xfff, (devfn & 0x7f) * 32);
    if context & 1 == 0 {
        return Domain::Blocked;
    }
    let directory = at(context & !0xfff, u64::from(pasid >> 6) * 8);
    if directory & 1 == 0 {
        return Domain::Blocked;
    }
    let entry = (directory & !0xfff) + u64::from(pasid & 63) * 64;
    let words = [0, 8, 16].map(|offset| at(entry, offset));
    let id = DomainId(u32::try_from(words[1] & 0xffff).unwrap());
    let spoilt = words[1] & 1 << 20 != 0;
    match (words[0] & 1, spoilt, words[0] >> 6 & 7) {
        (1, false, 1) => {
            let format = TableFormat::X86FirstStage {
                supervisor: words[2] & 1 != 0,
                write_protect: words[2] & 1 << 4 != 0,
                extended_accessed: words[2] & 1 << 7 != 0,
            };
            let root = Gpa(words[2] & !0xfff);
            Domain::FirstStage { id, table: FirstStage { root, input_bits: 48, format } }
        }
        (1, false, 4) => Domain::PassThrough { id },
        _ => Domain::Blocked,
    }
}

fn write(tables: &Tables<'_, Memory>, source: SourceId, pasid: u32, entry: Entry) {
    let at = tables.context(source).pasid(pasid);
    match entry {
        Entry::Clear => drop(at.clear()),
        Entry::First { did, root } => {
            // As the builder does it, but with a root of ours: present last.
            at.clear();
            at.pass_through(did).clear();
            at.edit(2, |_| ROOTS[root]).edit(0, |word| word & !0x1c0 | 0x41);
        }
        Entry::Pass { did } => drop(at.clear().pass_through(did)),
        Entry::Spoilt => drop(at.edit(1, |word| word | 1 << 20)),
    }
    if !matches!(entry, Entry::Spoilt) {
        at.edit(1, |word| word & !(1 << 20));
    }
}

/// Descriptors that announce changes of these PASIDs. A domain-selective one has the domain as it is now, as drivers
/// do it for new entries, and as it was before.
fn announce(how: How, pasids: &[(u32, [u64; 2])]) -> Vec<(u64, u64)> {
    match how {
        How::Pasid => {
            pasids.iter().map(|(pasid, [_, new])| desc::pasid_cache(*new, (*pasid).into())).collect()
        }
        How::Domain => pasids.iter().flat_map(|(_, dids)| dids.map(|did| (did << 16 | 7, 0))).collect(),
        How::AllPasids => vec![desc::PASID_GLOBAL],
        How::Contexts => vec![desc::CONTEXT_GLOBAL, desc::PASID_GLOBAL],
    }
}

fn did_of(tables: &Tables<'_, Memory>, source: SourceId, pasid: u32) -> u64 {
    tables.word(Gpa(tables.context(source).pasid(pasid).at().0 + 8)) & 0xffff
}

fn set_present(tables: &Tables<'_, Memory>, source: SourceId, present: bool) {
    // Not by the builder, which makes a new directory for what is not present.
    let root = tables.word(Gpa(tables.root().0 + u64::from(source.0 >> 8) * 16));
    let at = Gpa((root & !0xfff) + u64::from(source.0 & 0x7f) * 32);
    tables.set_word(at, tables.word(at) & !1 | u64::from(present));
}

fn take(world: &World, driver: &Driver<'_>, tables: &Tables<'_, Memory>, gone: &mut [bool; 2], step: &Step) {
    match step {
        Step::Change { entries, how } => {
            let mut pasids = Vec::new();
            for (function, pasid, entry) in entries {
                if gone[*function] {
                    continue;
                }
                let (source, pasid) = (FUNCTIONS[*function], PASIDS[*pasid]);
                let old = did_of(tables, source, pasid);
                write(tables, source, pasid, *entry);
                pasids.push((pasid, [old, did_of(tables, source, pasid)]));
            }
            driver.submit(&announce(*how, &pasids));
        }
        Step::Context { function, present } => {
            set_present(tables, FUNCTIONS[*function], *present);
            gone[*function] = !present;
            driver.submit(&[(u64::from(FUNCTIONS[*function].0) << 32 | 0x31, 0)]);
        }
        Step::Switch => {
            driver.level(TE, false);
            for source in FUNCTIONS {
                assert_eq!(world.domain(source, 0), pass(0));
                assert!(PASIDS[1..].iter().all(|pasid| world.domain(source, *pasid) == Domain::Blocked));
            }
            driver.level(TE, true);
        }
        Step::Replug { function } => {
            world.machine.unit.detach_host(FUNCTIONS[*function]);
            assert!(PASIDS.iter().all(|pasid| world.domain(FUNCTIONS[*function], *pasid) == Domain::Blocked));
            world.attach(FUNCTIONS[*function]);
        }
        Step::Reboot => {
            driver.level(TE, false);
            driver.level(crate::driver::QIE, false);
            world.machine.unit.reset();
            driver.enable_queue();
            driver.set_root(tables.root_register().raw_value());
            driver.level(TE, true);
        }
    }
}

proptest! {
    #[test]
    fn bindings_are_what_the_tables_say(steps in prop::collection::vec(step(), 1..40)) {
        let world = World::new();
        let (driver, tables) = world.boot();
        for source in FUNCTIONS {
            // Directories are there from the start, so that entries are all that changes.
            for pasid in PASIDS {
                let _ = tables.context(source).pasid(pasid);
            }
        }
        let mut gone = [false; 2];
        for (number, step) in steps.iter().enumerate() {
            take(&world, &driver, &tables, &mut gone, step);
            for (source, pasid) in FUNCTIONS.into_iter().flat_map(|s| PASIDS.map(|p| (s, p))) {
                let expected = naive(&tables, source, pasid);
                prop_assert_eq!(world.domain(source, pasid), expected, "step {}: {} {:#x}", number, source, pasid);
            }
            let known = |pasid: &Option<Pasid>| PASIDS.contains(&pasid.map_or(0, Pasid::get));
            prop_assert!(world.host.bound.lock().keys().all(|(_, pasid)| known(pasid)));
            // Nothing changed since.
            world.sets();
            driver.submit(&[desc::CONTEXT_GLOBAL, desc::PASID_GLOBAL]);
            prop_assert_eq!(world.sets(), vec![]);
        }
    }
}

/// What the host does with calls, one after the other, over and over.
fn outcomes() -> impl Strategy<Value = Vec<HostOutcome>> {
    let outcome = prop_oneof![
        4 => Just(HostOutcome::Done),
        2 => Just(HostOutcome::Refused),
        1 => Just(HostOutcome::Stuck),
    ];
    prop::collection::vec(outcome, 1..12)
}

/// Refuses as `outcomes` say; what it is stuck with is written down. Taking notes never fails.
fn refuse(world: &World, outcomes: Vec<HostOutcome>) -> Arc<Mutex<BTreeSet<(SourceId, u32)>>> {
    let stuck = Arc::new(Mutex::new(BTreeSet::new()));
    let (noted, next) = (stuck.clone(), AtomicUsize::new(0));
    world.host.on_call(move |call| {
        let outcome = outcomes[next.fetch_add(1, Ordering::Relaxed) % outcomes.len()];
        let mut noted = noted.lock();
        match (call, outcome) {
            (HostCall::Invalidate(_) | HostCall::Drain | HostCall::Respond(_), _) => HostOutcome::Done,
            (HostCall::Set(source, pasid, _), outcome) => {
                let pair = (*source, pasid.map_or(0, Pasid::get));
                noted.remove(&pair);
                if outcome == HostOutcome::Stuck {
                    noted.insert(pair);
                }
                outcome
            }
            (HostCall::Sync, outcome) => outcome,
        }
    });
    stuck
}

proptest! {
    /// What is bound is what the tables say, or was to be stopped; and when the host is well again, all of it is.
    #[test]
    fn a_host_that_refuses_holds_nothing_that_was_taken_back(
        steps in prop::collection::vec(changes(), 1..30),
        outcomes in outcomes(),
    ) {
        let world = World::new();
        let (driver, tables) = world.boot();
        for source in FUNCTIONS {
            for pasid in PASIDS {
                let _ = tables.context(source).pasid(pasid);
            }
        }
        let stuck = refuse(&world, outcomes);
        let pairs = || FUNCTIONS.into_iter().flat_map(|source| PASIDS.map(|pasid| (source, pasid)));
        for step in &steps {
            let stops = world.stops.load(Ordering::Relaxed);
            let before = stuck.lock().len();
            take(&world, &driver, &tables, &mut [false; 2], step);
            for (source, pasid) in pairs() {
                let (found, expected) = (world.domain(source, pasid), naive(&tables, source, pasid));
                let right = found == expected || found == Domain::Blocked;
                prop_assert!(right || stuck.lock().contains(&(source, pasid)), "{} {:#x} {:?}", source, pasid, step);
            }
            prop_assert!(stuck.lock().len() <= before || world.stops.load(Ordering::Relaxed) > stops);
        }
        world.host.on_call(|_| HostOutcome::Done);
        driver.submit(&[desc::CONTEXT_GLOBAL, desc::PASID_GLOBAL]);
        for (source, pasid) in pairs() {
            prop_assert_eq!(world.domain(source, pasid), naive(&tables, source, pasid), "{} {:#x}", source, pasid);
        }
    }
}

#[test]
fn the_naive_reader_can_tell_domains_apart() {
    let world = World::new();
    let (_driver, tables) = world.boot();
    let root = tables.context(ENDPOINT).pasid(1).first_stage(2).root();
    assert_eq!(naive(&tables, ENDPOINT, 1), first(2, root));
    assert_eq!(naive(&tables, ENDPOINT, 2), Domain::Blocked);
    tables.context(ENDPOINT).pasid(1).pass_through(3);
    assert_eq!(naive(&tables, ENDPOINT, 1), pass(3));
    write(&tables, ENDPOINT, 1, Entry::First { did: 4, root: 1 });
    assert_eq!(naive(&tables, ENDPOINT, 1), first(4, Gpa(ROOTS[1])));
}
