//! A set-associative table that many threads read and few write, of nothing but atomics.
//!
//! Each slot is a sequence lock: its state changes before and after its words do, and who reads takes what it read
//! for good only if the state is the same afterwards. A reader writes nothing and waits for nobody; a slot that is
//! being written holds nothing for it.
//!
//! Nor does a writer wait. Who finds a slot locked does not keep what it has; who has to empty a slot that another
//! is writing tells that one to leave it empty.

use std::array;

use iommu_core::sync::atomic::{AtomicU64, Ordering, fence};

/// What a slot is found by. The first word is not 0.
pub(super) type Key = [u64; 2];

const EMPTY: u64 = 0;

/// Somebody writes the slot.
const LOCKED: u64 = 1;
/// Whoever writes it is to leave it empty.
const CANCELLED: u64 = 2;
/// Added with every change. At the rate of one in a nanosecond it takes a century to come round.
const STEP: u64 = 4;

const WAYS: usize = 4;

/// One entry of `V` words, and its key. No slot shares a cache line half with another.
#[repr(align(32))]
struct Slot<const V: usize> {
    state: AtomicU64,
    key: [AtomicU64; 2],
    value: [AtomicU64; V],
}

impl<const V: usize> Slot<V> {
    fn new() -> Self {
        let zero = || AtomicU64::new(0);
        Self { state: zero(), key: array::from_fn(|_| zero()), value: array::from_fn(|_| zero()) }
    }

    #[inline]
    fn key(&self) -> Key {
        [self.key[0].load(Ordering::Relaxed), self.key[1].load(Ordering::Relaxed)]
    }

    #[inline]
    fn value(&self) -> [u64; V] {
        array::from_fn(|index| self.value[index].load(Ordering::Relaxed))
    }

    /// Whether what was read since the state was `before` is whole.
    #[inline]
    fn unchanged(&self, before: u64) -> bool {
        fence(Ordering::Acquire);
        self.state.load(Ordering::Relaxed) == before
    }

    #[inline]
    fn get(&self, key: Key) -> Option<[u64; V]> {
        let before = self.state.load(Ordering::Acquire);
        if self.key() != key || before & LOCKED != 0 {
            return None;
        }
        let value = self.value();
        self.unchanged(before).then_some(value)
    }

    /// Locks the slot if it is in `state`.
    fn lock(&self, state: u64) -> bool {
        let locked =
            self.state.compare_exchange(state, state | LOCKED, Ordering::SeqCst, Ordering::Relaxed).is_ok();
        // Words change after the state, and the generation is looked at after it (see the chapter's `mod`).
        fence(Ordering::SeqCst);
        locked
    }

    /// Puts an entry in if `current` says, once the slot is locked, that it still holds.
    fn put(&self, key: Key, value: &[u64; V], current: impl Fn() -> bool) {
        let state = self.state.load(Ordering::Relaxed);
        if state & LOCKED != 0 || !self.lock(state) {
            return;
        }
        if current() {
            self.write(key, value);
        }
        let next = state.wrapping_add(STEP);
        let unlock = self.state.compare_exchange(state | LOCKED, next, Ordering::Release, Ordering::Relaxed);
        if unlock.is_err() {
            self.key[0].store(EMPTY, Ordering::Relaxed);
            self.state.store(next, Ordering::Release);
        }
    }

    fn write(&self, key: Key, value: &[u64; V]) {
        for (atomic, word) in self.key.iter().chain(&self.value).zip(key.iter().chain(value)) {
            atomic.store(*word, Ordering::Relaxed);
        }
    }

    /// Empties the slot if `hit` says so. On return it holds nothing that is hit, and nobody who locked it before
    /// leaves such a thing there.
    fn drop_if(&self, hit: impl Fn(Key, &[u64; V]) -> bool) {
        loop {
            let state = self.state.load(Ordering::SeqCst);
            if state & LOCKED != 0 {
                let cancelled = state | CANCELLED;
                let told = self.state.compare_exchange(state, cancelled, Ordering::SeqCst, Ordering::Relaxed);
                if told.is_ok() {
                    return;
                }
                continue;
            }
            let (key, value) = (self.key(), self.value());
            if !self.unchanged(state) {
                continue;
            }
            if key[0] == EMPTY || !hit(key, &value) {
                return;
            }
            if self.lock(state) {
                self.key[0].store(EMPTY, Ordering::Relaxed);
                self.state.store(state.wrapping_add(STEP), Ordering::Release);
                return;
            }
        }
    }
}

/// The table.
pub(super) struct Table<const V: usize> {
    slots: Box<[Slot<V>]>,
    /// Logarithm of the number of sets, subtracted from 64.
    shift: u32,
}

impl<const V: usize> Table<V> {
    /// A table of `2^set_bits` sets, at least two, of four entries each.
    ///
    /// Explored by a scheduler or a fuzzer, a table is as small as it can be: each access to an atomic is a point
    /// at which another thread may go on, or an event to take down.
    pub(super) fn new(set_bits: u32) -> Self {
        let set_bits = if cfg!(any(shuttle, fuzzing)) { 1 } else { set_bits };
        Self { slots: (0..WAYS << set_bits).map(|_| Slot::new()).collect(), shift: 64 - set_bits }
    }

    #[inline]
    fn set(&self, key: Key) -> &[Slot<V>] {
        let mixed = (key[0].wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ key[1]).wrapping_mul(0xd6e8_feb8_6659_fd93);
        // Lossless: fewer sets than fit in memory.
        let first = usize::try_from(mixed >> self.shift).unwrap_or_default() * WAYS;
        &self.slots[first..first + WAYS]
    }

    /// Looks an entry up.
    #[inline]
    pub(super) fn get(&self, key: Key) -> Option<[u64; V]> {
        self.set(key).iter().find_map(|slot| slot.get(key))
    }

    /// Keeps an entry in place of an older one of the same key, of none, or of the one that was written least
    /// often, if `current` then still says that it holds.
    pub(super) fn put(&self, key: Key, value: &[u64; V], current: impl Fn() -> bool) {
        let set = self.set(key);
        let same = set.iter().find(|slot| slot.key() == key);
        let empty = || set.iter().find(|slot| slot.key[0].load(Ordering::Relaxed) == EMPTY);
        let oldest = || set.iter().min_by_key(|slot| slot.state.load(Ordering::Relaxed));
        if let Some(slot) = same.or_else(empty).or_else(oldest) {
            slot.put(key, value, current);
        }
    }

    /// Drops all entries that are hit.
    pub(super) fn drop_where(&self, hit: impl Fn(Key, &[u64; V]) -> bool) {
        for slot in &self.slots {
            slot.drop_if(&hit);
        }
    }

    /// Drops the entry of a key.
    pub(super) fn drop_key(&self, key: Key) {
        for slot in self.set(key) {
            slot.drop_if(|found, _| found == key);
        }
    }

    /// Number of entries, while nobody changes them.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.slots.iter().filter(|slot| slot.key()[0] != EMPTY).count()
    }
}

#[cfg(test)]
mod tests;
