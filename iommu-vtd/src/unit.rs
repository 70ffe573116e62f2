//! The unit: registers, queues and tables put together.
//!
//! # Locks
//!
//! This is the one place where the order is written. Outermost first:
//!
//! 1. `turn`: who processes commands and the invalidation queue. Taken by register writes only, so by CPU threads
//!    that hold nothing. Held while endpoints are called and ports are visited.
//! 2. locks inside an endpoint,
//! 3. `arriving`: shared by page requests on their way into the queue, taken for a moment by a wait descriptor
//!    that drains them,
//! 4. the lock of a port: an open session,
//! 5. `endpoints`, and `state` (register file, fault log, page request queue): leaves. Nothing is called with
//!    them held but guest memory and the interrupt sink,
//! 6. host objects.
//!
//! [`Translator::translate`] takes no lock at all, [`Translator::report`] leaves only, and
//! [`Translator::page_request`] shares `arriving`, which is wanted alone only between descriptors. That is why an
//! endpoint may call them from within a call that the unit made to it, and why waiting for `turn` always ends:
//! endpoints never wait for a guest.
//!
//! # Who processes the queue
//!
//! A write that may have something to process waits for its turn and then takes out at most as many descriptors
//! as the ring has entries. What was there when it wrote is less than that, so it is done when the write returns,
//! and a guest that keeps moving the tail from elsewhere holds nobody for long.

mod saved;

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use arbitrary_int::u2;
use iommu_core::sync::atomic::{AtomicU64, Ordering};
use iommu_core::sync::{Mutex, RwLock};
use iommu_core::{
    DeviceTlbInvalidation, Endpoint, Fault, IovaRange, Msi, MsiSink, PageRequest, PageRequestOutcome,
    PortSet, Request, ResponseCode, SourceId, Translation, Translator,
};

use crate::ats;
use crate::capability::Capability;
use crate::event;
use crate::fault::{self, FaultLog, Origin};
use crate::invalidation::{Descriptor, WaitAction};
use crate::memory::TableMemory;
use crate::page_request::{self, Enqueued, implicit_invalidation, is_stop_marker};
use crate::queue::{self, Ring};
use crate::regs::{CCMD, FSTS, GCMD, GSTS, ICS, IOTLB, IQA, IQH, IQT, IVA, RTADDR, RegisterFile, Span};
use crate::rules::Rules;
use crate::spec::invalidation::IotlbAddress;
use crate::spec::registers::{CompletionStatus, GlobalCommand, QueueOffset, TranslationTableMode};
use crate::tables::{Context, RootLatch};
use crate::translate;

/// What a unit is made from.
#[derive(Clone, Copy, Debug)]
pub struct UnitConfig {
    /// What it offers.
    pub capability: Capability,
    /// The name its own interrupts are sent under. They are not subject to remapping.
    pub source: SourceId,
}

/// What register writes, faults and page requests change.
struct State {
    file: RegisterFile,
    /// The invalidation queue, while it is enabled.
    ring: Option<Ring>,
    log: FaultLog,
}

/// A remapping hardware unit.
///
/// All methods may be called from any thread, [`Self::mmio_write`] and [`Self::reset`] only from one that holds
/// no lock of an endpoint and no session.
pub struct Unit<M> {
    capability: Capability,
    rules: Rules,
    source: SourceId,
    memory: M,
    msi: Arc<dyn MsiSink>,
    /// A [`RootLatch`].
    root: AtomicU64,
    ports: Arc<PortSet>,
    endpoints: RwLock<HashMap<SourceId, Weak<dyn Endpoint>>>,
    turn: Mutex<()>,
    arriving: RwLock<()>,
    state: Mutex<State>,
}

impl<M: TableMemory> Unit<M> {
    /// A unit after power-on. `memory` holds the guest's tables and queues; `msi` takes the unit's own
    /// interrupts past any remapping.
    pub fn new(config: &UnitConfig, memory: M, msi: Arc<dyn MsiSink>) -> Self {
        Self {
            capability: config.capability,
            rules: Rules::new(&config.capability),
            source: config.source,
            memory,
            msi,
            root: AtomicU64::new(RootLatch::default().to_raw()),
            ports: Arc::default(),
            endpoints: RwLock::default(),
            turn: Mutex::default(),
            arriving: RwLock::default(),
            state: Mutex::new(State {
                file: RegisterFile::new(&config.capability),
                ring: None,
                log: FaultLog::default(),
            }),
        }
    }

    /// What the unit offers.
    #[must_use]
    pub fn capability(&self) -> &Capability {
        &self.capability
    }

    /// The ports whose translations this unit answers for.
    #[must_use]
    pub fn ports(&self) -> Arc<PortSet> {
        self.ports.clone()
    }

    /// Names the endpoint that device-TLB invalidations and page group responses for `source` go to, in place
    /// of any before. Without one, or when it is gone, they complete at once.
    pub fn attach_endpoint(&self, source: SourceId, endpoint: Weak<dyn Endpoint>) {
        self.endpoints.write().insert(source, endpoint);
    }

    /// Forgets the endpoint of `source`. Calls that are on their way to it still arrive.
    pub fn detach_endpoint(&self, source: SourceId) {
        self.endpoints.write().remove(&source);
    }

    /// Reads registers. `offset` is into the register page, of any alignment; `data` of any length.
    pub fn mmio_read(&self, offset: u64, data: &mut [u8]) {
        self.state.lock().file.read(offset, data);
    }

    /// Writes registers, and does whatever that sets off before it returns: a command's status, the effect and
    /// the completion of every descriptor that is in the queue.
    pub fn mmio_write(&self, offset: u64, data: &[u8]) {
        let mut state = self.state.lock();
        let file = &mut state.file;
        // Levels of a command that is written in parts stay as they are.
        file.set(GCMD, GlobalCommand::new_with_raw_value(file.get(GSTS).raw_value() & LEVELS));
        let span = file.write(offset, data);
        let messages = [
            fault::settle(file),
            event::COMPLETION.settle(file, file.get(ICS).iwc()),
            page_request::settle(file),
        ];
        for message in messages {
            self.send(message);
        }
        let command = file.get(GCMD);
        drop(state);
        self.after_write(&span, command);
    }

    fn after_write(&self, span: &Span, command: GlobalCommand) {
        if span.touches(GCMD) {
            self.command(command);
        }
        if span.touches_last_byte(CCMD) {
            self.context_command();
        }
        if span.touches_last_byte(IOTLB) {
            self.iotlb_command();
        }
        // An error that is cleared lets the queue go on without a new tail. A handler that clears faults need not
        // wait for its turn; who writes a tail must, even if another already took the descriptors out.
        if span.touches(IQT) || span.touches(GCMD) || span.touches(FSTS) && self.may_fetch() {
            let _turn = self.turn.lock();
            self.process_queue();
        }
    }

    /// Back to the state after power-on, as a reset of the machine wants it. Endpoints stay attached; they are
    /// reset by their own means, and before this.
    pub fn reset(&self) {
        let _turn = self.turn.lock();
        self.root.store(RootLatch::default().to_raw(), Ordering::Release);
        self.ports.clear();
        let mut state = self.state.lock();
        state.file.reset();
        state.ring = None;
        state.log = FaultLog::default();
    }

    fn root(&self) -> RootLatch {
        RootLatch::from_raw(self.root.load(Ordering::Acquire))
    }

    fn context(&self) -> Context<'_, M> {
        Context { memory: &self.memory, rules: &self.rules, root: self.root() }
    }

    fn send(&self, message: Option<Msi>) {
        if let Some(msi) = message {
            self.msi.send(self.source, msi);
        }
    }

    fn record(&self, origin: Origin, fault: &Fault) {
        if fault.log {
            log::debug!("fault {:#x}: {:?}", fault.reason.code, fault.request);
            let State { file, log, .. } = &mut *self.state.lock();
            self.send(log.record(file, &self.capability, origin, fault));
        }
    }
}

/// Commands of GCMD that are levels: the bit stands for the state wanted. The others are one-shot.
const LEVELS: u32 =
    GlobalCommand::DEFAULT.with_te(true).with_qie(true).with_ire(true).with_cfi(true).raw_value();

/// Commands.
impl<M: TableMemory> Unit<M> {
    /// Carries out a command: one-shot bits that are set, and the difference of all levels. A level that is
    /// missing from a one-shot command is thereby switched off.
    ///
    /// The status tells the truth at any moment: "root pointer set" goes away while it is being set, and
    /// translation is not reported off before in-flight DMA has drained.
    fn command(&self, command: GlobalCommand) {
        let _turn = self.turn.lock();
        let mut state = self.state.lock();
        let status = state.file.get(GSTS);
        let mut root = self.root().with_enabled(command.te());
        if command.srtp() {
            root = RootLatch::new(state.file.get(RTADDR).raw_value(), command.te());
            state.file.set(GSTS, status.with_srtp(false));
        }
        self.root.store(root.to_raw(), Ordering::Release);
        drop(state);
        // ESRTPS, and "global invalidation when translation is switched".
        if command.srtp() || command.te() != status.te() {
            self.ports.clear();
        }
        if status.te() && !command.te() {
            self.clear_device_tlbs();
        }
        self.finish(command, status);
    }

    /// While translation is off, translated requests are refused. Hits in a device-TLB are not seen here, so
    /// device-TLBs are emptied; a translation request that would fill them again is refused.
    fn clear_device_tlbs(&self) {
        let endpoints: Vec<_> =
            self.endpoints.read().iter().filter_map(|(source, e)| Some((*source, e.upgrade()?))).collect();
        for (source, endpoint) in endpoints {
            for all_pasids in [false, true] {
                let range = IovaRange::ALL;
                let all = DeviceTlbInvalidation { source, pasid: None, all_pasids, range };
                endpoint.invalidate_device_tlb(&all);
            }
        }
    }

    fn finish(&self, command: GlobalCommand, before: GlobalCommand) {
        let mut state = self.state.lock();
        let status =
            before.with_te(command.te()).with_srtp(before.srtp() || command.srtp()).with_qie(command.qie());
        if command.qie() != before.qie() {
            log::debug!("queued invalidation {}", if command.qie() { "on" } else { "off" });
            state.ring = command.qie().then(|| Ring::latch(state.file.get(IQA)));
            state.file.set(IQH, QueueOffset::DEFAULT);
        }
        if !status.te() && !status.ire() {
            state.log = FaultLog::default();
        }
        state.file.set(GSTS, status);
    }

    /// Register-based invalidation works while the queue is off and root tables are legacy ones.
    fn register_based(&self, state: &State) -> bool {
        state.ring.is_none() && self.root().mode() == TranslationTableMode::Legacy
    }

    /// CCMD: there is no context-cache. A command that is refused still completes.
    fn context_command(&self) {
        let mut state = self.state.lock();
        let register = state.file.get(CCMD);
        if register.icc() {
            let done = if self.register_based(&state) { register.cirg() } else { u2::new(0) };
            state.file.set(CCMD, register.with_icc(false).with_caig(done));
        }
    }

    /// The IOTLB register: whatever is asked for, all is dropped.
    fn iotlb_command(&self) {
        const GLOBAL: u2 = u2::new(1);
        const PAGE: u2 = u2::new(3);
        let state = self.state.lock();
        let register = state.file.get(IOTLB);
        let mask = IotlbAddress::new_with_raw_value(state.file.get(IVA)).am();
        let refused = !self.register_based(&state)
            || register.iirg() == u2::new(0)
            || register.iirg() == PAGE && mask > self.capability.cap().mamv();
        drop(state);
        if register.ivt() {
            if !refused {
                self.ports.clear();
            }
            let done = if refused { u2::new(0) } else { GLOBAL };
            self.state.lock().file.set(IOTLB, register.with_ivt(false).with_iaig(done));
        }
    }
}

/// The invalidation queue.
impl<M: TableMemory> Unit<M> {
    /// Processes what is in the queue, at most one ring full. The caller holds `turn`.
    fn process_queue(&self) {
        let budget = self.state.lock().ring.map_or(0, |ring| ring.entries());
        for _ in 0..budget {
            let Some(descriptor) = self.next_descriptor() else { return };
            self.act(&descriptor);
        }
    }

    fn may_fetch(&self) -> bool {
        let state = self.state.lock();
        state.ring.is_some() && queue::may_fetch(&state.file)
    }

    fn next_descriptor(&self) -> Option<Descriptor> {
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

    fn act(&self, descriptor: &Descriptor) {
        match descriptor {
            // No root, context or PASID entry is cached.
            Descriptor::Tables(_) => {}
            Descriptor::Translations(invalidation) => self.ports.invalidate(invalidation),
            Descriptor::DeviceTlb(invalidation) => {
                if let Some(endpoint) = self.endpoint(invalidation.source) {
                    endpoint.invalidate_device_tlb(invalidation);
                }
            }
            // No interrupt-remapping table entry is cached.
            Descriptor::InterruptEntries(_) => {}
            Descriptor::Response(response) => {
                if let Some(endpoint) = self.endpoint(response.source) {
                    endpoint.page_group_response(response);
                }
            }
            Descriptor::Wait(wait) => self.complete(wait),
        }
    }

    /// All before is done, device-TLBs included. With a drain, page requests that were judged by the tables as
    /// they were before have reached their queue, or never will.
    fn complete(&self, wait: &WaitAction) {
        if wait.drain {
            drop(self.arriving.write());
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

impl<M: TableMemory> Translator for Unit<M> {
    fn translate(&self, request: &Request) -> Result<Translation, Fault> {
        translate::translate(&self.context(), request)
    }

    fn report(&self, fault: &Fault) {
        self.record(Origin::Request, fault);
    }

    fn page_request(&self, request: &PageRequest) -> PageRequestOutcome {
        let answer = |code| {
            if request.last && !is_stop_marker(request) {
                PageRequestOutcome::Answered(code)
            } else {
                PageRequestOutcome::Dropped
            }
        };
        let _arriving = self.arriving.read();
        let context = self.context();
        if !context.root.enabled() {
            return PageRequestOutcome::Dropped;
        }
        match ats::admit_page_request(&context, request) {
            Ok(tag) => self.ports.invalidate(&implicit_invalidation(&tag, request)),
            Err(fault) => {
                self.record(Origin::PageRequest, &fault);
                return answer(ResponseCode::Invalid);
            }
        }
        let mut state = self.state.lock();
        // Translation may be off by now, and the queue be another kernel's.
        if !self.root().enabled() {
            return PageRequestOutcome::Dropped;
        }
        match page_request::enqueue(&mut state.file, &self.memory, request) {
            Enqueued::Queued(message) => {
                self.send(message);
                PageRequestOutcome::Queued
            }
            Enqueued::Overflow(message) => {
                self.send(message);
                answer(ResponseCode::Success)
            }
            Enqueued::NoMemory => answer(ResponseCode::Invalid),
        }
    }
}
