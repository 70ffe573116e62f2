//! Counters and the timeline of the global page (section 2.1).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use iommu_core::{Durations, LookUps, Percentiles};
use parking_lot::Mutex;
use serde::Serialize;

/// A counter that wraps. Its order with other memory means nothing.
#[derive(Debug, Default)]
pub struct Counter {
    total: AtomicU64,
    /// What does not count any more.
    forgotten: AtomicU64,
}

impl Counter {
    /// Adds one.
    pub fn count(&self) {
        self.add(1);
    }

    /// Adds a number.
    pub fn add(&self, number: u64) {
        self.total.fetch_add(number, Ordering::Relaxed);
    }

    /// The value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.total().wrapping_sub(self.forgotten.load(Ordering::Relaxed))
    }

    /// What it would be if it had never been cleared.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Counts from 0 again.
    pub fn clear(&self) {
        self.forgotten.store(self.total(), Ordering::Relaxed);
    }
}

/// The counters, in the order of their registers.
#[derive(Debug, Default)]
pub struct Counters {
    /// Descriptors that ended.
    pub completed: Counter,
    /// Translation requests.
    pub translation_requests: Counter,
    /// Page requests.
    pub page_requests: Counter,
    /// Responses "success".
    pub responses_success: Counter,
    /// Responses "invalid request".
    pub responses_invalid: Counter,
    /// Responses "response failure".
    pub responses_failure: Counter,
    /// Device-TLB invalidations.
    pub invalidations: Counter,
    /// Untranslated requests looked up by the IOMMU.
    pub untranslated_requests: Counter,
    /// Submissions dropped.
    pub dropped: Counter,
    /// Completion records lost.
    pub records_lost: Counter,
    /// Page request groups.
    pub page_groups: Counter,
    /// From a group's being sent to its response.
    pub answered: Durations,
    /// From a miss to the successful retry.
    pub served: Durations,
    /// What a reset does not clear.
    waits: Waits,
}

/// Page requests that ended with a successful retry, since the endpoint was made.
#[derive(Debug, Default)]
struct Waits {
    /// From sent to retried.
    round_trip: Durations,
    /// Of that, until the guest could see the request, and from its response on.
    own_share: Durations,
    /// The rest.
    guest_share: Durations,
}

impl Counters {
    fn list(&self) -> [&Counter; 11] {
        [
            &self.completed,
            &self.translation_requests,
            &self.page_requests,
            &self.responses_success,
            &self.responses_invalid,
            &self.responses_failure,
            &self.invalidations,
            &self.untranslated_requests,
            &self.dropped,
            &self.records_lost,
            &self.page_groups,
        ]
    }

    /// The counter with this index, 0 for one that does not exist.
    #[must_use]
    pub fn at(&self, index: usize) -> u64 {
        self.list().get(index).map_or(0, |counter| counter.get())
    }

    /// All to 0.
    pub fn clear(&self) {
        for counter in self.list() {
            counter.clear();
        }
        self.answered.clear();
        self.served.clear();
    }

    /// Register `index` of the durations, 0 for one that does not exist.
    #[must_use]
    pub fn duration(&self, index: usize) -> u64 {
        let durations = if index < 3 { &self.answered } else { &self.served };
        let Percentiles { count, p50_ns, p99_ns } = durations.percentiles();
        [count, p50_ns, p99_ns].into_iter().cycle().nth(index).unwrap_or(0)
    }

    /// Notes a wait that ended well.
    pub fn note_served(&self, times: &Times) {
        let Times { miss, sent, queued, response, retry } = times.in_order();
        let note = |durations: &Durations, nanoseconds| durations.note(Duration::from_nanos(nanoseconds));
        let (all, guest) = (retry.saturating_sub(sent), response.saturating_sub(queued));
        note(&self.served, retry.saturating_sub(miss));
        note(&self.waits.round_trip, all);
        note(&self.waits.guest_share, guest);
        note(&self.waits.own_share, all.saturating_sub(guest));
    }
}

/// What the endpoint has counted since it was made, for people and scripts outside of the guest. No reset clears it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SvmReading {
    /// Descriptors that ended.
    pub completed: u64,
    /// Submissions dropped.
    pub dropped: u64,
    /// Completion records lost.
    pub records_lost: u64,
    /// Accesses that the device-TLB served, page by page, and those that it asked for.
    pub device_tlb: LookUps,
    /// Device-TLB invalidations.
    pub invalidations: u64,
    /// Untranslated requests looked up by the IOMMU.
    pub untranslated_requests: u64,
    /// Page requests.
    pub page_requests: u64,
    /// Their groups.
    pub page_groups: u64,
    /// Responses: success, invalid request, response failure.
    pub responses: [u64; 3],
    /// From a page request's being sent to the retry that succeeded.
    pub round_trip: Percentiles,
    /// Of that, until the guest could see the request, and from its response on.
    pub own_share: Percentiles,
    /// Of that, what the guest took.
    pub guest_share: Percentiles,
}

impl Counters {
    /// All of them, with what the device-TLB served since it was made.
    #[must_use]
    pub fn read(&self, hits: u64) -> SvmReading {
        SvmReading {
            completed: self.completed.total(),
            dropped: self.dropped.total(),
            records_lost: self.records_lost.total(),
            device_tlb: LookUps { hits, misses: self.translation_requests.total() },
            invalidations: self.invalidations.total(),
            untranslated_requests: self.untranslated_requests.total(),
            page_requests: self.page_requests.total(),
            page_groups: self.page_groups.total(),
            responses: [&self.responses_success, &self.responses_invalid, &self.responses_failure]
                .map(Counter::total),
            round_trip: self.waits.round_trip.percentiles(),
            own_share: self.waits.own_share.percentiles(),
            guest_share: self.waits.guest_share.percentiles(),
        }
    }
}

/// The device's monotonic clock, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Default for Clock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock {
    /// Nanoseconds since the clock was made. Never 0, which means "not yet".
    #[must_use]
    pub fn now(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX).max(1)
    }
}

/// When the parts of one page request happened; 0: not (yet).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// A translation request came back empty.
    pub miss: u64,
    /// The page request was handed to the IOMMU.
    pub sent: u64,
    /// It was visible to the guest.
    pub queued: u64,
    /// The response arrived.
    pub response: u64,
    /// The translation request after it succeeded.
    pub retry: u64,
}

impl Times {
    /// The answer may arrive before the call that makes the request returns.
    fn in_order(self) -> Self {
        Self { queued: self.queued.min(self.response), ..self }
    }
}

/// The most recent page request that ended with a successful retry.
#[derive(Debug, Default)]
pub struct Timeline(Mutex<Entry>);

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    times: Times,
    address: u64,
    queue: u32,
    sequence: u32,
}

impl Timeline {
    /// Replaces what is shown.
    pub fn publish(&self, times: Times, address: u64, queue: u8) {
        let times = times.in_order();
        let mut entry = self.0.lock();
        let sequence = entry.sequence.wrapping_add(1);
        *entry = Entry { times, address, queue: u32::from(queue), sequence };
    }

    /// Register `index` after the clock, 1 to 7; 0 for others.
    #[must_use]
    pub fn at(&self, index: usize) -> u64 {
        let Entry { times, address, queue, sequence } = *self.0.lock();
        let Times { miss, sent, queued, response, retry } = times;
        let last = u64::from(sequence) << 32 | u64::from(queue);
        [0, miss, sent, queued, response, retry, address, last].get(index).copied().unwrap_or(0)
    }

    /// Back to "none".
    pub fn clear(&self) {
        *self.0.lock() = Entry::default();
    }
}
