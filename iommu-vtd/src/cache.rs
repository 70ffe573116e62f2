//! Chapter 6: what the unit remembers of its tables, and how it forgets (§6.2, §6.5).
//!
//! | what | where |
//! | --- | --- |
//! | context-cache, PASID-cache | [`entries`] |
//! | paging-structure caches of both stages | [`structures`] |
//! | IOTLB | the ports ([`iommu_core::Port`]) |
//!
//! Only what succeeded is kept: entries that are present and passed their checks, and tables on the way to a page
//! that allowed the request and whose accessed bits are set. With caching mode or without, nothing is remembered
//! of what was missing, so what a driver adds is seen at once. And a request that does not go ahead by what is
//! remembered is judged again by memory alone ([`translate_cached`](crate::translate::translate_cached)): the
//! caches can make an access succeed for longer than the tables say, until they are invalidated, but never fail.
//!
//! # Many threads
//!
//! Look-ups run on the threads of endpoints, invalidations on those of CPUs, all at the same time. A look-up that
//! hits writes nothing that others read, and none ever waits; the tables are made of sequence locks ([`table`]).
//!
//! # Why nothing stale survives an invalidation
//!
//! The danger is a look-up that reads an entry, is overtaken by the driver's change and the invalidation of it,
//! and then puts what it read into a cache. So invalidations are counted, once when they begin and once when they
//! have dropped what they hit ([`generation`]), and
//!
//! 1. a look-up notes the count before it reads anything: the root pointer, a cache, or memory;
//! 2. it puts something in only if the count was even then and is the same now, which it looks at while it holds
//!    the slot that it is going to fill;
//! 3. an invalidation goes through the slots after it has raised the count; what it finds locked it marks, and a
//!    marked slot is left empty by who holds it.
//!
//! Take an invalidation and a look-up that puts something in. Locking the slot, looking at the count, raising the
//! count and looking at the slot are all sequentially consistent. If the slot is locked before the invalidation
//! comes to it, the invalidation sees the lock and marks it, or sees what was put in and drops it. If it is locked
//! after that, the count has been raised before, and point 2 keeps the look-up from filling it, unless the
//! look-up began after the invalidation had ended. In that case it has read no cache that still held
//! what was dropped, and memory as it was when the driver asked for the invalidation, or newer. A look-up that
//! began *while* the invalidation was dropping may have read something on its way out, and derived something else
//! from it that the invalidation had passed already. That is what the odd numbers are for: it keeps nothing.
//!
//! What such look-ups return is the affair of those that asked. A port asks under its own lock and keeps the
//! answer under it, and the unit visits all ports *after* its own caches: the visit waits for the session, and then
//! drops what it has kept. A device-TLB is told by an invalidation of its own, which software sends after the one
//! of the IOTLB.
//!
//! Invalidations of different kinds follow each other, context before PASID before IOTLB. Between two of them
//! a look-up may find the new of the one and the old of the other; it is what hardware may do, and the last of them
//! ends it.

mod entries;
mod generation;
mod packed;
mod structures;
mod table;

use std::cell::Cell;

use iommu_core::{DomainId, Invalidation, Pasid, Scope, SourceId, Tag};

use self::entries::Entries;
use self::generation::{Generation, Ticket};
use self::structures::PagingStructures;
use crate::invalidation::{ContextScope, PasidScope};
use crate::tables::{ContextEntry, LegacyEntry, PasidEntry, TableCache};
use crate::walk::{Start, StructureCache};

/// The caches of a unit.
pub(crate) struct Caches {
    generation: Generation,
    entries: Entries,
    structures: PagingStructures,
}

impl Caches {
    pub(crate) fn new() -> Self {
        Self {
            generation: Generation::default(),
            entries: Entries::new(),
            structures: PagingStructures::new(),
        }
    }

    /// What one look-up sees of the caches. To be taken before anything is read that the look-up goes by.
    #[inline]
    pub(crate) fn view(&self) -> View<'_> {
        View { caches: self, ticket: self.generation.begin(), used: Cell::new(false) }
    }

    /// Drops context entries.
    pub(crate) fn invalidate_contexts(&self, scope: &ContextScope) {
        self.generation.invalidate(|| self.entries.invalidate_contexts(scope));
    }

    /// Drops PASID entries.
    pub(crate) fn invalidate_pasids(&self, scope: &PasidScope) {
        self.generation.invalidate(|| self.entries.invalidate_pasids(scope));
    }

    /// Drops what an invalidation of translations hits here: tables on the way to pages. Context and PASID entries
    /// stay, whatever its scope.
    pub(crate) fn invalidate_structures(&self, invalidation: &Invalidation) {
        self.generation.invalidate(|| self.structures.invalidate(invalidation));
    }

    /// Drops everything.
    pub(crate) fn clear(&self) {
        self.generation.invalidate(|| {
            self.entries.drop_all();
            self.structures.invalidate(&Invalidation::new(Scope::All));
        });
    }
}

/// The caches as one look-up sees them.
pub(crate) struct View<'c> {
    caches: &'c Caches,
    ticket: Ticket,
    used: Cell<bool>,
}

impl<'c> View<'c> {
    /// Whether anything was found so far.
    #[inline]
    pub(crate) fn was_used(&self) -> bool {
        self.used.get()
    }

    /// The same view, in which nothing is found, but what is told is kept.
    pub(crate) fn unread(&self) -> Unread<'_, 'c> {
        Unread(self)
    }

    #[inline]
    fn found<T>(&self, found: Option<T>) -> Option<T> {
        if found.is_some() {
            self.used.set(true);
        }
        found
    }

    /// Whether what the look-up has read may be kept.
    fn current(&self) -> impl Fn() -> bool {
        || self.caches.generation.is_current(self.ticket)
    }
}

impl StructureCache for View<'_> {
    #[inline]
    fn first(&self, tag: &Tag, address: u64) -> Option<Start> {
        self.found(self.caches.structures.first(tag, address))
    }

    fn keep_first(&self, tag: &Tag, address: u64, table: Start) {
        self.caches.structures.keep_first(tag, address, table, self.current());
    }

    #[inline]
    fn second(&self, domain: DomainId, address: u64) -> Option<Start> {
        self.found(self.caches.structures.second(domain, address))
    }

    fn keep_second(&self, domain: DomainId, address: u64, table: Start) {
        self.caches.structures.keep_second(domain, address, table, self.current());
    }
}

impl TableCache for View<'_> {
    #[inline]
    fn context(&self, source: SourceId) -> Option<ContextEntry> {
        self.found(self.caches.entries.context(source))
    }

    fn keep_context(&self, source: SourceId, entry: &ContextEntry) {
        self.caches.entries.keep_context(source, entry, self.current());
    }

    #[inline]
    fn legacy_context(&self, source: SourceId) -> Option<LegacyEntry> {
        self.found(self.caches.entries.legacy_context(source))
    }

    fn keep_legacy_context(&self, source: SourceId, entry: &LegacyEntry) {
        log::debug!("{source}: {}", entry.binding.stage);
        self.caches.entries.keep_legacy_context(source, entry, self.current());
    }

    #[inline]
    fn pasid(&self, source: SourceId, pasid: Pasid) -> Option<PasidEntry> {
        self.found(self.caches.entries.pasid(source, pasid))
    }

    fn keep_pasid(&self, source: SourceId, pasid: Pasid, entry: &PasidEntry) {
        log::debug!("{source}, PASID {}: {}", pasid.get(), entry.stage);
        self.caches.entries.keep_pasid(source, pasid, entry, self.current());
    }
}

/// A [`View`] in which nothing is found.
pub(crate) struct Unread<'v, 'c>(&'v View<'c>);

impl StructureCache for Unread<'_, '_> {
    fn keep_first(&self, tag: &Tag, address: u64, table: Start) {
        self.0.keep_first(tag, address, table);
    }

    fn keep_second(&self, domain: DomainId, address: u64, table: Start) {
        self.0.keep_second(domain, address, table);
    }
}

impl TableCache for Unread<'_, '_> {
    fn keep_context(&self, source: SourceId, entry: &ContextEntry) {
        self.0.keep_context(source, entry);
    }

    fn keep_legacy_context(&self, source: SourceId, entry: &LegacyEntry) {
        self.0.keep_legacy_context(source, entry);
    }

    fn keep_pasid(&self, source: SourceId, pasid: Pasid, entry: &PasidEntry) {
        self.0.keep_pasid(source, pasid, entry);
    }
}

#[cfg(test)]
mod tests;
