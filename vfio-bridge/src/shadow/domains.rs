//! Guest domains that the host keeps a copy of.

use std::collections::BTreeMap;

use iommu_core::{Domain, DomainId, GuestMappings, HostError, Invalidation, IovaRange, Scope, SourceId};
use rustix::io::Errno;

use super::areas::{Area, Areas, Changes};
use super::plan::{MAPPINGS_LIMIT, Source, plan};
use super::spaces::AddressSpaces;
use crate::invalidate::Pending;
use crate::memory::HostRange;
use crate::object::{SHADOW, refused};

/// Names a copy. A domain may have several: one for each device where address spaces are not shared, and one that is
/// kept only because a device could not be detached from it.
pub(super) type Number = usize;

/// Where mappings come from and lead to.
#[derive(Clone, Copy)]
pub(super) struct Guest<'a> {
    pub(super) mappings: Option<&'a dyn GuestMappings>,
    /// In ascending order.
    pub(super) ram: &'a [HostRange],
}

impl Guest<'_> {
    /// The memory that an area leads to.
    fn memory(&self, area: &Area) -> Option<HostRange> {
        let there = area.memory()?;
        self.ram.iter().find_map(|range| range.part(&there))
    }
}

/// One domain's copy.
struct Copy<Space> {
    space: Space,
    id: DomainId,
    domain: Domain,
    /// Whose alone it is.
    owner: Option<SourceId>,
    users: usize,
    areas: Areas,
    pending: Pending,
    /// What is mapped is not known: kept for those who cannot be detached, and not for others.
    broken: bool,
    /// It was told that something is left out.
    complained: bool,
}

/// All copies.
pub(super) struct Domains<S: AddressSpaces> {
    copies: BTreeMap<Number, Copy<S::Space>>,
    next: Number,
}

impl<S: AddressSpaces> Default for Domains<S> {
    fn default() -> Self {
        Self { copies: BTreeMap::new(), next: 0 }
    }
}

impl<S: AddressSpaces> Domains<S> {
    /// One more user of a domain's copy, which is made and filled if there is none.
    ///
    /// # Errors
    /// The host refused, or the guest maps too much. There is no user more then.
    pub(super) fn acquire(
        &mut self,
        spaces: &mut S,
        guest: Guest<'_>,
        source: SourceId,
        (id, domain): (DomainId, Domain),
    ) -> Result<Number, HostError> {
        let owner = (!S::SHARED).then_some(source);
        let fits = |copy: &Copy<_>| !copy.broken && copy.domain == domain && copy.owner == owner;
        if let Some((number, copy)) = self.copies.iter_mut().find(|(_, copy)| fits(copy)) {
            copy.users += 1;
            return Ok(*number);
        }
        let space = spaces.make(source)?;
        let mut copy = Copy {
            space,
            id,
            domain,
            owner,
            users: 1,
            areas: Areas::default(),
            pending: Pending::default(),
            broken: false,
            complained: false,
        };
        copy.update(spaces, guest, &IovaRange::ALL)?;
        let number = self.next;
        self.next += 1;
        self.copies.insert(number, copy);
        Ok(number)
    }

    /// The host's address space.
    pub(super) fn space(&self, number: Number) -> Option<&S::Space> {
        self.copies.get(&number).map(|copy| &copy.space)
    }

    /// One user less; after the last, the copy goes.
    pub(super) fn release(&mut self, number: Number) {
        let Some(copy) = self.copies.get_mut(&number) else { return };
        copy.users -= 1;
        if copy.users == 0 {
            self.copies.remove(&number);
        }
    }

    /// Takes note of an invalidation.
    pub(super) fn note(&mut self, invalidation: &Invalidation) {
        let (domain, range) = match invalidation.scope {
            Scope::All => (None, IovaRange::ALL),
            // A PASID's range is of first-stage addresses, and nothing here has a first stage.
            Scope::Domain(domain) | Scope::Pasid { domain, .. } | Scope::PasidRange { domain, .. } => {
                (Some(domain), IovaRange::ALL)
            }
            Scope::DomainRange { domain, range } => (Some(domain), range),
        };
        for copy in self.copies.values_mut().filter(|copy| domain.is_none_or(|domain| domain == copy.id)) {
            copy.pending.add(&range, true);
        }
    }

    /// Makes copies what the guest maps now, where invalidations were noted. `failed` takes those of which that
    /// could not be done: what they map is unknown, and their users are to be detached.
    pub(super) fn update(
        &mut self,
        spaces: &mut S,
        guest: Guest<'_>,
        mut failed: impl FnMut(Number, HostError),
    ) {
        for (number, copy) in self.copies.iter_mut().filter(|(_, copy)| !copy.pending.is_empty()) {
            let pending = std::mem::take(&mut copy.pending);
            if copy.broken {
                continue;
            }
            for range in pending.ranges() {
                if let Err(error) = copy.update(spaces, guest, &range) {
                    copy.broken = true;
                    failed(*number, error);
                    break;
                }
            }
        }
    }
}

impl<Space> Copy<Space> {
    /// Makes the copy what the guest maps in `range`. First what is to go: on return, successful or not, a device that
    /// is attached reaches nothing in `range` that the guest had taken back, or the error is to have it detached.
    fn update<S>(&mut self, spaces: &mut S, guest: Guest<'_>, range: &IovaRange) -> Result<(), HostError>
    where
        S: AddressSpaces<Space = Space>,
    {
        let changes = guest.mappings.ok_or(Errno::OPNOTSUPP).and_then(|mappings| {
            plan(&Source { mappings, domain: &self.domain, ram: guest.ram }, &self.areas, range)
        });
        let changes = changes.map_err(|errno| self.refused(errno))?;
        let Changes { gone, new, nowhere, .. } = changes;
        if let Some(mapping) = nowhere.filter(|_| !self.complained) {
            // Once: a guest can do it any number of times.
            self.complained = true;
            log::info!(
                "domain {}: {:#x} leads to {:#x}, which is no memory; devices cannot use it",
                self.id.0,
                mapping.range.start(),
                mapping.base.0
            );
        }
        for range in &gone {
            spaces.unmap(&self.space, range)?;
            self.areas.remove(range);
        }
        for area in new {
            let memory = guest.memory(&area).ok_or_else(|| self.refused(Errno::FAULT))?;
            spaces.map(&self.space, &area, &memory)?;
            self.areas.insert(area);
        }
        Ok(())
    }

    fn refused(&self, errno: Errno) -> HostError {
        let name = format!("domain {}", self.id.0);
        let object = match errno {
            Errno::NOSPC => format!("{name}, which has more than {MAPPINGS_LIMIT} mappings"),
            Errno::TOOBIG => format!("{name}, whose tables take too long to read"),
            Errno::OPNOTSUPP => format!("{name}, whose tables nobody reads"),
            _ => name,
        };
        refused(SHADOW, object, errno)
    }
}
