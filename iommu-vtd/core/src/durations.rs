//! Durations, kept as a histogram of fixed size.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

/// Buckets for each power of two: a percentile is at most an eighth too long.
const PER_OCTAVE: usize = 8;
const OCTAVE_BITS: u32 = PER_OCTAVE.trailing_zeros();
const BUCKETS: usize = (64 - OCTAVE_BITS as usize + 1) * PER_OCTAVE;

/// Durations that were noted.
#[derive(Debug)]
pub struct Durations {
    buckets: Box<[AtomicU64]>,
}

impl Default for Durations {
    fn default() -> Self {
        Self { buckets: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect() }
    }
}

/// What a histogram tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Percentiles {
    /// How many durations there were.
    pub count: u64,
    /// Half of them were not longer, in nanoseconds; 0 if there were none.
    pub p50_ns: u64,
    /// 99 of 100 were not longer, in nanoseconds; 0 if there were none.
    pub p99_ns: u64,
}

impl Durations {
    /// Notes a duration. Does not allocate.
    pub fn note(&self, duration: Duration) {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        if let Some(bucket) = self.buckets.get(bucket_of(nanoseconds)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Forgets all. What is noted meanwhile may stay.
    pub fn clear(&self) {
        for bucket in &self.buckets {
            bucket.store(0, Ordering::Relaxed);
        }
    }

    /// The percentiles as they stand; no shorter than they are, and at most an eighth longer.
    #[must_use]
    pub fn percentiles(&self) -> Percentiles {
        let counts: Vec<u64> = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        let count = counts.iter().sum::<u64>();
        let at = |percent: u64| -> u64 {
            let wanted = (count * percent).div_ceil(100).max(1);
            let mut seen = 0;
            let reached = counts.iter().position(|count| {
                seen += count;
                seen >= wanted
            });
            reached.map_or(0, last_of)
        };
        Percentiles { count, p50_ns: at(50), p99_ns: at(99) }
    }
}

/// The first octaves, below [`PER_OCTAVE`], have a bucket for each number.
fn bucket_of(number: u64) -> usize {
    let Some(shift) = number.checked_ilog2().and_then(|log| log.checked_sub(OCTAVE_BITS)) else {
        return usize::try_from(number).unwrap_or(0);
    };
    // PER_OCTAVE to 2 * PER_OCTAVE - 1.
    let mantissa = usize::try_from(number >> shift).unwrap_or(0);
    shift as usize * PER_OCTAVE + mantissa
}

/// The largest number of a bucket.
fn last_of(bucket: usize) -> u64 {
    if bucket < PER_OCTAVE {
        return bucket as u64;
    }
    let (shift, mantissa) = (bucket / PER_OCTAVE - 1, bucket % PER_OCTAVE + PER_OCTAVE);
    let next = (mantissa as u128 + 1) << shift;
    u64::try_from(next - 1).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_in_the_bucket_that_ends_behind_it() {
        let around = (0..64).flat_map(|bit| [(1_u64 << bit) - 1, 1 << bit, (1 << bit) + 1, 3 << bit >> 1]);
        for number in around.chain([u64::MAX, u64::MAX - 1, 1000, 12345]) {
            let bucket = bucket_of(number);
            assert!(bucket < BUCKETS, "{number}");
            let last = last_of(bucket);
            assert!(last >= number && last - number <= number / 8, "{number} in the bucket up to {last}");
            assert!(bucket == 0 || last_of(bucket - 1) < number, "{number}");
        }
    }

    #[test]
    fn percentiles_of_known_durations() {
        let times = Durations::default();
        assert_eq!(times.percentiles(), Percentiles::default());
        (1..=7).for_each(|n| times.note(Duration::from_nanos(n)));
        assert_eq!(times.percentiles(), Percentiles { count: 7, p50_ns: 4, p99_ns: 7 });
        let times = Durations::default();
        (0..990).for_each(|_| times.note(Duration::from_nanos(100)));
        (0..10).for_each(|_| times.note(Duration::from_micros(100)));
        let Percentiles { count, p50_ns, p99_ns } = times.percentiles();
        assert_eq!((count, p50_ns, p99_ns), (1000, 103, 103));
        times.note(Duration::from_micros(100));
        assert!(times.percentiles().p99_ns >= 100_000);
    }
}
