//! One table, by one thread and by many.

use std::sync::atomic::AtomicBool;
use std::thread;

use super::*;

const YES: fn() -> bool = || true;

fn key(number: u64) -> Key {
    [1 << 63, number]
}

#[test]
fn entries_are_found_replaced_and_dropped() {
    let table = Table::<3>::new(4);
    for number in 0..16 {
        table.put(key(number), &[number, 1, 2], YES);
    }
    assert_eq!(table.get(key(3)), Some([3, 1, 2]));
    assert_eq!(table.get([1 << 62, 3]), None, "both words count");
    table.put(key(3), &[33, 1, 2], YES);
    assert_eq!((table.get(key(3)), table.len()), (Some([33, 1, 2]), 16), "in place of the older");
    table.drop_key(key(3));
    assert_eq!((table.get(key(3)), table.len()), (None, 15));
    table.drop_where(|_, [number, ..]| number % 2 == 1);
    let left: Vec<_> = (0..16).filter(|number| table.get(key(*number)).is_some()).collect();
    assert_eq!(left, [0, 2, 4, 6, 8, 10, 12, 14]);
    table.drop_where(|_, _| true);
    assert_eq!(table.len(), 0);
}

#[test]
fn a_full_set_gives_up_what_was_written_least_often() {
    let table = Table::<1>::new(1);
    let same_set: Vec<_> =
        (0..).map(key).filter(|k| std::ptr::eq(table.set(*k), table.set(key(0)))).take(9).collect();
    for (number, key) in same_set.iter().enumerate() {
        table.put(*key, &[number as u64], YES);
    }
    let left = |from: usize| same_set[from..].iter().filter(|key| table.get(**key).is_some()).count();
    assert_eq!((left(0), left(5)), (4, 4), "the four that came last");
}

#[test]
fn what_no_longer_holds_is_not_kept_and_harms_nothing() {
    let table = Table::<1>::new(1);
    table.put(key(1), &[1], YES);
    table.put(key(1), &[2], || false);
    table.put(key(2), &[3], || false);
    assert_eq!((table.get(key(1)), table.get(key(2))), (Some([1]), None));
}

/// The point of the race: the slot is being filled when the invalidation comes to it.
#[test]
fn a_slot_that_is_being_filled_when_it_is_to_be_emptied_is_left_empty() {
    type Row = (&'static str, fn(&Table<1>));
    let rows: [Row; 2] =
        [("by key", |table| table.drop_key(key(1))), ("by content", |table| table.drop_where(|_, _| true))];
    for (name, drop_it) in rows {
        let table = Table::<1>::new(1);
        table.put(key(1), &[1], YES);
        table.put(key(1), &[2], || {
            assert_eq!(table.get(key(1)), None, "{name}: nobody sees a slot that is being written");
            drop_it(&table);
            drop_it(&table);
            true
        });
        assert_eq!((table.get(key(1)), table.len()), (None, 0), "{name}");
        table.put(key(1), &[3], YES);
        assert_eq!(table.get(key(1)), Some([3]), "{name}: and is as good as any afterwards");
    }
}

#[test]
fn two_writers_of_one_slot_do_not_wait_for_each_other() {
    let table = Table::<1>::new(1);
    table.put(key(1), &[1], YES);
    table.put(key(1), &[2], || {
        table.put(key(1), &[3], YES);
        true
    });
    assert_eq!(table.get(key(1)), Some([2]));
}

/// Words of one entry never mix with those of another: each value tells its key.
#[test]
fn readers_never_see_half_an_entry() {
    let table = Table::<3>::new(1);
    let stop = AtomicBool::new(false);
    let value = |number: u64, round: u64| [number ^ round, round, number.wrapping_mul(31) ^ round];
    let write = |writer: u64| {
        let mut round = 0;
        while !stop.load(Ordering::Relaxed) {
            round += 1;
            let number = (round * 7 + writer) % 24;
            table.put(key(number), &value(number, round), YES);
            if round % 64 == 0 {
                table.drop_where(|_, [_, at, _]| at % 3 == 0);
            }
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| write(0));
        scope.spawn(|| write(1));
        let mut found = 0;
        while found < 20_000 {
            for number in 0..24 {
                if let Some(words) = table.get(key(number)) {
                    assert_eq!(words, value(number, words[1]));
                    found += 1;
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}
