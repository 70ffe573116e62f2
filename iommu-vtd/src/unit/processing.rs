//! Chapter 6: what the descriptors of the invalidation queue do.

use std::sync::{Arc, Weak};

use iommu_core::{DeviceTlbCompletion, Endpoint, SourceId};

use super::Unit;
use crate::event;
use crate::host::Hosts;
use crate::invalidation::{Descriptor, WaitAction};
use crate::memory::TableMemory;
use crate::queue;
use crate::regs::ICS;
use crate::spec::registers::CompletionStatus;

impl<M: TableMemory> Unit<M> {
    /// Processes what is in the queue, at most one ring full. The caller holds `turn`.
    pub(super) fn process_queue(&self, hosts: &mut Hosts) {
        self.take_out(hosts);
        // What no wait stands behind is done all the same.
        self.settle(hosts);
    }

    fn take_out(&self, hosts: &mut Hosts) {
        let budget = self.state.lock().ring.map_or(0, |ring| ring.entries());
        let mut silent = None;
        for _ in 0..budget {
            let Some(descriptor) = self.fetch() else { break };
            self.counters.descriptor(&descriptor);
            if silent.is_some() && descriptor.reports() {
                // What it waits for did not complete: it is aborted.
                break;
            }
            if let Err(source) = self.act(hosts, &descriptor) {
                silent.get_or_insert(source);
            }
        }
        if let Some(source) = silent {
            let message = queue::time_out(&mut self.state.lock().file, source);
            self.send(message);
        }
    }

    pub(super) fn may_fetch(&self) -> bool {
        let state = self.state.lock();
        state.ring.is_some() && queue::may_fetch(&state.file)
    }

    fn fetch(&self) -> Option<Descriptor> {
        let mut state = self.state.lock();
        let ring = state.ring?;
        let mode = self.root().mode();
        match queue::fetch(&mut state.file, &ring, mode, &self.memory, &self.capability) {
            Ok(descriptor) => descriptor,
            Err(error) => {
                self.send(queue::stop(&mut state.file, error));
                None
            }
        }
    }

    /// Does what a descriptor says. When this returns, it is done, but for what concerns hosts: that is noted.
    ///
    /// # Errors
    /// The named function did not complete the invalidation of its device-TLB in time.
    fn act(&self, hosts: &mut Hosts, descriptor: &Descriptor) -> Result<(), SourceId> {
        match descriptor {
            Descriptor::ContextCache(scope) => {
                self.caches.invalidate_contexts(scope);
                self.drain_page_requests();
                hosts.note_contexts(scope);
            }
            Descriptor::PasidCache(scope) => {
                self.caches.invalidate_pasids(scope);
                self.drain_page_requests();
                if hosts.note_pasids(scope) {
                    self.settle(hosts);
                }
            }
            Descriptor::Translations(invalidation) => {
                self.invalidate_translations(invalidation);
                hosts.invalidate(invalidation);
            }
            // A host flushes what its devices cache together with its tables.
            Descriptor::DeviceTlb(invalidation) => {
                let source = invalidation.source;
                if let Some(endpoint) = self.endpoint(source)
                    && endpoint.invalidate_device_tlb(invalidation) == DeviceTlbCompletion::TimedOut
                {
                    return Err(source);
                }
            }
            Descriptor::InterruptEntries(scope) => self.interrupts.invalidate(*scope),
            Descriptor::Response(response) => {
                if !hosts.respond(response)
                    && let Some(endpoint) = self.endpoint(response.source)
                {
                    endpoint.page_group_response(response);
                }
            }
            Descriptor::Wait(wait) => {
                self.settle(hosts);
                self.complete(hosts, wait);
            }
        }
        Ok(())
    }

    /// All before is done, device-TLBs and hosts included.
    fn complete(&self, hosts: &mut Hosts, wait: &WaitAction) {
        if wait.drain {
            hosts.drain_page_requests(self);
            self.drain_page_requests();
        }
        if let Some((gpa, data)) = wait.status
            && !self.memory.write(gpa, &data.to_le_bytes())
        {
            log::debug!("wait descriptor: no memory at {gpa}");
        }
        if wait.interrupt {
            let mut state = self.state.lock();
            let before = state.file.get(ICS);
            state.file.set(ICS, CompletionStatus::DEFAULT.with_iwc(true));
            if !before.iwc() {
                self.send(event::COMPLETION.raise(&mut state.file));
            }
        }
    }

    /// The endpoint behind a source id; the lock is released before it is called.
    fn endpoint(&self, source: SourceId) -> Option<Arc<dyn Endpoint>> {
        self.endpoints.read().get(&source).and_then(Weak::upgrade)
    }
}
