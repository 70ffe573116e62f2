//! Chapter 6: invalidation by register, for drivers of legacy tables that leave the queue off (§6.5.1).

use arbitrary_int::u2;
use iommu_core::{Invalidation, Scope};

use super::{State, Unit};
use crate::capability::Capability;
use crate::invalidation::{ContextScope, functions, invalidation, second_stage_range};
use crate::memory::TableMemory;
use crate::regs::{CCMD, IOTLB, IVA};
use crate::spec::invalidation::IotlbAddress;
use crate::spec::registers::{ContextCommand, IotlbInvalidate, TranslationTableMode};

/// Granularities, asked for and reported.
const REFUSED: u2 = u2::new(0);
const GLOBAL: u2 = u2::new(1);
const DOMAIN: u2 = u2::new(2);
/// A function for CCMD, pages for IOTLB.
const SELECTIVE: u2 = u2::new(3);

impl<M: TableMemory> Unit<M> {
    /// Such invalidation works up to version 5, while the queue is off and tables are legacy ones, whether
    /// translation is enabled or not.
    fn register_based(&self, state: &State) -> bool {
        self.capability.version() >> 4 <= 5
            && state.ring.is_none()
            && self.root().mode() == TranslationTableMode::Legacy
    }

    /// CCMD. A command that is refused completes, too, and says so.
    pub(super) fn context_command(&self) {
        // From the check to the report nobody enables the queue or sets another root.
        let mut hosts = self.turn.lock();
        let state = self.state.lock();
        let register = state.file.get(CCMD);
        let served = self.register_based(&state);
        drop(state);
        if !register.icc() {
            return;
        }
        let scope = if served { context_scope(register, &self.capability) } else { None };
        if let Some(scope) = scope {
            self.caches.invalidate_contexts(&scope);
            self.drain_page_requests();
            hosts.note_contexts(&scope);
            self.settle(&mut hosts);
        }
        let done = if scope.is_some() { register.cirg() } else { REFUSED };
        let mut state = self.state.lock();
        let register = state.file.get(CCMD);
        state.file.set(CCMD, register.with_icc(false).with_caig(done));
    }

    /// IOTLB, with the address in IVA.
    pub(super) fn iotlb_command(&self) {
        let mut hosts = self.turn.lock();
        let state = self.state.lock();
        let register = state.file.get(IOTLB);
        let pages = IotlbAddress::new_with_raw_value(state.file.get(IVA));
        let served = self.register_based(&state);
        drop(state);
        if !register.ivt() {
            return;
        }
        let request = if served { translations(register, pages, &self.capability) } else { None };
        if let Some((invalidation, _)) = &request {
            self.invalidate_translations(invalidation);
            hosts.invalidate(invalidation);
            self.settle(&mut hosts);
        }
        let done = request.map_or(REFUSED, |(_, done)| done);
        let mut state = self.state.lock();
        let register = state.file.get(IOTLB);
        state.file.set(IOTLB, register.with_ivt(false).with_iaig(done));
        // Linux leaves IVA alone if it means page 0, whatever it wrote there the last time.
        state.file.set(IVA, 0);
    }
}

fn context_scope(register: ContextCommand, capability: &Capability) -> Option<ContextScope> {
    match register.cirg() {
        GLOBAL => Some(ContextScope::All),
        DOMAIN => Some(ContextScope::Domain(capability.domain_id(register.did()))),
        SELECTIVE => Some(functions(register.sid(), register.fm())),
        _ => None,
    }
}

/// What is dropped, and the granularity of that.
fn translations(
    register: IotlbInvalidate,
    pages: IotlbAddress,
    capability: &Capability,
) -> Option<(Invalidation, u2)> {
    let domain = capability.domain_id(register.did());
    let cap = capability.cap();
    let (scope, done) = match register.iirg() {
        GLOBAL => (Scope::All, GLOBAL),
        DOMAIN => (Scope::Domain(domain), DOMAIN),
        SELECTIVE if !cap.psi() => (Scope::Domain(domain), DOMAIN),
        SELECTIVE if pages.am() <= cap.mamv() => {
            (Scope::DomainRange { domain, range: second_stage_range(pages, capability) }, SELECTIVE)
        }
        _ => return None,
    };
    Some((invalidation(scope, pages), done))
}
