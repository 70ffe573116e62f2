//! The unit: registers, queues and tables put together.
//!
//! # Locks
//!
//! This is the one place where the order is written. Outermost first:
//!
//! 1. `turn`: who processes commands and the invalidation queue. Taken by register writes only, so by CPU threads
//!    that hold nothing. Held while endpoints are called and ports are visited.
//! 2. locks inside an endpoint, and that of a host while it hands page requests in,
//! 3. `arriving`: shared by page requests on their way into the queue, taken for a moment by what drains them: an
//!    invalidation of entries that they are judged by, and a wait descriptor with the flag,
//! 4. the lock of a port: an open session,
//! 5. the latch of [`crate::interrupt`]: shared while an interrupt is delivered, which functions do with their own
//!    locks held; taken alone for a moment by commands and invalidations. Listeners to routes are called with
//!    `turn` only,
//! 6. `endpoints`, and `state` (register file, fault log, page request queue): leaves. Nothing is called with
//!    them held but guest memory and the interrupt sink,
//! 7. the turn of `cache`, taken by invalidations while they drop entries: nothing is called with it,
//!
//! Hosts ([`iommu_core::HostIommu`]) are called with `turn` only. One may wait there for a page request that it is
//! handing in on another thread; that one waits for nothing but 3 and what comes after. For a wait descriptor that drains
//! it hands in page requests itself, on this thread.
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

mod command;
mod counters;
mod hosts;
mod interrupts;
mod processing;
mod register_based;
mod saved;

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use iommu_core::sync::atomic::{AtomicU64, Ordering};
use iommu_core::sync::{Mutex, RwLock};
use iommu_core::{
    Endpoint, Fault, Invalidation, Msi, MsiSink, PageRequest, PageRequestOutcome, PortSet, Request,
    ResponseCode, SourceId, Translation, Translator,
};

use crate::ats;
use crate::cache::Caches;
use crate::capability::Capability;
use crate::event;
use crate::fault::{self, FaultLog, Origin};
use crate::host::Hosts;
use crate::interrupt::Interrupts;
use crate::memory::TableMemory;
use crate::page_request::{self, Enqueued, implicit_invalidation, is_stop_marker};
use crate::queue::Ring;
use crate::regs::{CCMD, FSTS, GCMD, GSTS, ICS, IOTLB, IQT, RegisterFile, Span};
use crate::rules::Rules;
use crate::spec::registers::GlobalCommand;
use crate::tables::{Context, RootLatch};
use crate::translate;
use command::LEVELS;
use counters::Counters;

pub use counters::UnitCounts;

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
    caches: Caches,
    ports: Arc<PortSet>,
    endpoints: RwLock<HashMap<SourceId, Weak<dyn Endpoint>>>,
    /// Whoever has it may change what hosts are told.
    turn: Mutex<Hosts>,
    arriving: RwLock<()>,
    interrupts: Interrupts,
    counters: Counters,
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
            caches: Caches::new(),
            ports: Arc::default(),
            endpoints: RwLock::default(),
            turn: Mutex::default(),
            arriving: RwLock::default(),
            interrupts: Interrupts::new(&config.capability),
            counters: Counters::default(),
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

    /// What it has done so far. Waits for open sessions.
    #[must_use]
    pub fn counts(&self) -> UnitCounts {
        self.counters.read(self.ports.looked_up())
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
            let mut hosts = self.turn.lock();
            self.process_queue(&mut hosts);
        }
    }

    /// Drops everything that is cached, here and in the ports, and waits for open sessions.
    fn invalidate_all(&self) {
        self.caches.clear();
        self.ports.clear();
    }

    /// On return, page requests that were judged by what was cached or in memory before have reached their queue, or
    /// never will.
    ///
    /// The manual asks for this only of a wait descriptor with the drain flag, which has hosts hand in what they have
    /// before. Here every invalidation of contexts and PASIDs does it: Linux (7.3 at least) looks into its queue *before*
    /// that wait, and when the wait is done it frees what belongs to requests of the PASID. One that came in between would
    /// be handled after it was freed.
    fn drain_page_requests(&self) {
        drop(self.arriving.write());
    }

    /// Drops tables and translations, and waits for open sessions: on return nobody uses one of them. Ports come
    /// last: a session may have gone by what was here.
    fn invalidate_translations(&self, invalidation: &Invalidation) {
        self.caches.invalidate_structures(invalidation);
        self.ports.invalidate(invalidation);
    }

    /// Back to the state after power-on, as a reset of the machine wants it. Endpoints stay attached; they are
    /// reset by their own means, and before this.
    pub fn reset(&self) {
        let mut hosts = self.turn.lock();
        self.root.store(RootLatch::default().to_raw(), Ordering::Release);
        self.invalidate_all();
        self.rebind_all(&mut hosts);
        self.interrupts.reset();
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
            self.counters.fault(fault.reason);
            log::debug!("fault {:#x}: {:?}", fault.reason.code, fault.request);
            let State { file, log, .. } = &mut *self.state.lock();
            self.send(log.record(file, &self.capability, origin, fault));
        }
    }
}

impl<M: TableMemory> Translator for Unit<M> {
    fn translate(&self, request: &Request) -> Result<Translation, Fault> {
        // The view first: what is put into caches must not be older than it.
        let view = self.caches.view();
        translate::translate_cached(&self.context(), &view, request)
    }

    fn report(&self, fault: &Fault) {
        self.record(Origin::Request, fault);
    }

    fn page_request(&self, request: &PageRequest) -> PageRequestOutcome {
        let outcome = self.take_page_request(request);
        self.counters.page_request(request, outcome == PageRequestOutcome::Queued);
        outcome
    }
}

impl<M: TableMemory> Unit<M> {
    fn take_page_request(&self, request: &PageRequest) -> PageRequestOutcome {
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
            Ok(tag) => self.invalidate_translations(&implicit_invalidation(&tag, request)),
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
