//! [`HostIommu`] over copies of a guest's tables.
//!
//! There is one lock. It is taken by a CPU thread whose turn it is in the model; nothing is called with it held but
//! the kernel and [`GuestMappings`].

use std::collections::BTreeMap;
use std::sync::Arc;

use iommu_core::sync::{Mutex, MutexGuard};
use iommu_core::{
    Capabilities, Domain, DomainId, GuestMappings, HostError, HostIommu, Invalidation, PageResponse, Pasid,
    SourceId, Translator,
};
use rustix::io::Errno;
use vm_memory::GuestMemoryMmap;
use vm_memory::bitmap::Bitmap;

use super::domains::{Domains, Guest, Number};
use super::spaces::AddressSpaces;
use crate::caps::Offer;
use crate::memory::HostRange;
use crate::object::{BIND, SHADOW, refused};

/// Devices of one guest whose second-stage tables are copied into the host's; where to, says `S`.
pub struct Shadow<S: AddressSpaces> {
    state: Mutex<State<S>>,
}

/// What a device is attached to.
#[derive(Clone, Copy)]
enum Target {
    /// Guest memory as it is.
    Memory,
    Copy(Number),
}

struct Binding {
    domain: Domain,
    target: Target,
    /// Could not be detached.
    stuck: bool,
}

struct Slot {
    offer: Offer,
    /// `None`: blocked.
    bound: Option<Binding>,
}

impl Slot {
    fn passes_through(&mut self) -> Option<&mut Binding> {
        self.bound.as_mut().filter(|bound| !bound.stuck && passes_through(&bound.domain))
    }
}

struct State<S: AddressSpaces> {
    devices: BTreeMap<SourceId, Slot>,
    domains: Domains<S>,
    /// In ascending order.
    ram: Vec<HostRange>,
    mappings: Option<Arc<dyn GuestMappings>>,
    spaces: S,
}

impl<S: AddressSpaces> Shadow<S> {
    /// Without devices. `ram` is what `spaces` know of already.
    pub(crate) fn over(spaces: S, ram: Vec<HostRange>) -> Self {
        let (devices, domains) = (BTreeMap::new(), Domains::default());
        let shadow = Self { state: Mutex::new(State { devices, domains, ram, mappings: None, spaces }) };
        shadow.lock().sort();
        shadow
    }

    /// From now on the guest's tables are read by `mappings`; before, no domain that has any can be bound. They
    /// depend on what the guest is offered, and that on the devices.
    pub fn set_mappings(&self, mappings: Arc<dyn GuestMappings>) {
        self.lock().mappings = Some(mappings);
    }

    /// Takes a device in. `add` says how wide addresses may be.
    pub(crate) fn insert(
        &self,
        source: SourceId,
        add: impl FnOnce(&mut S) -> Result<u32, HostError>,
    ) -> Result<Offer, HostError> {
        let mut state = self.state.lock();
        if state.devices.contains_key(&source) {
            return Err(refused(BIND, format!("device {source}"), Errno::EXIST));
        }
        let offer = Offer::shadow(add(&mut state.spaces)?);
        state.devices.insert(source, Slot { offer: offer.clone(), bound: None });
        Ok(offer)
    }

    /// Lets devices at guest memory. Best after the first device: then an iommufd pins it range by range, and a
    /// failure names its range.
    ///
    /// # Errors
    /// The host refused a range; those before it stay.
    pub fn add_memory<B>(&self, memory: &GuestMemoryMmap<B>) -> Result<(), HostError>
    where
        B: Bitmap + Send + Sync + 'static,
    {
        let ranges = HostRange::of_memory(memory);
        let mut state = self.state.lock();
        for range in ranges.map_err(|errno| refused("find", "guest memory", errno))? {
            state.spaces.add_memory(&range)?;
            state.ram.push(range);
            state.sort();
        }
        Ok(())
    }

    /// Takes a device out: it is detached, and its file closed.
    pub fn remove_device(&self, source: SourceId) {
        let mut state = self.state.lock();
        if let Err(error) = state.unbind(source) {
            log::warn!("{error}");
        }
        // What could not be detached is so when the file is closed.
        state.spaces.remove(source);
        let slot = state.devices.remove(&source);
        if let Some(Binding { target: Target::Copy(number), .. }) = slot.and_then(|slot| slot.bound) {
            state.domains.release(number);
        }
    }

    pub(super) fn look<T>(&self, at: impl FnOnce(&S) -> T) -> T {
        at(&self.lock().spaces)
    }

    fn lock(&self) -> MutexGuard<'_, State<S>> {
        self.state.lock()
    }
}

impl<S: AddressSpaces> State<S> {
    fn sort(&mut self) {
        self.ram.sort_by_key(|range| range.guest().start());
    }

    /// Makes one binding another.
    ///
    /// # Errors
    /// The device is blocked now; or stuck, and the error says so.
    fn change(&mut self, source: SourceId, domain: &Domain) -> Result<(), HostError> {
        let slot = self.devices.get_mut(&source);
        let slot = slot.ok_or_else(|| refused(BIND, format!("device {source}"), Errno::NODEV))?;
        let same = match &slot.bound {
            None => *domain == Domain::Blocked,
            Some(bound) => bound.domain == *domain && !bound.stuck,
        };
        if same {
            return Ok(());
        }
        if let Some(bound) = slot.passes_through().filter(|_| passes_through(domain)) {
            bound.domain = *domain;
            return Ok(());
        }
        // Detached in between: on VT-d no replacement is without a gap anyway, and one that fails leaves it open what
        // the hardware uses.
        self.unbind(source)?;
        if *domain == Domain::Blocked {
            return Ok(());
        }
        self.bind(source, domain).map_err(|error| match self.unbind(source) {
            Ok(()) => error,
            Err(stuck) => stuck,
        })
    }

    /// Binds a blocked device. On an error it is to be unbound.
    fn bind(&mut self, source: SourceId, domain: &Domain) -> Result<(), HostError> {
        let Self { devices, domains, ram, mappings, spaces } = self;
        let Some(slot) = devices.get_mut(&source) else { return Ok(()) };
        // Whether the host takes it or not, the device is to be detached, and what it needs held until it is.
        let bound = slot.bound.insert(Binding { domain: *domain, target: Target::Memory, stuck: true });
        match copied(domain) {
            Some(id) => {
                let guest = Guest { mappings: mappings.as_deref(), ram };
                let number = domains.acquire(spaces, guest, source, (id, *domain))?;
                bound.target = Target::Copy(number);
                domains.space(number).map_or(Ok(()), |space| spaces.attach(source, space))?;
            }
            None if passes_through(domain) => spaces.attach_memory(source, ram)?,
            None => {
                let name = format!("device {source}{NO_FIRST_STAGE}");
                return Err(refused(SHADOW, name, Errno::OPNOTSUPP));
            }
        }
        bound.stuck = false;
        Ok(())
    }

    /// Blocks a device.
    ///
    /// # Errors
    /// It is stuck.
    fn unbind(&mut self, source: SourceId) -> Result<(), HostError> {
        let Some(slot) = self.devices.get_mut(&source) else { return Ok(()) };
        let Some(bound) = &mut slot.bound else { return Ok(()) };
        bound.stuck = true;
        self.spaces.detach(source)?;
        if let Target::Copy(number) = bound.target {
            self.domains.release(number);
        }
        slot.bound = None;
        Ok(())
    }

    /// Blocks whatever uses a copy.
    ///
    /// # Errors
    /// The first that is stuck.
    fn unbind_copy(&mut self, copy: Number) -> Result<(), HostError> {
        let uses =
            |slot: &Slot| matches!(slot.bound, Some(Binding { target: Target::Copy(n), .. }) if n == copy);
        let users: Vec<_> =
            self.devices.iter().filter(|(_, slot)| uses(slot)).map(|(source, _)| *source).collect();
        let mut result = Ok(());
        for source in users {
            let done = self.unbind(source);
            result = result.and(done);
        }
        result
    }
}

fn passes_through(domain: &Domain) -> bool {
    matches!(domain, Domain::PassThrough { .. })
}

/// The name of a domain whose mappings can be copied.
fn copied(domain: &Domain) -> Option<DomainId> {
    match domain {
        Domain::SecondStage { id, .. } | Domain::Mapped { id } => Some(*id),
        Domain::Blocked | Domain::PassThrough { .. } | Domain::FirstStage { .. } | Domain::Nested { .. } => {
            None
        }
    }
}

/// Why a guest is refused who did not believe what it was offered.
const NO_FIRST_STAGE: &str =
    ", for which the host cannot nest: first stages and PASIDs (and SVA with them) cannot be shadowed";

impl<S: AddressSpaces> HostIommu for Shadow<S> {
    fn capabilities(&self) -> Capabilities {
        let state = self.lock();
        let all = state.devices.values().map(|slot| slot.offer.capabilities);
        all.reduce(|all, one| all.intersect(&one)).unwrap_or(Capabilities::NONE)
    }

    fn set_domain(&self, source: SourceId, pasid: Option<Pasid>, domain: &Domain) -> Result<(), HostError> {
        match pasid.filter(|pasid| *pasid != Pasid::ZERO) {
            None => self.lock().change(source, domain),
            Some(_) if *domain == Domain::Blocked => Ok(()),
            Some(pasid) => {
                let name = format!("device {source} PASID {pasid}{NO_FIRST_STAGE}");
                Err(refused(SHADOW, name, Errno::OPNOTSUPP))
            }
        }
    }

    fn invalidate(&self, invalidation: &Invalidation) {
        self.lock().domains.note(invalidation);
    }

    fn sync(&self) -> Result<(), HostError> {
        let mut state = self.lock();
        let State { domains, ram, mappings, spaces, .. } = &mut *state;
        let mut failed = Vec::new();
        let guest = Guest { mappings: mappings.as_deref(), ram };
        domains.update(spaces, guest, |number, error| failed.push((number, error)));
        let mut result = Ok(());
        for (number, error) in failed {
            let unbound = state.unbind_copy(number);
            result = result.and(unbound.and(Err(error)));
        }
        result
    }

    fn drain_page_requests(&self, _: &dyn Translator) -> Result<(), HostError> {
        // There are none: what a second stage maps is there.
        Ok(())
    }

    fn respond(&self, _: &PageResponse) -> Result<(), HostError> {
        // Nothing is ever asked for.
        Ok(())
    }
}

impl<S: AddressSpaces> Drop for Shadow<S> {
    fn drop(&mut self) {
        let sources: Vec<_> = self.lock().devices.keys().copied().collect();
        for source in sources {
            self.remove_device(source);
        }
    }
}
