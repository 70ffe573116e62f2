//! What an invalidation hits.

use crate::request::Tag;
use crate::types::{DomainId, IovaRange, Pasid, SourceId};
use crate::vendor::VendorData;

/// Which translations an [`Invalidation`] drops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All of them.
    All,
    /// All of a domain.
    Domain(DomainId),
    /// A range of second-stage input addresses of a domain. What went through a first stage cannot be told
    /// apart by such an address, so of first-stage and nested translations all of the domain's are hit.
    DomainRange {
        /// Domain.
        domain: DomainId,
        /// Input addresses.
        range: IovaRange,
    },
    /// All of one PASID in a domain, whatever the stages.
    Pasid {
        /// Domain.
        domain: DomainId,
        /// PASID.
        pasid: Pasid,
    },
    /// A range of one PASID's virtual addresses; only first-stage and nested translations have such.
    PasidRange {
        /// Domain.
        domain: DomainId,
        /// PASID.
        pasid: Pasid,
        /// Virtual addresses.
        range: IovaRange,
    },
}

/// An invalidation of cached translations: the generic part, and room for the vendor's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalidation {
    /// What is dropped.
    pub scope: Scope,
    /// Only leaf entries changed: caches of table entries above the leaf may stay.
    pub leaf_only: bool,
    /// What only the vendor's own host backend understands.
    pub vendor: VendorData,
}

impl Invalidation {
    /// Everything.
    pub const ALL: Self = Self { scope: Scope::All, leaf_only: false, vendor: VendorData::NONE };

    /// An invalidation of leaf and table entries without vendor data.
    #[must_use]
    pub const fn new(scope: Scope) -> Self {
        Self { scope, leaf_only: false, vendor: VendorData::NONE }
    }

    /// Whether a cached translation of the block `range` under `tag` must go.
    #[must_use]
    pub fn hits(&self, tag: &Tag, range: &IovaRange) -> bool {
        let through_first = tag.stage.through_first();
        match self.scope {
            Scope::All => true,
            Scope::Domain(domain) => tag.domain == domain,
            Scope::DomainRange { domain, range: hit } => {
                tag.domain == domain && (through_first || hit.overlaps(range))
            }
            Scope::Pasid { domain, pasid } => tag.domain == domain && tag.pasid == pasid,
            Scope::PasidRange { domain, pasid, range: hit } => {
                tag.domain == domain && tag.pasid == pasid && through_first && hit.overlaps(range)
            }
        }
    }
}

/// An invalidation of what a device itself caches (its device-TLB, or ATC).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceTlbInvalidation {
    /// The function.
    pub source: SourceId,
    /// Translations of this PASID; `None`: of requests without PASID.
    pub pasid: Option<Pasid>,
    /// Of all PASIDs. `pasid` is then ignored.
    pub all_pasids: bool,
    /// Untranslated addresses.
    pub range: IovaRange,
}

impl DeviceTlbInvalidation {
    /// Whether a cached translation of the block `range`, obtained with `pasid`, must go.
    #[must_use]
    pub fn hits(&self, pasid: Option<Pasid>, range: &IovaRange) -> bool {
        let pasid_matches = if self.all_pasids { pasid.is_some() } else { self.pasid == pasid };
        pasid_matches && self.range.overlaps(range)
    }
}

/// How a device-TLB invalidation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "what has timed out is still cached"]
pub enum DeviceTlbCompletion {
    /// Nothing that was hit is cached or in use.
    Complete,
    /// The function did not let go in time: some of it may still be cached or in use. The model tells the
    /// guest, and asks again when the guest wants it to.
    TimedOut,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::StageTag;

    const PAGE: IovaRange = IovaRange::aligned(0x5000, 12);
    const OTHER: IovaRange = IovaRange::aligned(0x9000, 12);

    fn tag(stage: StageTag) -> Tag {
        Tag { domain: DomainId(3), pasid: Pasid::truncate(7), stage }
    }

    /// The effect matrix: (name, scope, hits on first, second, nested, pass-through).
    #[test]
    fn scope_hits_what_the_matrix_says() {
        let domain = DomainId(3);
        let pasid = Pasid::truncate(7);
        let rows = [
            ("all", Scope::All, [true; 4]),
            ("domain", Scope::Domain(domain), [true; 4]),
            ("other domain", Scope::Domain(DomainId(4)), [false; 4]),
            ("domain page", Scope::DomainRange { domain, range: PAGE }, [true; 4]),
            ("domain other page", Scope::DomainRange { domain, range: OTHER }, [true, false, true, false]),
            ("pasid", Scope::Pasid { domain, pasid }, [true; 4]),
            ("other pasid", Scope::Pasid { domain, pasid: Pasid::ZERO }, [false; 4]),
            ("pasid page", Scope::PasidRange { domain, pasid, range: PAGE }, [true, false, true, false]),
            ("pasid other page", Scope::PasidRange { domain, pasid, range: OTHER }, [false; 4]),
        ];
        let stages = [StageTag::First, StageTag::Second, StageTag::Nested, StageTag::PassThrough];
        for (name, scope, expected) in rows {
            let found = stages.map(|stage| Invalidation::new(scope).hits(&tag(stage), &PAGE));
            assert_eq!(found, expected, "{name}");
        }
    }

    #[test]
    fn device_tlb_invalidation_keeps_pasids_apart() {
        let mut inv = DeviceTlbInvalidation {
            source: SourceId(8),
            pasid: None,
            all_pasids: false,
            range: IovaRange::ALL,
        };
        assert!(inv.hits(None, &PAGE));
        assert!(!inv.hits(Some(Pasid::ZERO), &PAGE), "no PASID is not PASID 0");
        inv.pasid = Some(Pasid::truncate(7));
        assert!(!inv.hits(None, &PAGE) && !inv.hits(Some(Pasid::ZERO), &PAGE));
        inv.all_pasids = true;
        assert!(inv.hits(Some(Pasid::ZERO), &PAGE) && !inv.hits(None, &PAGE));
        inv.range = OTHER;
        assert!(!inv.hits(Some(Pasid::ZERO), &PAGE));
    }
}
