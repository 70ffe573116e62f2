//! What is to be flushed in one nested table, kept small: neighbours merge, and a flood becomes one whole flush.

use iommu_core::{HostError, IovaRange};
use zerocopy::IntoBytes as _;

use crate::kernel::{Entries, Kernel, Partial};
use crate::object::{Object, refused};
use crate::sys::uapi::{INVALIDATE_DATA_VTD_S1, VtdS1Invalidate};

/// Ranges of one table beyond which all of it is flushed. A descriptor per range costs the host more than the
/// refill of an address space whose pages come and go by the dozen.
pub(crate) const RANGES: usize = 32;

/// 4 KiB pages, first and last inclusive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Pages {
    first: u64,
    last: u64,
    leaf_only: bool,
}

impl Pages {
    fn touches(&self, other: &Self) -> bool {
        self.first <= other.last.saturating_add(1) && other.first <= self.last.saturating_add(1)
    }

    fn union(&self, other: &Self) -> Self {
        Self {
            first: self.first.min(other.first),
            last: self.last.max(other.last),
            leaf_only: self.leaf_only && other.leaf_only,
        }
    }

    /// Number of pages that the host really drops: it widens a range to the power of two that holds it.
    fn cost(&self) -> u64 {
        1_u64.checked_shl(u64::BITS - (self.first ^ self.last).leading_zeros()).unwrap_or(u64::MAX)
    }

    /// Whether one flush for both drops no more than two would.
    fn worth_merging(&self, other: &Self) -> bool {
        self.touches(other) && self.union(other).cost() <= self.cost().saturating_add(other.cost())
    }
}

/// What is to be flushed in one table. Fixed in size, so that noting costs no allocation.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pending {
    ranges: [Pages; RANGES],
    len: usize,
    all: bool,
}

impl Pending {
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0 && !self.all
    }

    /// Everything is to go.
    pub(crate) fn add_all(&mut self) {
        self.all = true;
        self.len = 0;
    }

    /// The pages of a range are to go; with `leaf_only`, table entries above them may stay cached.
    pub(crate) fn add(&mut self, range: &IovaRange, leaf_only: bool) {
        if self.all || *range == IovaRange::ALL {
            self.add_all();
            return;
        }
        let mut pages = Pages { first: range.start() >> 12, last: range.last() >> 12, leaf_only };
        // What grew may have come to touch another.
        while let Some(index) = self.ranges[..self.len].iter().position(|p| p.worth_merging(&pages)) {
            pages = pages.union(&self.ranges[index]);
            self.len -= 1;
            self.ranges[index] = self.ranges[self.len];
        }
        match self.ranges.get_mut(self.len) {
            Some(free) => {
                *free = pages;
                self.len += 1;
            }
            None => self.add_all(),
        }
    }

    /// What is to go, in addresses.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = IovaRange> {
        let some = self.ranges[..self.len]
            .iter()
            .filter_map(|p| IovaRange::new(p.first << 12, p.last << 12 | 0xfff));
        self.all.then_some(IovaRange::ALL).into_iter().chain(some)
    }

    /// As the host takes it. Leaves nothing behind.
    fn drain_into(&mut self, entries: &mut Vec<VtdS1Invalidate>) {
        entries.clear();
        if self.all {
            entries.push(VtdS1Invalidate::ALL);
        }
        entries.extend(self.ranges[..self.len].iter().map(|pages| VtdS1Invalidate {
            addr: pages.first << 12,
            npages: pages.last - pages.first + 1,
            flags: if pages.leaf_only { VtdS1Invalidate::LEAF } else { 0 },
            reserved: 0,
        }));
        self.len = 0;
        self.all = false;
    }
}

/// Flushes what is pending in a table: one system call, and more only after errors. The call goes on where the
/// host stopped; what it refuses twice is covered by flushing everything. `entries` is room to work in.
///
/// # Errors
/// Not even that was possible.
pub(crate) fn flush(
    kernel: &dyn Kernel,
    table: &Object,
    pending: &mut Pending,
    entries: &mut Vec<VtdS1Invalidate>,
) -> Result<(), HostError> {
    pending.drain_into(entries);
    let mut start = 0;
    while start < entries.len() {
        match send(kernel, table, &entries[start..]) {
            Ok(()) => return Ok(()),
            Err(Partial { done: 0, errno }) => {
                log::debug!("{table}: an invalidation was refused: {errno}");
                return send(kernel, table, &[VtdS1Invalidate::ALL])
                    .map_err(|partial| refused("invalidate", table, partial.errno));
            }
            Err(Partial { done, .. }) => start += done,
        }
    }
    Ok(())
}

fn send(kernel: &dyn Kernel, table: &Object, entries: &[VtdS1Invalidate]) -> Result<(), Partial> {
    let entry_len = size_of::<VtdS1Invalidate>();
    let entries = Entries { kind: INVALIDATE_DATA_VTD_S1, entry_len, bytes: entries.as_bytes() };
    kernel.hwpt_invalidate(table.id(), &entries)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn page(number: u64) -> IovaRange {
        IovaRange::aligned(number << 12, 12)
    }

    fn drained(pending: &mut Pending) -> Vec<(u64, u64, u32)> {
        let mut entries = Vec::new();
        pending.drain_into(&mut entries);
        entries.iter().map(|e| (e.addr >> 12, e.npages, e.flags)).collect()
    }

    /// (name, ranges in order, with leaf flag; entries as (page, number of pages, flags)).
    #[test]
    fn neighbours_merge_where_it_is_free() {
        type Row = (&'static str, Vec<(IovaRange, bool)>, Vec<(u64, u64, u32)>);
        let rows: [Row; 8] = [
            ("one", vec![(page(5), false)], vec![(5, 1, 0)]),
            ("twins", vec![(page(4), false), (page(5), false)], vec![(4, 2, 0)]),
            ("the same twice", vec![(page(5), true), (page(5), true)], vec![(5, 1, 1)]),
            ("leaf and not", vec![(page(4), true), (page(5), false)], vec![(4, 2, 0)]),
            ("across a boundary", vec![(page(7), false), (page(8), false)], vec![(7, 1, 0), (8, 1, 0)]),
            ("four in disorder", [6, 4, 7, 5].map(|n| (page(n), false)).to_vec(), vec![(4, 4, 0)]),
            ("far apart", vec![(page(1), false), (page(9), false)], vec![(1, 1, 0), (9, 1, 0)]),
            ("all", vec![(page(1), true), (IovaRange::ALL, true)], vec![(0, u64::MAX, 0)]),
        ];
        for (name, ranges, expected) in rows {
            let mut pending = Pending::default();
            for (range, leaf_only) in &ranges {
                pending.add(range, *leaf_only);
            }
            // u64::MAX pages do not shift.
            assert_eq!(drained(&mut pending), expected, "{name}");
            assert!(pending.is_empty(), "{name}");
        }
    }

    #[test]
    fn a_flood_becomes_one_flush() {
        let mut pending = Pending::default();
        for n in 0..RANGES as u64 {
            pending.add(&page(n * 16), true);
        }
        assert_eq!(drained(&mut pending.clone()).len(), RANGES);
        pending.add(&page(0x1_0000), true);
        assert_eq!(drained(&mut pending), [(0, u64::MAX, 0)]);
    }

    #[test]
    fn the_highest_page_counts() {
        let mut pending = Pending::default();
        pending.add(&IovaRange::new(u64::MAX - 0xfff, u64::MAX).unwrap(), false);
        pending.add(&IovaRange::aligned(u64::MAX, 63), false);
        assert_eq!(drained(&mut pending), [(1 << 51, 1 << 51, 0)]);
    }

    proptest! {
        /// Whatever was noted is covered, and by no more ranges than were noted.
        #[test]
        fn what_is_noted_is_covered(ranges in prop::collection::vec((0..200_u64, 0..5_u32, any::<bool>()), 1..60)) {
            let mut pending = Pending::default();
            for (n, bits, leaf) in &ranges {
                pending.add(&IovaRange::aligned(n << 12, 12 + bits), *leaf);
            }
            let entries = drained(&mut pending);
            prop_assert!(entries.len() <= ranges.len().min(RANGES));
            for (n, bits, leaf) in &ranges {
                let range = IovaRange::aligned(n << 12, 12 + bits);
                for page in range.start() >> 12..=range.last() >> 12 {
                    let covered = entries.iter().any(|(first, number, flags)| {
                        page >= *first && page - first < *number && (*leaf || flags & VtdS1Invalidate::LEAF == 0)
                    });
                    prop_assert!(covered, "page {page:#x}");
                }
            }
        }
    }
}
