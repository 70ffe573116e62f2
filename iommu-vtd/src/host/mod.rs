//! Assigned functions: what the guest's tables say of them is carried out by a host's IOMMU.
//!
//! The host reads no context and PASID entries of the guest's: it is told what each (function, PASID) is bound to.
//! So a unit with such functions has caching mode, and everything by which a guest may announce a change has the
//! tables read again: invalidations of the context-cache and the PASID-cache, a new root table, translation
//! switched, a reset, a restored state. What the entries lead to the host walks itself; invalidations of
//! translations are handed on to it.
//!
//! | event | what is read again |
//! | --- | --- |
//! | PASID-cache, one PASID | that PASID of every function: no scan |
//! | context-cache, functions | all of those functions |
//! | PASID-cache, all or a domain; context-cache, all or a domain; root, translation, reset, restore | everything |
//!
//! To read more again than was named is always right: no cache must hold anything.
//!
//! # When
//!
//! An event only takes note ([`Hosts::note_pasids`] and others); [`Hosts::settle`] does the work, before a wait
//! descriptor completes, before a register says that a command is done, and when the queue is empty. So a hundred
//! descriptors before one wait cost one reading, removals come before what needs the host's room, and every table
//! of the host is flushed once.
//!
//! # Bounds
//!
//! A PASID directory names a million entries, and a hostile guest can point all of it at one page. One reading looks
//! at no more than [`MOST_TABLES`](scan::MOST_TABLES) PASID tables of a function, which is 4 MiB, and at 2,048 present
//! entries in them: a millisecond (`benches/hosts.rs`). A function has no more than [`MOST_BINDINGS`] bindings. What
//! is beyond is blocked on the host, in ascending order of PASIDs, bindings that exist first; a PASID that is named by
//! an invalidation of its own is looked at wherever it lies.
//!
//! # What is blocked
//!
//! What the tables refuse; second stages and nested ones, unless the host takes them; PASIDs while translation is
//! off (requests without are then passed through); requests without PASID whose context entry names another entry
//! than that of PASID 0, because hosts know no RID_PASID; whatever the host refused. A refusal is not the guest's to
//! know: it finds its invalidation complete and the function without memory. The next event tries again.

mod function;
mod scan;

use std::collections::BTreeMap;
use std::sync::Arc;

use iommu_core::{Domain, HostError, HostIommu, Invalidation, PageResponse, Pasid, SourceId, Translator};

use self::function::{Function, wanted};
use crate::invalidation::{ContextScope, PasidScope};
use crate::lookup::{Lookup, NoCaches};
use crate::memory::TableMemory;
use crate::tables::Context;

/// Most bindings of one function. Each takes a page table and a domain-id of the host's, of which there are
/// 65,536 at most.
pub(crate) const MOST_BINDINGS: usize = 1024;
/// So many PASIDs that were named are remembered.
const MOST_NAMED: usize = 64;

/// What stops a function that its host could not take off its tables.
pub(crate) type Stop = Box<dyn Fn(&HostError) + Send>;

/// All assigned functions of a unit. Whoever has it has the unit's turn; nothing is called with another lock.
#[derive(Default)]
pub(crate) struct Hosts {
    functions: BTreeMap<SourceId, Function>,
    /// The hosts of these functions, each once.
    hosts: Vec<Host>,
    /// PASIDs whose entries are to be read again.
    named: Vec<Pasid>,
    /// Room for [`Self::settle`].
    changes: Vec<Change>,
}

struct Host {
    iommu: Arc<dyn HostIommu>,
    /// It took note of an invalidation that it may not have carried out.
    unsynced: bool,
}

/// A binding that is to be another.
struct Change {
    source: SourceId,
    pasid: Pasid,
    domain: Domain,
}

/// Whether two are the same host.
fn same(a: &Arc<dyn HostIommu>, b: &Arc<dyn HostIommu>) -> bool {
    std::ptr::addr_eq(Arc::as_ptr(a), Arc::as_ptr(b))
}

impl Hosts {
    /// Takes a function in, in place of one before, and binds it as the tables say.
    ///
    /// # Errors
    /// The host refused the binding of requests without PASID; the function is not taken in.
    pub(crate) fn attach<M: TableMemory>(
        &mut self,
        cx: &Context<'_, M>,
        source: SourceId,
        iommu: Arc<dyn HostIommu>,
        stop: Stop,
    ) -> Result<(), HostError> {
        self.detach(source);
        let domain = wanted(&Lookup::new(cx, &NoCaches), source, Pasid::ZERO);
        iommu.set_domain(source, None, &domain)?;
        if !self.hosts.iter().any(|host| same(&host.iommu, &iommu)) {
            self.hosts.push(Host { iommu: iommu.clone(), unsynced: false });
        }
        self.functions.insert(source, Function::new(iommu, stop, domain));
        self.settle(cx);
        Ok(())
    }

    /// Blocks a function and forgets it.
    pub(crate) fn detach(&mut self, source: SourceId) {
        let Some(mut function) = self.functions.remove(&source) else { return };
        function.block(source);
        self.hosts.retain(|host| self.functions.values().any(|other| other.is_behind(&host.iommu)));
    }

    /// From now on a function is only blocked, not bound.
    pub(crate) fn hold(&mut self, source: SourceId) {
        if let Some(function) = self.functions.get_mut(&source) {
            function.hold();
        }
    }

    /// Ends [`Self::hold`]; to be followed by [`Self::settle`].
    pub(crate) fn release(&mut self, source: SourceId) {
        if let Some(function) = self.functions.get_mut(&source) {
            function.release();
        }
    }

    /// Everything is to be read again.
    pub(crate) fn note_all(&mut self) {
        self.functions.values_mut().for_each(Function::note);
    }

    /// Context entries changed. A legacy entry has a domain, but may have got it by this very change.
    pub(crate) fn note_contexts(&mut self, scope: &ContextScope) {
        match scope {
            ContextScope::All | ContextScope::Domain(_) => self.note_all(),
            ContextScope::Source { .. } => {
                let hit = self.functions.iter_mut().filter(|(source, _)| scope.hits(**source, None));
                hit.for_each(|(_, function)| function.note());
            }
        }
    }

    /// PASID entries changed. Their domains are not looked at: an entry that was not present had none. `true` if
    /// there is no room for more: [`Self::settle`] first.
    pub(crate) fn note_pasids(&mut self, scope: &PasidScope) -> bool {
        match scope {
            PasidScope::All | PasidScope::Domain(_) => self.note_all(),
            PasidScope::Pasid { pasid, .. } if self.functions.is_empty() || self.named.contains(pasid) => {}
            PasidScope::Pasid { pasid, .. } => self.named.push(*pasid),
        }
        self.named.len() >= MOST_NAMED
    }

    /// Translations changed.
    pub(crate) fn invalidate(&mut self, invalidation: &Invalidation) {
        for host in &mut self.hosts {
            host.iommu.invalidate(invalidation);
            host.unsynced = true;
        }
    }

    /// Answers a page request group; `false` if the function is not an assigned one.
    pub(crate) fn respond(&mut self, response: &PageResponse) -> bool {
        let Some(function) = self.functions.get_mut(&response.source) else { return false };
        function.respond(response);
        true
    }

    /// Page requests that hosts have at this moment are with the guest on return, by way of `model`.
    ///
    /// Those of a host that fails may come later. Whose they are is not said, so that is a failure of every function
    /// behind it; none of them is by what was taken back: with a binding its page requests are gone.
    pub(crate) fn drain_page_requests(&mut self, model: &dyn Translator) {
        for host in &self.hosts {
            if let Err(error) = host.iommu.drain_page_requests(model) {
                for (source, function) in behind(&mut self.functions, host) {
                    function.fail_with_others(source, &error);
                }
            }
        }
    }

    /// Makes the host's bindings what the tables say, as far as anything was noted, and carries out invalidations.
    /// On return nothing that the guest took back is in use, but for what a host failed to stop.
    pub(crate) fn settle<M: TableMemory>(&mut self, cx: &Context<'_, M>) {
        if self.functions.is_empty() {
            return;
        }
        let cx = &Lookup::new(cx, &NoCaches);
        let Self { functions, named, changes, .. } = self;
        for (source, function) in functions.iter_mut() {
            let source = *source;
            function.compare(cx, source, named, |pasid, domain| {
                changes.push(Change { source, pasid, domain });
            });
        }
        named.clear();
        for removals in [true, false] {
            for change in changes.iter().filter(|change| (change.domain == Domain::Blocked) == removals) {
                if let Some(function) = functions.get_mut(&change.source) {
                    function.change(change.source, change.pasid, &change.domain);
                }
            }
        }
        changes.clear();
        self.sync();
    }

    fn sync(&mut self) {
        for host in &mut self.hosts {
            if !std::mem::take(&mut host.unsynced) {
                continue;
            }
            if let Err(error) = host.iommu.sync() {
                behind(&mut self.functions, host)
                    .for_each(|(source, function)| function.lost(source, &error));
            }
        }
    }
}

/// The functions of a host.
fn behind<'a>(
    functions: &'a mut BTreeMap<SourceId, Function>,
    host: &'a Host,
) -> impl Iterator<Item = (SourceId, &'a mut Function)> {
    let all = functions.iter_mut().map(|(source, function)| (*source, function));
    all.filter(|(_, function)| function.is_behind(&host.iommu))
}
