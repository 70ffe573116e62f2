//! Random histories of table changes, invalidations, commands and messages.

use std::collections::HashMap;

use iommu_core::{InterruptRemapper, Msi, SourceId};
use proptest::prelude::*;

use crate::bench::{ALL, ALL_ENTRIES, Bench, EIME, IRE, Seen, TABLE, block, profile, to_entry};
use crate::model::{Setting, bench, by_entry, entries, sources};

const SETTING: Setting =
    Setting { remapping: true, compatibility: false, extended: true, size: 15, posting: false };

/// Indexes that meet in the same places of any small cache.
const INDEXES: [u16; 6] = [0, 1, 2, 0x0100, 0x0101, 0x8000];

#[derive(Clone, Debug)]
enum Step {
    Change(usize, u128),
    Invalidate(usize, u64),
    InvalidateAll,
    NewTable,
    Off,
    Send(usize, SourceId),
}

fn step() -> impl Strategy<Value = Step> {
    let index = || 0..INDEXES.len();
    prop_oneof![
        4 => (index(), entries()).prop_map(|(at, entry)| Step::Change(at, entry)),
        2 => (index(), 0u64..16).prop_map(|(at, mask)| Step::Invalidate(at, mask)),
        1 => Just(Step::InvalidateAll),
        1 => Just(Step::NewTable),
        1 => Just(Step::Off),
        6 => (index(), sources()).prop_map(|(at, source)| Step::Send(at, source)),
    ]
}

/// Every value that an entry had since it was invalidated last: any of them may be in use.
struct Possible(HashMap<u16, Vec<u128>>);

impl Possible {
    fn settle(&mut self, hit: impl Fn(u16) -> bool) {
        for (index, values) in &mut self.0 {
            if hit(*index) {
                values.drain(..values.len() - 1);
            }
        }
    }
}

fn carry_out(bench: &Bench, possible: &mut Possible, step: Step) -> Result<(), TestCaseError> {
    match step {
        Step::Change(at, entry) => {
            // Descriptors in memory are another test's.
            let entry = entry & !(1 << 15);
            bench.set_entry(INDEXES[at], entry);
            possible.0.get_mut(&INDEXES[at]).unwrap().push(entry);
        }
        Step::Invalidate(at, mask) => {
            bench.submit(block(INDEXES[at], mask), IRE);
            possible.settle(|index| u64::from(index) >> mask == u64::from(INDEXES[at]) >> mask);
        }
        Step::InvalidateAll => {
            bench.submit(ALL, IRE);
            possible.settle(|_| true);
        }
        Step::NewTable => {
            bench.set_table(TABLE | EIME | ALL_ENTRIES, IRE);
            possible.settle(|_| true);
        }
        Step::Off => {
            bench.command(0);
            bench.command(IRE);
            possible.settle(|_| true);
        }
        Step::Send(at, source) => {
            let index = INDEXES[at];
            let outcomes: Vec<Seen> =
                possible.0[&index].iter().map(|entry| by_entry(SETTING, source, index, *entry)).collect();
            let route: Option<Msi> = bench.unit.resolve(source, to_entry(index));
            let seen = bench.send(source, to_entry(index));
            prop_assert!(outcomes.contains(&seen), "{:?} is none of {:?}", seen, outcomes);
            let arrived = if let Seen::Arrived(msi) = seen { Some(msi) } else { None };
            prop_assert_eq!(route, arrived, "a route says what delivery does");
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Nothing is used that was invalidated, and nothing is made up.
    #[test]
    fn no_entry_outlives_its_invalidation(steps in prop::collection::vec(step(), 0..60)) {
        let bench = bench(Setting { posting: profile().posted_interrupts, ..SETTING });
        let mut possible = Possible(INDEXES.map(|index| (index, vec![0])).into());
        for step in steps {
            carry_out(&bench, &mut possible, step)?;
        }
    }
}
