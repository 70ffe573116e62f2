//! Stand-ins for tests of other crates: a model that is a list, and an endpoint and a host that take notes.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::Arc;

use crate::caps::Capabilities;
use crate::domain::Domain;
use crate::fault::{Completion, Fault, FaultClass, FaultReason};
use crate::invalidation::{DeviceTlbCompletion, DeviceTlbInvalidation, Invalidation};
use crate::page_request::{PageRequest, PageRequestOutcome, PageResponse};
use crate::request::{AddressType, Permissions, Request, StageTag, Tag, Translation};
use crate::sync::Mutex;
use crate::traits::{Endpoint, HostError, HostIommu, Msi, MsiSink, Translator};
use crate::types::{DomainId, Gpa, Iova, Pasid, SourceId};

/// A host that nests, and has all that any has. It keeps its second stages to itself.
pub const NESTING: Capabilities = Capabilities {
    first_stage_bits: 57,
    second_stage_bits: 0,
    nested: false,
    first_stage_page_sizes: 1 << 12 | 1 << 21 | 1 << 30,
    second_stage_page_sizes: 0,
    pasid_bits: 20,
    device_tlb: true,
    page_requests: true,
    supervisor: true,
    extended_accessed: true,
    no_write_flag: true,
    dirty_tracking: true,
    coherent_walk: true,
};

/// One 4 KiB page of a [`ListTranslator`].
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// Address space; `None`: requests without PASID.
    pub pasid: Option<Pasid>,
    /// Input, page-aligned.
    pub iova: u64,
    /// Output, page-aligned.
    pub gpa: u64,
    /// Writable.
    pub write: bool,
}

/// A model whose tables are a function: from an address to the output block, of which any address will do, and the
/// logarithm of its size. Everything is allowed, page requests are dropped.
pub struct Computed<F>(pub F);

impl<F: Fn(Iova) -> (Gpa, u32) + Send + Sync> Translator for Computed<F> {
    fn translate(&self, request: &Request) -> Result<Translation, Fault> {
        let (base, page_bits) = self.0(request.address);
        let tag = Tag { domain: DomainId(1), pasid: Pasid::ZERO, stage: StageTag::First };
        Ok(Translation {
            iova: request.address,
            base,
            page_bits,
            permissions: Permissions::READ_WRITE,
            untranslated_only: false,
            tag,
        })
    }

    fn report(&self, _: &Fault) {}

    fn page_request(&self, _: &PageRequest) -> PageRequestOutcome {
        PageRequestOutcome::Dropped
    }
}

type PageRequestHandler = dyn Fn(&ListTranslator, &PageRequest) -> PageRequestOutcome + Send + Sync;

/// A model whose tables are a list of pages. Untranslated misses fault with code `0x71`; translation requests
/// get the empty answer. Page requests go to a closure, by default one that answers "invalid" at once.
#[derive(Default)]
pub struct ListTranslator {
    pages: Mutex<Vec<Page>>,
    /// Faults reported so far.
    pub faults: Mutex<Vec<Fault>>,
    /// Page requests made so far.
    pub page_requests: Mutex<Vec<PageRequest>>,
    handler: Mutex<Option<Arc<PageRequestHandler>>>,
}

impl ListTranslator {
    /// A model that translates nothing.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Adds or replaces a page.
    pub fn map(&self, page: Page) {
        let mut pages = self.pages.lock();
        pages.retain(|p| (p.pasid, p.iova) != (page.pasid, page.iova));
        pages.push(page);
    }

    /// Removes a page.
    pub fn unmap(&self, pasid: Option<Pasid>, iova: u64) {
        self.pages.lock().retain(|p| (p.pasid, p.iova) != (pasid, iova));
    }

    /// Decides what becomes of page requests.
    pub fn on_page_request(
        &self,
        handler: impl Fn(&Self, &PageRequest) -> PageRequestOutcome + Send + Sync + 'static,
    ) {
        *self.handler.lock() = Some(Arc::new(handler));
    }
}

impl Translator for ListTranslator {
    fn translate(&self, request: &Request) -> Result<Translation, Fault> {
        let pages = self.pages.lock();
        let page =
            pages.iter().find(|p| p.pasid == request.pasid && p.iova == request.address.0 & !0xfff).copied();
        let asks = matches!(request.address_type, AddressType::Translation { .. });
        let permissions = page.map_or(Permissions::NONE, |p| Permissions { read: true, write: p.write });
        if !asks && !permissions.allow(request.access) {
            return Err(Fault {
                request: *request,
                reason: FaultReason { class: FaultClass::NotPresent, code: 0x71 },
                completion: Completion::UnsupportedRequest,
                log: true,
            });
        }
        Ok(Translation {
            iova: request.address,
            base: Gpa(page.map_or(0, |p| p.gpa)),
            page_bits: 12,
            permissions,
            untranslated_only: false,
            tag: Tag {
                domain: DomainId(1),
                pasid: request.pasid.unwrap_or(Pasid::ZERO),
                stage: StageTag::First,
            },
        })
    }

    fn report(&self, fault: &Fault) {
        self.faults.lock().push(*fault);
    }

    fn page_request(&self, request: &PageRequest) -> PageRequestOutcome {
        self.page_requests.lock().push(*request);
        let handler = self.handler.lock().clone();
        handler.map_or(PageRequestOutcome::Answered(crate::ResponseCode::Invalid), |h| h(self, request))
    }
}

/// An endpoint that takes notes.
#[derive(Default)]
pub struct RecordingEndpoint {
    /// Device-TLB invalidations received.
    pub invalidations: Mutex<Vec<DeviceTlbInvalidation>>,
    /// Responses received.
    pub responses: Mutex<Vec<PageResponse>>,
    /// How the next invalidations end, the last of the list first. They complete when it is empty.
    pub completions: Mutex<Vec<DeviceTlbCompletion>>,
}

impl Endpoint for RecordingEndpoint {
    fn invalidate_device_tlb(&self, invalidation: &DeviceTlbInvalidation) -> DeviceTlbCompletion {
        self.invalidations.lock().push(*invalidation);
        self.completions.lock().pop().unwrap_or(DeviceTlbCompletion::Complete)
    }

    fn page_group_response(&self, response: &PageResponse) {
        self.responses.lock().push(*response);
    }
}

/// An interrupt sink that takes notes.
#[derive(Default)]
pub struct RecordingMsi {
    /// Interrupts sent.
    pub sent: Mutex<Vec<(SourceId, Msi)>>,
}

impl MsiSink for RecordingMsi {
    fn send(&self, source: SourceId, msi: Msi) {
        self.sent.lock().push((source, msi));
    }
}

/// What a [`RecordingHost`] was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostCall {
    /// [`HostIommu::set_domain`].
    Set(SourceId, Option<Pasid>, Domain),
    /// [`HostIommu::invalidate`].
    Invalidate(Invalidation),
    /// [`HostIommu::sync`].
    Sync,
    /// [`HostIommu::drain_page_requests`].
    Drain,
    /// [`HostIommu::respond`].
    Respond(PageResponse),
}

/// How a [`RecordingHost`] does what it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostOutcome {
    /// It does it.
    Done,
    /// It refuses: the binding is blocked; after a failed [`HostIommu::sync`], all are.
    Refused,
    /// It refuses, and bindings stay as they were.
    Stuck,
}

type HostHandler = dyn Fn(&HostCall) -> HostOutcome + Send + Sync;

/// A host that takes notes. It does everything that it is asked, unless a handler says otherwise.
pub struct RecordingHost {
    /// What it says it can do.
    pub capabilities: Capabilities,
    /// All calls so far.
    pub calls: Mutex<Vec<HostCall>>,
    /// What is bound; what is not here is blocked. `None` and PASID 0 are one.
    pub bound: Mutex<BTreeMap<(SourceId, Option<Pasid>), Domain>>,
    handler: Mutex<Option<Arc<HostHandler>>>,
}

impl RecordingHost {
    /// A host without functions, which can do `capabilities`.
    #[must_use]
    pub fn new(capabilities: Capabilities) -> Arc<Self> {
        Arc::new(Self {
            capabilities,
            calls: Mutex::default(),
            bound: Mutex::default(),
            handler: Mutex::default(),
        })
    }

    /// Decides how calls end.
    pub fn on_call(&self, handler: impl Fn(&HostCall) -> HostOutcome + Send + Sync + 'static) {
        *self.handler.lock() = Some(Arc::new(handler));
    }

    /// The calls since the last time.
    pub fn take_calls(&self) -> Vec<HostCall> {
        std::mem::take(&mut *self.calls.lock())
    }

    /// What requests of `source` with `pasid` are bound to.
    #[must_use]
    pub fn domain(&self, source: SourceId, pasid: Option<Pasid>) -> Domain {
        self.bound.lock().get(&(source, pasid)).copied().unwrap_or(Domain::Blocked)
    }

    fn call(&self, call: HostCall) -> Result<(), (HostOutcome, HostError)> {
        self.calls.lock().push(call);
        let handler = self.handler.lock().clone();
        let outcome = handler.map_or(HostOutcome::Done, |handler| handler(&call));
        if outcome == HostOutcome::Done {
            return Ok(());
        }
        let error = HostError {
            operation: "a test",
            object: format!("{call:?}"),
            still_bound: outcome == HostOutcome::Stuck,
            source: ErrorKind::OutOfMemory.into(),
        };
        Err((outcome, error))
    }
}

impl HostIommu for RecordingHost {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn set_domain(&self, source: SourceId, pasid: Option<Pasid>, domain: &Domain) -> Result<(), HostError> {
        let pasid = pasid.filter(|pasid| *pasid != Pasid::ZERO);
        let done = self.call(HostCall::Set(source, pasid, *domain));
        let mut bound = self.bound.lock();
        match done {
            Ok(()) if *domain != Domain::Blocked => drop(bound.insert((source, pasid), *domain)),
            Err((HostOutcome::Stuck, _)) => {}
            Ok(()) | Err(_) => drop(bound.remove(&(source, pasid))),
        }
        done.map_err(|(_, error)| error)
    }

    fn invalidate(&self, invalidation: &Invalidation) {
        let _ = self.call(HostCall::Invalidate(*invalidation));
    }

    fn sync(&self) -> Result<(), HostError> {
        let done = self.call(HostCall::Sync);
        if matches!(done, Err((HostOutcome::Refused, _))) {
            self.bound.lock().clear();
        }
        done.map_err(|(_, error)| error)
    }

    fn drain_page_requests(&self, _: &dyn Translator) -> Result<(), HostError> {
        self.call(HostCall::Drain).map_err(|(_, error)| error)
    }

    fn respond(&self, response: &PageResponse) -> Result<(), HostError> {
        self.call(HostCall::Respond(*response)).map_err(|(_, error)| error)
    }
}
