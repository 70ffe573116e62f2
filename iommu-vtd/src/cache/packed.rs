//! Entries as words, for tables of atomics. A format of this crate's own, not the manual's.
#![allow(unreachable_pub, reason = "what bitfield makes is public")]

use arbitrary_int::traits::Integer;
use arbitrary_int::{u2, u3, u6, u20, u52};
use bitbybit::bitfield;
use iommu_core::{DomainId, Gpa, Pasid, StageTag, Tag};

use crate::tables::{PasidEntry, Stage};
use crate::walk::first::FirstStageTable;
use crate::walk::second::SecondStageTable;

/// What is said of a first-stage table.
#[bitfield(u64, default = 0, forbid_overlaps)]
struct FirstWord {
    #[bits(12..=63, rw)]
    root: u52,
    #[bits(8..=10, rw)]
    levels: u3,
    #[bit(2, rw)]
    snooped: bool,
    #[bit(1, rw)]
    extended_accessed: bool,
    #[bit(0, rw)]
    write_protect: bool,
}

/// What is said of a second-stage table.
#[bitfield(u64, default = 0, forbid_overlaps)]
struct SecondWord {
    #[bits(12..=63, rw)]
    root: u52,
    #[bits(8..=10, rw)]
    levels: u3,
    #[bit(7, rw)]
    snooped: bool,
    #[bit(6, rw)]
    accessed_dirty: bool,
    #[bits(0..=5, rw)]
    limit_bits: u6,
}

/// All else.
#[bitfield(u64, default = 0, forbid_overlaps)]
pub(super) struct NameWord {
    /// A legacy entry that serves device-TLBs.
    #[bit(40, rw)]
    pub(super) device_tlb: bool,
    #[bit(39, rw)]
    supervisor: bool,
    #[bit(38, rw)]
    silent: bool,
    /// 0 pass-through, 1 first, 2 second, 3 nested.
    #[bits(36..=37, rw)]
    stage: u2,
    #[bits(16..=35, rw)]
    pasid: u20,
    #[bits(0..=15, rw)]
    domain: u16,
}

impl NameWord {
    pub(super) fn domain_id(self) -> DomainId {
        DomainId(self.domain().into())
    }
}

/// An entry as three words; the last is a [`NameWord`].
pub(super) fn pack(entry: &PasidEntry) -> [u64; 3] {
    let (stage, first, second) = match &entry.stage {
        Stage::PassThrough => (0, 0, 0),
        Stage::First(table) => (1, pack_first(table), 0),
        Stage::Second(table) => (2, 0, pack_second(table)),
        Stage::Nested(inner, outer) => (3, pack_first(inner), pack_second(outer)),
    };
    let name = NameWord::DEFAULT
        .with_domain(u16::try_from(entry.tag.domain.0).unwrap_or_default())
        .with_pasid(u20::new(entry.tag.pasid.get()))
        .with_stage(u2::new(stage))
        .with_silent(entry.silent)
        .with_supervisor(entry.supervisor);
    [first, second, name.raw_value()]
}

/// The entry that was packed.
#[inline]
pub(super) fn unpack(words: [u64; 3]) -> PasidEntry {
    let [first, second, name] = words;
    let name = NameWord::new_with_raw_value(name);
    let tag = Tag {
        domain: name.domain_id(),
        pasid: Pasid::truncate(name.pasid().value()),
        stage: match name.stage().value() {
            1 => StageTag::First,
            2 => StageTag::Second,
            3 => StageTag::Nested,
            _ => StageTag::PassThrough,
        },
    };
    let stage = match tag.stage {
        StageTag::PassThrough => Stage::PassThrough,
        StageTag::First => Stage::First(unpack_first(first, tag)),
        StageTag::Second => Stage::Second(unpack_second(second, tag.domain)),
        StageTag::Nested => Stage::Nested(unpack_first(first, tag), unpack_second(second, tag.domain)),
    };
    PasidEntry { stage, tag, silent: name.silent(), supervisor: name.supervisor() }
}

fn pack_first(table: &FirstStageTable) -> u64 {
    FirstWord::DEFAULT
        .with_root(u52::new(table.root.0 >> 12))
        .with_levels(u3::masked_new(table.levels))
        .with_snooped(table.snooped)
        .with_extended_accessed(table.extended_accessed)
        .with_write_protect(table.write_protect)
        .raw_value()
}

#[inline]
fn unpack_first(word: u64, tag: Tag) -> FirstStageTable {
    let word = FirstWord::new_with_raw_value(word);
    FirstStageTable {
        root: Gpa(word.root().value() << 12),
        levels: word.levels().value().into(),
        write_protect: word.write_protect(),
        extended_accessed: word.extended_accessed(),
        snooped: word.snooped(),
        tag,
    }
}

fn pack_second(table: &SecondStageTable) -> u64 {
    SecondWord::DEFAULT
        .with_root(u52::new(table.root.0 >> 12))
        .with_levels(u3::masked_new(table.levels))
        .with_snooped(table.snooped)
        .with_accessed_dirty(table.accessed_dirty)
        .with_limit_bits(u6::masked_new(table.limit_bits))
        .raw_value()
}

#[inline]
fn unpack_second(word: u64, domain: DomainId) -> SecondStageTable {
    let word = SecondWord::new_with_raw_value(word);
    SecondStageTable {
        root: Gpa(word.root().value() << 12),
        levels: word.levels().value().into(),
        limit_bits: word.limit_bits().value().into(),
        accessed_dirty: word.accessed_dirty(),
        snooped: word.snooped(),
        domain,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_packed_comes_back(
            roots in any::<[u64; 2]>(),
            flags in any::<[bool; 7]>(),
            (levels, limit_bits, stage) in (3_u32..6, 39_u32..58, 0_u8..4),
            (domain, pasid) in (any::<u16>(), any::<u32>()),
        ) {
            let [write_protect, extended_accessed, snooped, accessed_dirty, second_snooped, silent, supervisor] = flags;
            let used = [StageTag::PassThrough, StageTag::First, StageTag::Second, StageTag::Nested][usize::from(stage)];
            let tag = Tag { domain: DomainId(domain.into()), pasid: Pasid::truncate(pasid), stage: used };
            let root = |index: usize| Gpa(roots[index] & !0xfff);
            let first = FirstStageTable { root: root(0), levels, write_protect, extended_accessed, snooped, tag };
            let second = SecondStageTable {
                root: root(1), levels, limit_bits, accessed_dirty, snooped: second_snooped, domain: tag.domain,
            };
            let stage = match used {
                StageTag::PassThrough => Stage::PassThrough,
                StageTag::First => Stage::First(first),
                StageTag::Second => Stage::Second(second),
                StageTag::Nested => Stage::Nested(first, second),
            };
            let entry = PasidEntry { stage, tag, silent, supervisor };
            prop_assert_eq!(unpack(pack(&entry)), entry);
        }
    }
}
