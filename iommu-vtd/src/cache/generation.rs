//! Which look-ups may still put into the caches what they found.

use iommu_core::sync::Mutex;
use iommu_core::sync::atomic::{AtomicU64, Ordering};

/// Counts invalidations: even at rest, odd while one is dropping entries.
///
/// A cache line of its own. Look-ups only read it, so it stays in every CPU's cache until the next invalidation.
#[derive(Default)]
#[repr(align(128))]
pub(super) struct Generation {
    count: AtomicU64,
    /// Taken by invalidations, which would else not know whose turn ends the odd number.
    turn: Mutex<()>,
}

/// When a look-up began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket(u64);

impl Generation {
    /// A look-up begins. To be called before the first thing is read that the look-up goes by.
    #[inline]
    pub(super) fn begin(&self) -> Ticket {
        Ticket(self.count.load(Ordering::Acquire))
    }

    /// Whether no invalidation has begun since, nor was one under way then.
    #[inline]
    pub(super) fn is_current(&self, ticket: Ticket) -> bool {
        ticket.0.is_multiple_of(2) && self.count.load(Ordering::SeqCst) == ticket.0
    }

    /// Runs `drop_entries` as an invalidation.
    pub(super) fn invalidate(&self, drop_entries: impl FnOnce()) {
        let _turn = self.turn.lock();
        self.count.fetch_add(1, Ordering::SeqCst);
        drop_entries();
        self.count.fetch_add(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_lasts_until_the_next_invalidation_begins() {
        let generation = Generation::default();
        let before = generation.begin();
        assert!(generation.is_current(before));
        let mut during = None;
        generation.invalidate(|| {
            assert!(!generation.is_current(before), "an invalidation has begun");
            during = Some(generation.begin());
        });
        let during = during.unwrap();
        assert!(!generation.is_current(before));
        assert!(!generation.is_current(during), "it may have seen what was dropped later");
        assert!(generation.is_current(generation.begin()));
    }
}
