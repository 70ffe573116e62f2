//! Paging-structure caches (§6.2.4): tables on the way to a page, of both stages.
//!
//! | cache | found by | dropped by |
//! | --- | --- | --- |
//! | first stage, also when nested | domain, PASID, address | domain, PASID, address |
//! | second stage, also under a first | domain, address | domain, address |
//!
//! A nested first-stage table is kept by its address in the second stage's input. So it would outlive a change of
//! the second stage, but the manual has such a change drop it, and that is done.
#![allow(unreachable_pub, reason = "what bitfield makes is public")]

use arbitrary_int::traits::Integer;
use arbitrary_int::{u3, u20};
use bitbybit::bitfield;
use iommu_core::sync::atomic::{AtomicU64, Ordering};
use iommu_core::{DomainId, Gpa, Invalidation, IovaRange, Pasid, Scope, StageTag, Tag};

use super::table::{Key, Table};
use crate::spec::paging::{self, LEVELS};
use crate::walk::Start;

/// Sets of each cache: 1024 tables of four ways, which is page tables for 2 GiB.
const SET_BITS: u32 = 8;
/// An invalidation of more blocks than this looks at every entry instead of looking for each block.
const MOST_PROBES: u64 = 32;
/// Levels of tables that are kept: all but the root table of the deepest tree.
const KEPT: std::ops::Range<u32> = 1..LEVELS_U32;
#[expect(clippy::cast_possible_truncation, reason = "it is five")]
const LEVELS_U32: u32 = LEVELS as u32;

/// Address bits of a value; the others hold what all entries on the way have in common.
const TABLE: u64 = 0x000f_ffff_ffff_f000;

/// The first word of a key.
#[bitfield(u64, default = 0, forbid_overlaps)]
struct Name {
    #[bit(63, rw)]
    present: bool,
    #[bit(62, rw)]
    nested: bool,
    #[bits(56..=58, rw)]
    level: u3,
    #[bits(32..=47, rw)]
    domain: u16,
    #[bits(0..=19, rw)]
    pasid: u20,
}

impl Name {
    #[inline]
    fn first(tag: &Tag) -> Self {
        Self::second(tag.domain)
            .with_nested(tag.stage == StageTag::Nested)
            .with_pasid(u20::new(tag.pasid.get()))
    }

    /// A domain-id has 16 bits.
    #[inline]
    fn second(domain: DomainId) -> Self {
        let [low, high, ..] = domain.0.to_le_bytes();
        Self::DEFAULT.with_present(true).with_domain(u16::from_le_bytes([low, high]))
    }

    fn of(key: Key) -> Self {
        Self::new_with_raw_value(key[0])
    }

    /// The key of the table of `level` on the way to `address`.
    #[inline]
    fn key(self, level: u32, address: u64) -> Key {
        [self.with_level(u3::masked_new(level)).raw_value(), address >> block_bits(level)]
    }

    fn is_of_domain(self, domain: DomainId) -> bool {
        u32::from(self.domain()) == domain.0
    }

    fn is_of(self, domain: DomainId, pasid: Pasid) -> bool {
        self.is_of_domain(domain) && self.pasid().value() == pasid.get()
    }
}

/// Logarithm of the bytes that a table of `level` translates.
#[inline]
const fn block_bits(level: u32) -> u32 {
    paging::page_bits(level + 1)
}

/// The addresses that lie below the table of a key.
fn range_of(key: Key) -> IovaRange {
    let bits = block_bits(Name::of(key).level().value().into());
    IovaRange::aligned(key[1] << bits, bits)
}

/// A paging-structure cache.
struct Structures {
    table: Table<1>,
    /// One bit for each remainder of domain-ids by 64: whether a table of such a domain was kept since all were
    /// dropped. Most invalidations of a domain concern one stage and need not go through the tables of the other.
    ///
    /// The bit is set before a slot is locked, and looked at after invalidations have been counted up; so the
    /// argument of [`crate::cache`] holds for it as for the slot.
    domains: AtomicU64,
}

const fn bit_of(domain: DomainId) -> u64 {
    1 << (domain.0 % 64)
}

impl Structures {
    fn new() -> Self {
        Self { table: Table::new(SET_BITS), domains: AtomicU64::new(0) }
    }

    /// The lowest table that is known.
    #[inline]
    fn find(&self, name: Name, address: u64) -> Option<Start> {
        for level in KEPT {
            if let Some([word]) = self.table.get(name.key(level, address)) {
                return Some(Start { level, table: Gpa(word & TABLE), all: word & !TABLE });
            }
        }
        None
    }

    fn keep(&self, name: Name, address: u64, table: Start, current: impl Fn() -> bool) {
        let bit = bit_of(DomainId(name.domain().into()));
        if self.domains.load(Ordering::SeqCst) & bit == 0 {
            self.domains.fetch_or(bit, Ordering::SeqCst);
        }
        let word = table.table.0 & TABLE | table.all & !TABLE;
        self.table.put(name.key(table.level, address), &[word], current);
    }

    fn drop_all(&self) {
        self.domains.store(0, Ordering::SeqCst);
        self.table.drop_where(|_, _| true);
    }

    /// Drops tables of a domain: all that are `hit`.
    fn drop_of(&self, domain: DomainId, hit: impl Fn(Name) -> bool) {
        if self.domains.load(Ordering::SeqCst) & bit_of(domain) != 0 {
            self.table.drop_where(|key, _| Name::of(key).is_of_domain(domain) && hit(Name::of(key)));
        }
    }

    /// Drops the tables of these names on the way to an address of `range`. `hit`: whether a name is one of these.
    fn drop_range(&self, names: &[Name], range: &IovaRange, hit: impl Fn(Name) -> bool) {
        let block = |address, level| address >> block_bits(level);
        if block(range.last(), 1) - block(range.start(), 1) >= MOST_PROBES {
            return self.table.drop_where(|key, _| hit(Name::of(key)) && range_of(key).overlaps(range));
        }
        for level in KEPT {
            for number in block(range.start(), level)..=block(range.last(), level) {
                for name in names {
                    self.table.drop_key(name.key(level, number << block_bits(level)));
                }
            }
        }
    }
}

/// Those of both stages.
pub(super) struct PagingStructures {
    first: Structures,
    second: Structures,
}

impl PagingStructures {
    pub(super) fn new() -> Self {
        Self { first: Structures::new(), second: Structures::new() }
    }

    #[inline]
    pub(super) fn first(&self, tag: &Tag, address: u64) -> Option<Start> {
        self.first.find(Name::first(tag), address)
    }

    #[inline]
    pub(super) fn second(&self, domain: DomainId, address: u64) -> Option<Start> {
        self.second.find(Name::second(domain), address)
    }

    #[cold]
    pub(super) fn keep_first(&self, tag: &Tag, address: u64, table: Start, current: impl Fn() -> bool) {
        self.first.keep(Name::first(tag), address, table, current);
    }

    #[cold]
    pub(super) fn keep_second(
        &self,
        domain: DomainId,
        address: u64,
        table: Start,
        current: impl Fn() -> bool,
    ) {
        self.second.keep(Name::second(domain), address, table, current);
    }

    /// Drops what an invalidation of translations hits of tables (§6.5.2, effect on paging-structure caches).
    ///
    /// With the hint that only leaf entries changed, tables stay that are found by the very addresses that it
    /// names. First-stage tables of a domain that a second-stage invalidation hits go all the same: they cannot be
    /// told by such an address, and for them a leaf of the second stage may be a way to a table.
    pub(super) fn invalidate(&self, invalidation: &Invalidation) {
        let leaf_only = invalidation.leaf_only;
        match invalidation.scope {
            Scope::All => {
                self.first.drop_all();
                self.second.drop_all();
            }
            Scope::Domain(domain) => {
                self.first.drop_of(domain, |_| true);
                self.second.drop_of(domain, |_| true);
            }
            Scope::DomainRange { domain, range } => {
                self.first.drop_of(domain, |_| true);
                if !leaf_only {
                    let names = [Name::second(domain)];
                    self.second.drop_range(&names, &range, |name| name.is_of_domain(domain));
                }
            }
            Scope::Pasid { domain, pasid } => self.first.drop_of(domain, |name| name.is_of(domain, pasid)),
            Scope::PasidRange { domain, pasid, range } if !leaf_only => {
                let names = [StageTag::First, StageTag::Nested]
                    .map(|stage| Name::first(&Tag { domain, pasid, stage }));
                self.first.drop_range(&names, &range, |name| name.is_of(domain, pasid));
            }
            Scope::PasidRange { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests;
