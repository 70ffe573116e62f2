//! The private translation cache of one port.
//!
//! Set-associative over three block sizes (4 KiB, 2 MiB, 1 GiB). Larger or odd-sized blocks are
//! kept as the next smaller of these. It knows nothing of locks or memory: [`crate::port`] wraps it.

use crate::invalidation::{DeviceTlbInvalidation, Invalidation};
use crate::request::{Access, Permissions, Tag, Translation};
use crate::types::{DomainId, Gpa, Iova, IovaRange, Pasid};

const WAYS: usize = 4;
const SETS: usize = 256;
/// Logarithms of the block sizes kept.
const CLASSES: [u32; 3] = [12, 21, 30];
/// Key of requests without PASID; no 20-bit PASID equals it.
const NO_PASID: u32 = u32::MAX;
/// Key of an entry that holds nothing.
const EMPTY: u32 = u32::MAX - 1;

#[derive(Clone, Copy)]
struct Entry {
    /// Input block number: address divided by the block size.
    block: u64,
    /// Output block address.
    base: u64,
    /// PASID, [`NO_PASID`] or [`EMPTY`].
    key: u32,
    class: u8,
    permissions: Permissions,
    tag: Tag,
}

impl Entry {
    const NOTHING: Self = Self {
        block: 0,
        base: 0,
        key: EMPTY,
        class: 0,
        permissions: Permissions::NONE,
        tag: Tag { domain: DomainId(0), pasid: Pasid::ZERO, stage: crate::StageTag::Second },
    };

    fn range(&self) -> IovaRange {
        let bits = CLASSES[usize::from(self.class)];
        IovaRange::aligned(self.block << bits, bits)
    }

    fn pasid(&self) -> Option<Pasid> {
        (self.key != NO_PASID).then(|| Pasid::truncate(self.key))
    }
}

/// A hit: where the address lies, and how many bytes from there on share the translation (at least 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Output address.
    pub gpa: Gpa,
    /// Contiguous bytes.
    pub contiguous: u64,
}

/// The cache.
pub struct Iotlb {
    /// Allocated at the first insertion: a port that never issues DMA costs nothing.
    entries: Vec<Entry>,
    /// Live entries of each class, so that sizes nobody uses cost no probe.
    live: [u32; CLASSES.len()],
    /// The entry of the last hit.
    recent: usize,
    /// Next way to replace.
    victim: usize,
    misses: u64,
}

impl Default for Iotlb {
    fn default() -> Self {
        Self { entries: Vec::new(), live: [0; CLASSES.len()], recent: 0, victim: 0, misses: 0 }
    }
}

impl Iotlb {
    /// Most translations it holds.
    pub const CAPACITY: usize = WAYS * SETS;

    /// Looks an access up. `None`: not cached, or cached with fewer permissions.
    #[inline]
    pub fn lookup(&mut self, pasid: Option<Pasid>, iova: Iova, access: Access) -> Option<Hit> {
        let key = key_of(pasid);
        if let Some(entry) = self.entries.get(self.recent)
            && let Some(hit) = try_entry(entry, key, iova, access)
        {
            return Some(hit);
        }
        self.probe(key, iova, access)
    }

    fn probe(&mut self, key: u32, iova: Iova, access: Access) -> Option<Hit> {
        for (class, &bits) in CLASSES.iter().enumerate() {
            if self.live[class] == 0 {
                continue;
            }
            let first = set_of(key, iova.0 >> bits) * WAYS;
            for index in first..first + WAYS {
                let entry = &self.entries[index];
                if usize::from(entry.class) == class
                    && let Some(hit) = try_entry(entry, key, iova, access)
                {
                    self.recent = index;
                    return Some(hit);
                }
            }
        }
        self.misses += 1;
        None
    }

    /// Keeps a translation, replacing an older one of the same block. Empty and untranslated-only ones are
    /// not kept.
    pub fn insert(&mut self, pasid: Option<Pasid>, translation: &Translation) {
        if translation.permissions == Permissions::NONE || translation.untranslated_only {
            return;
        }
        let Some(class) = CLASSES.iter().rposition(|&bits| bits <= translation.page_bits) else { return };
        if self.entries.is_empty() {
            self.entries = vec![Entry::NOTHING; Self::CAPACITY];
        }
        let bits = CLASSES[class];
        let key = key_of(pasid);
        let block = translation.iova.0 >> bits;
        let index = self.slot(key, class, block);
        self.clear(index);
        self.live[class] += 1;
        self.recent = index;
        self.entries[index] = Entry {
            block,
            base: translation.gpa(Iova(block << bits)).0,
            key,
            // Lossless: fewer than 256 classes.
            class: u8::try_from(class).unwrap_or_default(),
            permissions: translation.permissions,
            tag: translation.tag,
        };
    }

    /// The way that holds this block, else an empty one, else the next victim.
    fn slot(&mut self, key: u32, class: usize, block: u64) -> usize {
        let first = set_of(key, block) * WAYS;
        let ways = &self.entries[first..first + WAYS];
        let same = |e: &Entry| e.key == key && usize::from(e.class) == class && e.block == block;
        if let Some(way) = ways.iter().position(same).or_else(|| ways.iter().position(|e| e.key == EMPTY)) {
            return first + way;
        }
        self.victim = (self.victim + 1) % WAYS;
        first + self.victim
    }

    fn clear(&mut self, index: usize) {
        let entry = &mut self.entries[index];
        if entry.key != EMPTY {
            self.live[usize::from(entry.class)] -= 1;
            *entry = Entry::NOTHING;
        }
    }

    /// Drops what an invalidation hits.
    pub fn invalidate(&mut self, invalidation: &Invalidation) {
        self.drop_where(|entry| invalidation.hits(&entry.tag, &entry.range()));
    }

    /// Drops what a device-TLB invalidation hits.
    pub fn invalidate_device_tlb(&mut self, invalidation: &DeviceTlbInvalidation) {
        self.drop_where(|entry| invalidation.hits(entry.pasid(), &entry.range()));
    }

    /// Drops everything.
    pub fn clear_all(&mut self) {
        self.drop_where(|_| true);
    }

    fn drop_where(&mut self, hit: impl Fn(&Entry) -> bool) {
        if self.is_empty() {
            return;
        }
        for index in 0..self.entries.len() {
            if self.entries[index].key != EMPTY && hit(&self.entries[index]) {
                self.clear(index);
            }
        }
    }

    /// Whether nothing is cached.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.live.iter().all(|&n| n == 0)
    }

    /// Number of cached translations.
    #[must_use]
    pub fn len(&self) -> usize {
        self.live.iter().map(|&n| n as usize).sum()
    }

    /// Look-ups that found nothing, since creation.
    #[must_use]
    pub fn misses(&self) -> u64 {
        self.misses
    }
}

#[inline]
fn key_of(pasid: Option<Pasid>) -> u32 {
    pasid.map_or(NO_PASID, Pasid::get)
}

#[inline]
fn set_of(key: u32, block: u64) -> usize {
    let mixed = block ^ (block >> 8) ^ u64::from(key).wrapping_mul(0x9e37_79b9);
    // Lossless: masked to the number of sets.
    usize::try_from(mixed % SETS as u64).unwrap_or_default()
}

#[inline]
fn try_entry(entry: &Entry, key: u32, iova: Iova, access: Access) -> Option<Hit> {
    let bits = CLASSES[usize::from(entry.class)];
    if entry.key != key || entry.block != iova.0 >> bits || !entry.permissions.allow(access) {
        return None;
    }
    let offset = iova.0 & ((1 << bits) - 1);
    Some(Hit { gpa: Gpa(entry.base | offset), contiguous: (1 << bits) - offset })
}

#[cfg(test)]
mod tests;
