//! DMA as it runs: ports, sessions, and the drain that an invalidation is.

use std::cell::RefCell;
use std::iter::FusedIterator;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use vm_memory::bitmap::BS;
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion, MemoryRegionAddress,
    Permissions as MemoryAccess, VolatileSlice,
};

use crate::fault::Fault;
use crate::invalidation::{DeviceTlbCompletion, DeviceTlbInvalidation, Invalidation};
use crate::iotlb::{Hit, Iotlb};
use crate::request::{Access, Permissions, Request};
use crate::sync::{Mutex, MutexGuard, RwLock, lock_until, unlock_fair};
use crate::traits::Translator;
use crate::types::{Gpa, Iova, Pasid, SourceId};

/// Most bytes that may be copied in one session. A longer one would make a guest's invalidation wait.
pub const SESSION_LIMIT_BYTES: usize = 256 << 10;

/// How long a device-TLB invalidation waits for open sessions. None lasts a fraction of it, unless the thread
/// that holds it is stuck.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// How a port asks for translations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// Every access is an untranslated request; the cache is the IOMMU's.
    Untranslated,
    /// Accesses use addresses from translation requests; the cache is the function's device-TLB.
    DeviceTlb,
}

/// What an invalidation visits.
struct PortCore {
    tlb: Mutex<Iotlb>,
}

/// All ports of one cache owner: of an IOMMU model, or of one function's device-TLB.
#[derive(Default)]
pub struct PortSet {
    ports: RwLock<Vec<Arc<PortCore>>>,
}

impl PortSet {
    /// Drops translations in every port. On return no session uses any of them.
    ///
    /// Waits for open sessions, so never call it from within one.
    pub fn invalidate(&self, invalidation: &Invalidation) {
        self.visit(|tlb| tlb.invalidate(invalidation));
    }

    /// The same for a device-TLB, but waits no longer than [`DRAIN_LIMIT`]: what a function fails to give up is
    /// a matter between it and the guest.
    pub fn invalidate_device_tlb(&self, invalidation: &DeviceTlbInvalidation) -> DeviceTlbCompletion {
        let mut completion = DeviceTlbCompletion::Complete;
        let mut deadline = None;
        for port in self.ports.read().iter() {
            let tlb = port.tlb.try_lock().or_else(|| {
                lock_until(&port.tlb, *deadline.get_or_insert_with(|| Instant::now() + DRAIN_LIMIT))
            });
            match tlb {
                Some(mut tlb) => tlb.invalidate_device_tlb(invalidation),
                None => completion = DeviceTlbCompletion::TimedOut,
            }
        }
        completion
    }

    /// Drops everything and waits for open sessions.
    pub fn clear(&self) {
        self.visit(Iotlb::clear_all);
    }

    fn visit(&self, drop_entries: impl Fn(&mut Iotlb)) {
        for port in self.ports.read().iter() {
            drop_entries(&mut port.tlb.lock());
        }
    }

    fn add(&self, port: Arc<PortCore>) {
        let mut ports = self.ports.write();
        // A port that is gone leaves its half here until the next one comes.
        ports.retain(|p| Arc::strong_count(p) > 1);
        ports.push(port);
    }

    /// Number of ports, some perhaps abandoned.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ports.read().len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Look-ups so far that found something and that found nothing, of all ports that there are. Waits for open
    /// sessions.
    #[must_use]
    pub fn looked_up(&self) -> LookUps {
        let mut all = LookUps::default();
        for port in self.ports.read().iter() {
            let tlb = port.tlb.lock();
            all.hits += tlb.hits();
            all.misses += tlb.misses();
        }
        all
    }

    /// Translations held by all ports together.
    #[must_use]
    pub fn cached(&self) -> usize {
        self.ports.read().iter().map(|p| p.tlb.lock().len()).sum()
    }
}

/// Look-ups in the caches of a set of ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LookUps {
    /// Found something.
    pub hits: u64,
    /// Found nothing.
    pub misses: u64,
}

/// What a function needs to reach memory; the machine makes one per function.
#[derive(Clone)]
pub struct Dma<M> {
    source: SourceId,
    memory: M,
    translator: Arc<dyn Translator>,
    ports: Arc<PortSet>,
}

impl<M: GuestMemoryBackend + Clone> Dma<M> {
    /// `ports` is the set that the model behind `translator` visits.
    pub fn new(source: SourceId, memory: M, translator: Arc<dyn Translator>, ports: Arc<PortSet>) -> Self {
        Self { source, memory, translator, ports }
    }

    /// A port for one thread, for untranslated requests.
    #[must_use]
    pub fn port(&self) -> Port<M> {
        self.port_in(PortKind::Untranslated, &self.ports)
    }

    /// A port for one thread that is part of a function's device-TLB. The function visits `device_tlb` when
    /// it is told to invalidate.
    #[must_use]
    pub fn device_tlb_port(&self, device_tlb: &PortSet) -> Port<M> {
        self.port_in(PortKind::DeviceTlb, device_tlb)
    }

    fn port_in(&self, kind: PortKind, set: &PortSet) -> Port<M> {
        let core = Arc::new(PortCore { tlb: Mutex::default() });
        set.add(core.clone());
        Port {
            kind,
            source: self.source,
            memory: self.memory.clone(),
            translator: self.translator.clone(),
            core,
        }
    }

    /// The same function with `translator` in front: one that passes on to [`Self::translator`] and counts.
    #[must_use]
    pub fn with_translator(&self, translator: Arc<dyn Translator>) -> Self {
        Self { translator, ..self.clone() }
    }

    /// The function's source id.
    #[must_use]
    pub fn source(&self) -> SourceId {
        self.source
    }

    /// The model, for page requests.
    #[must_use]
    pub fn translator(&self) -> &Arc<dyn Translator> {
        &self.translator
    }
}

/// The right of one thread to issue DMA for one function.
pub struct Port<M> {
    kind: PortKind,
    source: SourceId,
    memory: M,
    translator: Arc<dyn Translator>,
    core: Arc<PortCore>,
}

impl<M: GuestMemoryBackend> Port<M> {
    /// Opens a session: guest memory as `pasid` sees it, until the session ends.
    ///
    /// A session holds up invalidations, and with them a guest CPU. Keep it to one queue batch or
    /// [`SESSION_LIMIT_BYTES`]; never block in it, and call nothing that may invalidate.
    pub fn session(&mut self, pasid: Option<Pasid>) -> Session<'_, M> {
        Session {
            tlb: RefCell::new(Some(self.core.tlb.lock())),
            fault: RefCell::new(None),
            port: self,
            pasid,
        }
    }

    /// How the port asks.
    #[must_use]
    pub fn kind(&self) -> PortKind {
        self.kind
    }
}

/// Why an access inside a session did not go ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaFault {
    /// A translation request was answered without the permission: a page request may help.
    Missing {
        /// First address that could not be accessed.
        address: Iova,
        /// The access.
        access: Access,
    },
    /// The IOMMU refused the request.
    Refused(Fault),
    /// Translated, but there is no memory at the output.
    NoMemory {
        /// Input.
        address: Iova,
        /// Output.
        gpa: Gpa,
    },
}

impl DmaFault {
    /// The address that faulted.
    #[must_use]
    pub fn address(&self) -> Iova {
        match self {
            Self::Missing { address, .. } | Self::NoMemory { address, .. } => *address,
            Self::Refused(fault) => fault.request.address,
        }
    }
}

/// Guest memory as one function sees it under one PASID: vm-memory's `GuestMemory`, with `GuestAddress`
/// meaning an I/O virtual address.
///
/// The first fault is kept: [`Session::end`] returns it. A refused request is reported to the model when the
/// session ends, after its lock is gone.
pub struct Session<'p, M: GuestMemoryBackend> {
    /// `Some` until the session ends. A `RefCell` because `GuestMemory` is used through `&self`.
    tlb: RefCell<Option<MutexGuard<'p, Iotlb>>>,
    fault: RefCell<Option<DmaFault>>,
    port: &'p Port<M>,
    pasid: Option<Pasid>,
}

impl<M: GuestMemoryBackend> Session<'_, M> {
    /// Where `iova` lies, and how many bytes from there on are contiguous.
    ///
    /// # Errors
    /// The access may not go ahead; the session keeps the first such fault.
    #[inline]
    pub fn translate(&self, iova: Iova, access: Access) -> Result<Hit, DmaFault> {
        match self.cached(iova, access) {
            Some(hit) => Ok(hit),
            None => self.miss(iova, access).inspect_err(|fault| self.keep(*fault)),
        }
    }

    #[inline]
    fn cached(&self, iova: Iova, access: Access) -> Option<Hit> {
        self.tlb.borrow_mut().as_mut()?.lookup(self.pasid, iova, access)
    }

    #[cold]
    #[inline(never)]
    fn miss(&self, iova: Iova, access: Access) -> Result<Hit, DmaFault> {
        let source = self.port.source;
        let request = match self.port.kind {
            PortKind::Untranslated => Request::untranslated(source, self.pasid, iova, access),
            PortKind::DeviceTlb => Request::translation(source, self.pasid, iova, !access.is_write()),
        };
        let translation = self.port.translator.translate(&request).map_err(DmaFault::Refused)?;
        // What may be done later can be less than what was just allowed: a page that is written for the first time
        // is to be marked dirty first, but a zero-length read of it went ahead.
        let judged = self.port.kind == PortKind::Untranslated && access == Access::ZeroLengthRead;
        if translation.untranslated_only || !(judged || translation.permissions.allow(access)) {
            return Err(DmaFault::Missing { address: iova, access });
        }
        if let Some(tlb) = self.tlb.borrow_mut().as_mut() {
            tlb.insert(self.pasid, &translation);
        }
        let contiguous = (translation.range().last() - iova.0).saturating_add(1);
        Ok(Hit { gpa: translation.gpa(iova), contiguous })
    }

    fn keep(&self, fault: DmaFault) {
        self.fault.borrow_mut().get_or_insert(fault);
    }

    /// The first fault so far.
    #[must_use]
    pub fn fault(&self) -> Option<DmaFault> {
        *self.fault.borrow()
    }

    /// Ends the session and returns its first fault.
    #[must_use = "a fault tells that not all was moved"]
    pub fn end(self) -> Option<DmaFault> {
        self.fault()
    }
}

impl<M: GuestMemoryBackend> Drop for Session<'_, M> {
    fn drop(&mut self) {
        // Fair: an invalidation that waits gets the lock before this thread's next session does.
        if let Some(guard) = self.tlb.get_mut().take() {
            unlock_fair(guard);
        }
        if let Some(DmaFault::Refused(fault)) = self.fault.get_mut() {
            self.port.translator.report(fault);
        }
    }
}

impl<M: GuestMemoryBackend> GuestMemory for Session<'_, M> {
    type PhysicalMemory = M;
    type Bitmap = <M::R as GuestMemoryRegion>::B;

    fn check_range(&self, addr: GuestAddress, count: usize, access: MemoryAccess) -> bool {
        Slices::new(self, addr, count, access).all(|slice| slice.is_ok())
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: MemoryAccess,
    ) -> vm_memory::GuestMemoryResult<impl GuestMemorySliceIterator<'a, BS<'a, Self::Bitmap>>> {
        Ok(Slices::new(self, addr, count, access))
    }
}

fn access_of(access: MemoryAccess) -> Access {
    match access {
        MemoryAccess::No => Access::ZeroLengthRead,
        MemoryAccess::Read => Access::Read,
        MemoryAccess::Write => Access::Write,
        MemoryAccess::ReadWrite => Access::Atomic,
    }
}

/// Slices that cover a range of I/O virtual addresses, translated one block at a time.
struct Slices<'a, 'p, M: GuestMemoryBackend> {
    session: &'a Session<'p, M>,
    address: u64,
    remaining: usize,
    access: Access,
    /// Where the last slice lies, as the next one probably does.
    region: Option<&'a M::R>,
}

type MemorySlice<'a, M> = VolatileSlice<'a, BS<'a, <<M as GuestMemoryBackend>::R as GuestMemoryRegion>::B>>;

impl<'a, 'p, M: GuestMemoryBackend> Slices<'a, 'p, M> {
    fn new(session: &'a Session<'p, M>, start: GuestAddress, count: usize, access: MemoryAccess) -> Self {
        Self { session, address: start.0, remaining: count, access: access_of(access), region: None }
    }

    #[inline]
    fn region_of(&mut self, gpa: Gpa) -> Option<(&'a M::R, MemoryRegionAddress)> {
        let gpa = GuestAddress(gpa.0);
        let again = self.region.and_then(|region| Some((region, region.to_region_addr(gpa)?)));
        let found = again.or_else(|| self.session.port.memory.to_region_addr(gpa))?;
        self.region = Some(found.0);
        Some(found)
    }

    #[inline]
    fn next_slice(&mut self) -> vm_memory::GuestMemoryResult<MemorySlice<'a, M>> {
        let session = self.session;
        let iova = Iova(self.address);
        let hit = session
            .translate(iova, self.access)
            .map_err(|_| GuestMemoryError::InvalidGuestAddress(GuestAddress(self.address)))?;
        let Some((region, start)) = self.region_of(hit.gpa) else {
            session.keep(DmaFault::NoMemory { address: iova, gpa: hit.gpa });
            return Err(GuestMemoryError::InvalidGuestAddress(GuestAddress(hit.gpa.0)));
        };
        let available = hit.contiguous.min(region.len() - start.0);
        let length = self.remaining.min(usize::try_from(available).unwrap_or(usize::MAX));
        self.remaining -= length;
        if self.remaining > 0 {
            self.address =
                self.address.checked_add(length as u64).ok_or(GuestMemoryError::GuestAddressOverflow)?;
        }
        region.get_slice(start, length)
    }
}

impl<'a, M: GuestMemoryBackend> Iterator for Slices<'a, '_, M> {
    type Item = vm_memory::GuestMemoryResult<MemorySlice<'a, M>>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.remaining == 0 {
            return None;
        }
        let slice = self.next_slice();
        if slice.is_err() {
            self.remaining = 0;
        }
        Some(slice)
    }
}

impl<M: GuestMemoryBackend> FusedIterator for Slices<'_, '_, M> {}

impl<'a, M: GuestMemoryBackend> GuestMemorySliceIterator<'a, BS<'a, <M::R as GuestMemoryRegion>::B>>
    for Slices<'a, '_, M>
{
}

/// A machine without an IOMMU: every address means itself.
pub struct NoTranslation;

impl Translator for NoTranslation {
    fn translate(&self, request: &Request) -> Result<crate::Translation, Fault> {
        Ok(crate::Translation {
            iova: request.address,
            base: Gpa(request.address.0),
            page_bits: 63,
            permissions: Permissions::READ_WRITE,
            untranslated_only: false,
            tag: crate::Tag {
                domain: crate::DomainId(0),
                pasid: Pasid::ZERO,
                stage: crate::StageTag::PassThrough,
            },
        })
    }

    fn report(&self, _: &Fault) {}

    fn page_request(&self, _: &crate::PageRequest) -> crate::PageRequestOutcome {
        crate::PageRequestOutcome::Dropped
    }
}

#[cfg(test)]
mod tests;
