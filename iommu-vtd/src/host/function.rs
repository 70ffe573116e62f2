//! One assigned function: what it is bound to, and what it should be.

use std::collections::BTreeMap;
use std::sync::Arc;

use iommu_core::{Domain, DomainId, HostError, HostIommu, PageResponse, Pasid, SourceId};

use super::{MOST_BINDINGS, Stop, same, scan};
use crate::lookup::{Lookup, NoCaches};
use crate::memory::TableMemory;
use crate::tables::binding;

/// So many failures of a function are told to the operator; a guest may cause any number.
const MOST_COMPLAINTS: u32 = 8;

/// What the host was told of a PASID last.
#[derive(Clone, Copy)]
struct Bound {
    domain: Domain,
    /// It is so: since then no failure may have changed it.
    certain: bool,
}

/// An assigned function. PASID 0 stands for requests without PASID.
pub(super) struct Function {
    iommu: Arc<dyn HostIommu>,
    stop: Stop,
    /// What is not here is blocked.
    bound: BTreeMap<Pasid, Bound>,
    /// All of it is to be read again.
    stale: bool,
    /// It is being reset: nothing is bound.
    held: bool,
    complaints: u32,
}

impl Function {
    /// A function whose requests without PASID are bound to `domain`; nothing else was looked at yet.
    pub(super) fn new(iommu: Arc<dyn HostIommu>, stop: Stop, domain: Domain) -> Self {
        let mut function =
            Self { iommu, stop, bound: BTreeMap::new(), stale: true, held: false, complaints: 0 };
        function.record(Pasid::ZERO, &domain);
        function
    }

    pub(super) fn is_behind(&self, iommu: &Arc<dyn HostIommu>) -> bool {
        same(&self.iommu, iommu)
    }

    pub(super) fn note(&mut self) {
        self.stale = true;
    }

    pub(super) fn hold(&mut self) {
        self.held = true;
    }

    pub(super) fn release(&mut self) {
        self.held = false;
        self.stale = true;
    }

    /// Reads again the `named` PASIDs and what was noted, and calls `changed` for what is to be another; for some
    /// perhaps more than once.
    pub(super) fn compare<M: TableMemory>(
        &mut self,
        cx: &Lookup<'_, M, NoCaches>,
        source: SourceId,
        named: &[Pasid],
        mut changed: impl FnMut(Pasid, Domain),
    ) {
        let mut look = |pasid| {
            let domain = wanted(cx, source, pasid);
            if !self.is(pasid, &domain) {
                changed(pasid, domain);
            }
        };
        named.iter().for_each(|pasid| look(*pasid));
        if !self.stale {
            return;
        }
        // What was looked at before is here again; it is changed once.
        look(Pasid::ZERO);
        self.bound.keys().for_each(|pasid| look(*pasid));
        let scan = scan::present_pasids(cx, source, |pasid| {
            if !self.bound.contains_key(&pasid) {
                look(pasid);
            }
        });
        self.stale = false;
        if scan.is_break() {
            self.complain(|| format!("{source}: more PASIDs than are looked at; some stay blocked"));
        }
    }

    /// Whether a PASID is known to be bound so.
    fn is(&self, pasid: Pasid, domain: &Domain) -> bool {
        match self.bound.get(&pasid) {
            None => *domain == Domain::Blocked,
            Some(bound) => bound.certain && bound.domain == *domain,
        }
    }

    fn record(&mut self, pasid: Pasid, domain: &Domain) {
        if *domain == Domain::Blocked {
            self.bound.remove(&pasid);
        } else {
            self.bound.insert(pasid, Bound { domain: *domain, certain: true });
        }
    }

    /// Binds a PASID, if it is not bound so, or blocks it if that is impossible.
    pub(super) fn change(&mut self, source: SourceId, pasid: Pasid, domain: &Domain) {
        if self.is(pasid, domain) {
            return;
        }
        let known = self.bound.contains_key(&pasid);
        let full = !known && self.bound.len() >= MOST_BINDINGS;
        if full && *domain != Domain::Blocked {
            return self.complain(|| format!("{source}: more PASIDs than can be bound; some stay blocked"));
        }
        let domain = match (self.held, known) {
            (false, _) => domain,
            (true, true) => &Domain::Blocked,
            (true, false) => return,
        };
        let on_host = Some(pasid).filter(|pasid| *pasid != Pasid::ZERO);
        match self.iommu.set_domain(source, on_host, domain) {
            Ok(()) => self.record(pasid, domain),
            Err(error) if error.still_bound => {
                // Unlike what is blocked, it is tried again whenever it is looked at.
                self.bound.insert(pasid, Bound { domain: Domain::Blocked, certain: false });
                self.fail(&error);
            }
            Err(error) => {
                self.bound.remove(&pasid);
                self.fail(&error);
            }
        }
    }

    /// Blocks everything.
    pub(super) fn block(&mut self, source: SourceId) {
        let pasids: Vec<_> = self.bound.keys().rev().copied().collect();
        for pasid in pasids {
            self.change(source, pasid, &Domain::Blocked);
        }
    }

    /// The host could not drop translations of some function of its, and blocked that.
    pub(super) fn lost(&mut self, source: SourceId, error: &HostError) {
        self.bound.values_mut().for_each(|bound| bound.certain = false);
        self.fail_with_others(source, error);
    }

    /// The host refused something that may have been about any function of its.
    pub(super) fn fail_with_others(&mut self, source: SourceId, error: &HostError) {
        self.complain(|| format!("{source}: {error}: {}", error.source));
        self.stop_if_bound(error);
    }

    pub(super) fn respond(&mut self, response: &PageResponse) {
        if let Err(error) = self.iommu.respond(response) {
            self.fail(&error);
        }
    }

    /// The host refused something.
    fn fail(&mut self, error: &HostError) {
        self.complain(|| format!("{error}: {}", error.source));
        self.stop_if_bound(error);
    }

    fn stop_if_bound(&self, error: &HostError) {
        if error.still_bound {
            (self.stop)(error);
        }
    }

    fn complain(&mut self, text: impl FnOnce() -> String) {
        if self.complaints < MOST_COMPLAINTS {
            self.complaints += 1;
            log::error!("{}", text());
        } else {
            log::debug!("{}", text());
        }
    }
}

/// What the tables bind a PASID to, as far as a host can carry it out.
pub(super) fn wanted<M: TableMemory>(cx: &Lookup<'_, M, NoCaches>, source: SourceId, pasid: Pasid) -> Domain {
    let without = pasid == Pasid::ZERO;
    if !cx.root.enabled() {
        return if without { Domain::PassThrough { id: DomainId(0) } } else { Domain::Blocked };
    }
    // Page requests with such a PASID are served by its entry all the same; accesses are not (SGN.10).
    if pasid.get() >> cx.rules.pasid_bits != 0 {
        return Domain::Blocked;
    }
    match binding(cx, source, Some(pasid).filter(|_| !without)) {
        // Invalidations name the PASID of the entry, so a host has to know it by that.
        Some((entry, domain)) if entry == pasid => domain,
        Some(_) | None => Domain::Blocked,
    }
}
