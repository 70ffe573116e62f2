//! What one address space of the host's maps.

use std::collections::BTreeMap;

use iommu_core::{IovaRange, Mapping, Permissions};

/// Input addresses that lead to guest memory: what one system call maps, and one takes back whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// Input addresses.
    pub iova: IovaRange,
    /// Where the first of them leads, in the guest's memory.
    pub base: u64,
    /// What is allowed.
    pub permissions: Permissions,
    /// The guest's mapping that this is a part of, because not all of it is memory.
    pub(super) whole: IovaRange,
}

impl Area {
    /// The guest's memory.
    #[must_use]
    pub fn memory(&self) -> Option<IovaRange> {
        IovaRange::new(self.base, self.base.checked_add(self.iova.last() - self.iova.start())?)
    }
}

/// Areas of one address space. No two overlap.
#[derive(Debug, Default)]
pub(super) struct Areas(BTreeMap<u64, Area>);

impl Areas {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn insert(&mut self, area: Area) {
        self.0.insert(area.iova.start(), area);
    }

    /// Takes out all areas within `range`, none of which reaches beyond it.
    pub(super) fn remove(&mut self, range: &IovaRange) {
        while let Some((start, _)) = self.0.range(range.start()..=range.last()).next() {
            let start = *start;
            self.0.remove(&start);
        }
    }

    /// Those that share an address with `range`, in ascending order.
    pub(super) fn overlapping(&self, range: &IovaRange) -> impl Iterator<Item = &Area> {
        let before = self.0.range(..range.start()).next_back().map(|(_, area)| area);
        let reaches_in = before.filter(|area| area.iova.last() >= range.start());
        reaches_in.into_iter().chain(self.0.range(range.start()..=range.last()).map(|(_, area)| area))
    }

    /// `range`, and as much more as the guest's mappings in it reach beyond it.
    pub(super) fn hull(&self, range: &IovaRange) -> IovaRange {
        self.overlapping(range).fold(*range, |hull, area| union(&hull, &area.whole))
    }
}

/// The smallest range that holds both.
pub(super) fn union(one: &IovaRange, other: &IovaRange) -> IovaRange {
    let (start, last) = (one.start().min(other.start()), one.last().max(other.last()));
    IovaRange::new(start, last).unwrap_or(*one)
}

/// How one set of areas becomes another.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// What is to go, each made of whole areas that follow each other.
    pub(super) gone: Vec<IovaRange>,
    /// Number of areas in `gone`.
    pub(super) gone_areas: usize,
    /// What is to come.
    pub(super) new: Vec<Area>,
    /// A mapping that leads to no memory, and is left out.
    pub(super) nowhere: Option<Mapping>,
}

impl Changes {
    fn take_away(&mut self, area: &IovaRange) {
        self.gone_areas += 1;
        match self.gone.last_mut() {
            Some(last) if last.last().checked_add(1) == Some(area.start()) => *last = union(last, area),
            Some(_) | None => self.gone.push(*area),
        }
    }
}

/// **Pure.** What is to be done so that exactly `wanted` is mapped in `range`. Nothing that is to stay is touched,
/// because a device may be using it. Neither `wanted`, which is in ascending order, nor any area may
/// reach beyond `range`.
pub(super) fn changes(areas: &Areas, range: &IovaRange, wanted: Vec<Area>) -> Changes {
    let mut changes = Changes::default();
    let mut wanted = wanted.into_iter().peekable();
    for old in areas.overlapping(range) {
        while let Some(new) = wanted.next_if(|new| new.iova.start() < old.iova.start()) {
            changes.new.push(new);
        }
        if wanted.next_if(|new| same(new, old)).is_none() {
            changes.take_away(&old.iova);
        }
    }
    changes.new.extend(wanted);
    changes
}

/// What a device makes of both is the same.
fn same(one: &Area, other: &Area) -> bool {
    one.iova == other.iova && one.base == other.base && one.permissions == other.permissions
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `pages` pages at page `page`, on those at `base`.
    fn area(page: u64, pages: u64, base: u64) -> Area {
        let iova = IovaRange::new(page << 12, ((page + pages) << 12) - 1).unwrap();
        Area { iova, base: base << 12, permissions: Permissions::READ_WRITE, whole: iova }
    }

    fn areas(list: &[Area]) -> Areas {
        let mut areas = Areas::default();
        list.iter().for_each(|area| areas.insert(*area));
        areas
    }

    fn pages(first: u64, last: u64) -> IovaRange {
        IovaRange::new(first << 12, (last << 12) + 0xfff).unwrap()
    }

    #[test]
    fn areas_are_found_from_their_middle() {
        let areas = areas(&[area(1, 1, 9), area(4, 4, 9), area(8, 1, 9)]);
        let rows = [
            ("before", pages(0, 0), vec![]),
            ("between", pages(2, 3), vec![]),
            ("first", pages(0, 1), vec![1]),
            ("from within", pages(6, 7), vec![4]),
            ("from within to the next", pages(7, 8), vec![4, 8]),
            ("all", IovaRange::ALL, vec![1, 4, 8]),
            ("top of the space", IovaRange::aligned(u64::MAX, 12), vec![]),
        ];
        for (name, range, expected) in rows {
            let found: Vec<_> = areas.overlapping(&range).map(|area| area.iova.start() >> 12).collect();
            assert_eq!(found, expected, "{name}");
        }
        assert_eq!(areas.hull(&pages(6, 6)), pages(4, 7));
        assert_eq!(areas.hull(&pages(2, 2)), pages(2, 2));
    }

    #[test]
    fn only_what_differs_is_changed() {
        let mut read_only = area(2, 1, 2);
        read_only.permissions.write = false;
        let old = [area(1, 1, 1), area(2, 1, 2), area(3, 1, 3), area(8, 4, 8)];
        let none = Vec::<Area>::new;
        let rows = [
            ("the same", old.to_vec(), vec![], none()),
            ("nothing", vec![], vec![pages(1, 3), pages(8, 11)], vec![]),
            ("one less", vec![old[0], old[2], old[3]], vec![pages(2, 2)], vec![]),
            (
                "one elsewhere",
                vec![old[0], area(2, 1, 7), old[2], old[3]],
                vec![pages(2, 2)],
                vec![area(2, 1, 7)],
            ),
            ("one read-only", vec![old[0], read_only, old[2], old[3]], vec![pages(2, 2)], vec![read_only]),
            (
                "a large one in pieces",
                vec![old[0], old[1], old[2], area(8, 2, 8), area(10, 2, 10)],
                vec![pages(8, 11)],
                vec![area(8, 2, 8), area(10, 2, 10)],
            ),
            (
                "more around them",
                vec![area(0, 1, 0), old[0], old[1], old[2], area(5, 1, 5), old[3], area(12, 1, 0)],
                vec![],
                vec![area(0, 1, 0), area(5, 1, 5), area(12, 1, 0)],
            ),
        ];
        for (name, wanted, gone, new) in rows {
            let found = changes(&areas(&old), &IovaRange::ALL, wanted);
            assert_eq!((found.gone, found.new), (gone, new), "{name}");
        }
    }
}
