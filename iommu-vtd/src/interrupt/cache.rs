//! The interrupt entry cache (§6.2.7): entries that are present and without mistakes, by index.

use super::remap::Entry;
use crate::invalidation::InterruptScope;

/// Number of slots, a power of two. An index has one slot.
const SLOTS: usize = 256;

/// Entries in slots of their own, the last one used in each.
pub struct EntryCache {
    slots: Box<[Option<(u16, Entry)>]>,
}

impl Default for EntryCache {
    fn default() -> Self {
        Self { slots: vec![None; SLOTS].into() }
    }
}

impl EntryCache {
    /// The entry of an index, if it is here.
    #[must_use]
    pub fn get(&self, index: u16) -> Option<&Entry> {
        self.slots[usize::from(index) % SLOTS].as_ref().filter(|slot| slot.0 == index).map(|slot| &slot.1)
    }

    /// Keeps an entry.
    pub fn insert(&mut self, index: u16, entry: Entry) {
        self.slots[usize::from(index) % SLOTS] = Some((index, entry));
    }

    /// Drops what `scope` hits.
    pub fn invalidate(&mut self, scope: InterruptScope) {
        for slot in &mut self.slots {
            if slot.as_ref().is_some_and(|(index, _)| scope.hits(*index)) {
                *slot = None;
            }
        }
    }
}
