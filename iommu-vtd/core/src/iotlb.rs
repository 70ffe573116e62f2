//! The private translation cache of one port.
//!
//! Set-associative over three block sizes (4 KiB, 2 MiB, 1 GiB). Larger or odd-sized blocks are
//! kept as the next smaller of these. It knows nothing of locks or memory: [`crate::port`] wraps it.

use crate::invalidation::{DeviceTlbInvalidation, Invalidation, Scope};
use crate::request::{Access, Permissions, Tag, Translation};
use crate::types::{DomainId, Gpa, Iova, IovaRange, Pasid};

const WAYS: usize = 4;
const SETS: usize = 256;
/// Logarithms of the block sizes kept.
const CLASSES: [u32; 3] = [12, 21, 30];
/// An invalidation of more blocks than this looks at every entry instead of looking for each block.
const MOST_PROBES: u64 = 64;
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
    /// Under which keys there are entries.
    keys: Keys,
    /// Live entries that went through a first stage.
    through_first: u32,
    hits: u64,
    misses: u64,
}

impl Default for Iotlb {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            live: [0; CLASSES.len()],
            recent: 0,
            victim: 0,
            keys: Keys::default(),
            through_first: 0,
            hits: 0,
            misses: 0,
        }
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
            self.hits += 1;
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
            for (way, entry) in self.entries[first..first + WAYS].iter().enumerate() {
                if usize::from(entry.class) == class
                    && let Some(hit) = try_entry(entry, key, iova, access)
                {
                    self.recent = first + way;
                    self.hits += 1;
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
        self.through_first += u32::from(translation.tag.stage.through_first());
        self.keys.add(key);
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
            self.through_first -= u32::from(entry.tag.stage.through_first());
            *entry = Entry::NOTHING;
        }
    }

    /// Drops what an invalidation hits.
    pub fn invalidate(&mut self, invalidation: &Invalidation) {
        let hit = |entry: &Entry| invalidation.hits(&entry.tag, &entry.range());
        match invalidation.scope {
            // The name of a request without PASID is that of the PASID that stands for it.
            Scope::PasidRange { pasid, range, .. } => {
                self.drop_range(&range, Keys::of(&[pasid.get(), NO_PASID]), hit);
            }
            // Of what went through a first stage all goes, whatever its address.
            Scope::DomainRange { range, .. } if self.through_first == 0 => {
                self.drop_range(&range, self.keys, hit);
            }
            Scope::All | Scope::Domain(_) | Scope::DomainRange { .. } | Scope::Pasid { .. } => {
                self.drop_where(hit);
            }
        }
    }

    /// Drops what a device-TLB invalidation hits.
    pub fn invalidate_device_tlb(&mut self, invalidation: &DeviceTlbInvalidation) {
        let keys = if invalidation.all_pasids { self.keys } else { Keys::of(&[key_of(invalidation.pasid)]) };
        self.drop_range(&invalidation.range, keys, |entry| invalidation.hits(entry.pasid(), &entry.range()));
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
            self.drop_if(index, &hit);
        }
        if self.is_empty() {
            self.keys = Keys::default();
        }
    }

    /// The same where nothing is hit but under `keys` and in `range`: looks where such entries would be, if that is
    /// less work.
    fn drop_range(&mut self, range: &IovaRange, keys: Keys, hit: impl Fn(&Entry) -> bool) {
        let blocks = |bits: u32| (range.start() >> bits, range.last() >> bits);
        let (first, last) = blocks(CLASSES[0]);
        let Some(keys) = keys.few().filter(|_| last - first < MOST_PROBES) else {
            return self.drop_where(hit);
        };
        for (class, bits) in CLASSES.into_iter().enumerate() {
            if self.live[class] == 0 {
                continue;
            }
            let (first, last) = blocks(bits);
            for (block, key) in (first..=last).flat_map(|block| keys.iter().map(move |key| (block, *key))) {
                let set = set_of(key, block) * WAYS;
                (set..set + WAYS).for_each(|index| self.drop_if(index, &hit));
            }
        }
    }

    #[inline]
    fn drop_if(&mut self, index: usize, hit: impl Fn(&Entry) -> bool) {
        if self.entries[index].key != EMPTY && hit(&self.entries[index]) {
            self.clear(index);
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

    /// Look-ups that found something, since creation.
    #[must_use]
    pub fn hits(&self) -> u64 {
        self.hits
    }
}

/// Keys, as long as they are few.
#[derive(Clone, Copy, Default)]
struct Keys {
    list: [u32; Self::MOST],
    count: usize,
}

impl Keys {
    const MOST: usize = 4;

    fn of(keys: &[u32]) -> Self {
        let mut all = Self::default();
        keys.iter().for_each(|key| all.add(*key));
        all
    }

    #[inline]
    fn add(&mut self, key: u32) {
        if self.few().is_none_or(|keys| keys.contains(&key)) {
            return;
        }
        if let Some(free) = self.list.get_mut(self.count) {
            *free = key;
        }
        self.count += 1;
    }

    /// `None`: there are more than are remembered.
    #[inline]
    fn few(&self) -> Option<&[u32]> {
        self.list.get(..self.count)
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
