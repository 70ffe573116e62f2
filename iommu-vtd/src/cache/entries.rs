//! Context-cache and PASID-cache (§6.2.2, §6.2.3).
//!
//! | cache | found by | dropped by |
//! | --- | --- | --- |
//! | context-cache, legacy | source-id | source-id, domain |
//! | context-cache, scalable | source-id | source-id |
//! | PASID-cache | source-id, PASID | domain, PASID |

use iommu_core::{Pasid, SourceId};

use super::packed::{NameWord, pack, unpack};
use super::table::{Key, Table};
use crate::invalidation::{ContextScope, PasidScope};
use crate::tables::{ContextEntry, LegacyEntry, PasidEntry};

/// Sets of the context-cache: 256 functions.
const CONTEXT_SET_BITS: u32 = 6;
/// Sets of the PASID-cache: 1024 entries.
const PASID_SET_BITS: u32 = 8;

/// Bits of a key's first word: that it is one, and that the context entry is a legacy one.
const PRESENT: u64 = 1 << 63;
const LEGACY: u64 = 1 << 62;

/// Context-cache and PASID-cache.
pub(super) struct Entries {
    contexts: Table<3>,
    pasids: Table<3>,
}

impl Entries {
    pub(super) fn new() -> Self {
        Self { contexts: Table::new(CONTEXT_SET_BITS), pasids: Table::new(PASID_SET_BITS) }
    }

    #[inline]
    pub(super) fn context(&self, source: SourceId) -> Option<ContextEntry> {
        let [low, high, _] = self.contexts.get(context_key(source, 0))?;
        Some(ContextEntry::from_words([low, high]))
    }

    #[inline]
    pub(super) fn legacy_context(&self, source: SourceId) -> Option<LegacyEntry> {
        let words = self.contexts.get(context_key(source, LEGACY))?;
        Some(LegacyEntry { binding: unpack(words), device_tlb: name(&words).device_tlb() })
    }

    #[inline]
    pub(super) fn pasid(&self, source: SourceId, pasid: Pasid) -> Option<PasidEntry> {
        self.pasids.get(pasid_key(source, pasid)).map(unpack)
    }

    #[cold]
    pub(super) fn keep_context(&self, source: SourceId, entry: &ContextEntry, current: impl Fn() -> bool) {
        let [low, high] = entry.to_words();
        self.contexts.put(context_key(source, 0), &[low, high, 0], current);
    }

    #[cold]
    pub(super) fn keep_legacy_context(
        &self,
        source: SourceId,
        entry: &LegacyEntry,
        current: impl Fn() -> bool,
    ) {
        let mut words = pack(&entry.binding);
        words[2] = name(&words).with_device_tlb(entry.device_tlb).raw_value();
        self.contexts.put(context_key(source, LEGACY), &words, current);
    }

    #[cold]
    pub(super) fn keep_pasid(
        &self,
        source: SourceId,
        pasid: Pasid,
        entry: &PasidEntry,
        current: impl Fn() -> bool,
    ) {
        self.pasids.put(pasid_key(source, pasid), &pack(entry), current);
    }

    pub(super) fn invalidate_contexts(&self, scope: &ContextScope) {
        match *scope {
            ContextScope::Source { source, mask: 0 } => {
                self.contexts.drop_key(context_key(source, 0));
                self.contexts.drop_key(context_key(source, LEGACY));
            }
            ContextScope::All | ContextScope::Domain(_) | ContextScope::Source { .. } => {
                self.contexts.drop_where(|key, words| {
                    let domain = (key[0] & LEGACY != 0).then(|| name(words).domain_id());
                    scope.hits(source_of(key), domain)
                });
            }
        }
    }

    pub(super) fn invalidate_pasids(&self, scope: &PasidScope) {
        self.pasids.drop_where(|key, words| scope.hits(name(words).domain_id(), pasid_of(key)));
    }

    pub(super) fn drop_all(&self) {
        self.invalidate_contexts(&ContextScope::All);
        self.invalidate_pasids(&PasidScope::All);
    }
}

#[inline]
fn context_key(source: SourceId, mode: u64) -> Key {
    [PRESENT | mode | u64::from(source.0), 0]
}

#[inline]
fn pasid_key(source: SourceId, pasid: Pasid) -> Key {
    [PRESENT | u64::from(source.0), u64::from(pasid.get())]
}

fn name(words: &[u64; 3]) -> NameWord {
    NameWord::new_with_raw_value(words[2])
}

fn source_of(key: Key) -> SourceId {
    let bytes = key[0].to_le_bytes();
    SourceId(u16::from_le_bytes([bytes[0], bytes[1]]))
}

fn pasid_of(key: Key) -> Pasid {
    let bytes = key[1].to_le_bytes();
    Pasid::truncate(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}
