//! What every (device, PASID) is bound to, and how one binding becomes another.
//!
//! Not one step of it is assumed to succeed. Whatever fails, the pair is detached, so that the hardware refuses its
//! requests; only if even that fails does the binding stay, as *stuck*, together with all that the kernel needs
//! for it, and the next change begins with another attempt.

use std::collections::BTreeMap;
use std::sync::Arc;

use iommu_core::{Domain, HostError, Pasid, SourceId};
use rustix::io::Errno;

use crate::caps::Offer;
use crate::device::Device;
use crate::fault_queue::FaultQueue;
use crate::hwpt::{NestParent, Nested, TableKey, encode};
use crate::kernel::ObjectId;
use crate::object::refused;
use crate::tables::Tables;

/// The host's side of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// Guest memory as it is.
    Parent,
    /// A table of the guest's.
    Table(TableKey),
}

impl Target {
    /// Attached with a fault queue.
    fn faults(&self) -> bool {
        matches!(self, Self::Table(key) if key.faults)
    }
}

#[derive(Clone, Copy, Debug)]
struct Binding {
    domain: Domain,
    target: Target,
    /// Could not be detached.
    stuck: bool,
}

/// A device with all its bindings. What is not in `bound` is blocked.
pub(crate) struct Slot {
    pub(crate) device: Device,
    pub(crate) offer: Offer,
    /// Number of its nest parent.
    pub(crate) parent: usize,
    bound: BTreeMap<Option<Pasid>, Binding>,
}

impl Slot {
    pub(crate) fn new(device: Device, offer: Offer, parent: usize) -> Self {
        Self { device, offer, parent, bound: BTreeMap::new() }
    }

    /// The host's side of a domain; `None`: blocked.
    fn target(&self, pasid: Option<Pasid>, domain: &Domain) -> Result<Option<Target>, HostError> {
        let table = match domain {
            Domain::Blocked => return Ok(None),
            Domain::PassThrough { .. } => {
                self.device.check_pasid(pasid.map(Pasid::get), &self.offer)?;
                return Ok(Some(Target::Parent));
            }
            Domain::FirstStage { id, table } => {
                self.device.check_pasid(pasid.map(Pasid::get), &self.offer)?;
                encode(table, &self.offer).map(|table| (*id, table))
            }
            // No second stage of a guest can be composed with the host's.
            Domain::SecondStage { .. } | Domain::Nested { .. } | Domain::Mapped { .. } => {
                Err(Errno::OPNOTSUPP)
            }
        };
        let (domain, table) = table.map_err(|errno| refused("nest a guest's tables", &self.device, errno))?;
        Ok(Some(Target::Table(TableKey {
            domain,
            pasid: pasid.unwrap_or(Pasid::ZERO),
            table,
            faults: self.offer.capabilities.page_requests,
            parent: self.parent,
        })))
    }
}

/// Everything that is bound. Forgetting the page requests of an attachment that went is the caller's part: a change
/// says so by calling what it was given.
#[derive(Default)]
pub(crate) struct Bindings {
    pub(crate) devices: BTreeMap<SourceId, Slot>,
    pub(crate) tables: Tables,
    pub(crate) faults: Option<Arc<FaultQueue>>,
    pub(crate) parents: Vec<Arc<NestParent>>,
}

/// Called when the kernel has answered all page requests of an attachment.
pub(crate) type Gone<'a> = &'a mut dyn FnMut(SourceId, Option<Pasid>);

impl Bindings {
    /// Makes one binding another.
    ///
    /// # Errors
    /// The pair is blocked now; or stuck, and the error says so.
    pub(crate) fn change(
        &mut self,
        source: SourceId,
        pasid: Option<Pasid>,
        domain: &Domain,
        gone: Gone<'_>,
    ) -> Result<(), HostError> {
        let slot = self.devices.get(&source);
        let slot = slot.ok_or_else(|| refused("bind", format!("device {source}"), Errno::NODEV))?;
        let old = slot.bound.get(&pasid);
        let same = match old {
            None => *domain == Domain::Blocked,
            Some(old) => old.domain == *domain && !old.stuck,
        };
        if same {
            return Ok(());
        }
        let bound = match slot.target(pasid, domain) {
            Ok(None) => return self.unbind(source, pasid, gone),
            Ok(Some(target)) => {
                self.bind(source, pasid, Binding { domain: *domain, target, stuck: false }, gone)
            }
            Err(error) => Err(error),
        };
        // A refusal leaves nothing behind.
        bound.map_err(|error| match self.unbind(source, pasid, gone) {
            Ok(()) => error,
            Err(stuck) => stuck,
        })
    }

    /// On an error, what was bound before is in an unknown state and to be unbound.
    fn bind(
        &mut self,
        source: SourceId,
        pasid: Option<Pasid>,
        new: Binding,
        gone: Gone<'_>,
    ) -> Result<(), HostError> {
        let Some(old) = self.devices.get(&source).map(|slot| slot.bound.get(&pasid).copied()) else {
            return Ok(());
        };
        let table = self.acquire(source, &new.target)?;
        if let Some(old) = old
            && old.target == new.target
            && !old.stuck
        {
            self.release(&old.target);
            self.record(source, pasid, new);
            return Ok(());
        }
        // Hosts lose count of a device's fault queues when a table with one is replaced under its requests without
        // PASID, or when such a replacement fails.
        let miscounted = |old: &Binding| pasid.is_none() && (old.target.faults() || new.target.faults());
        let detach_first = old.is_some_and(|old| old.stuck || miscounted(&old));
        let detached = if detach_first { self.unbind(source, pasid, gone) } else { Ok(()) };
        let attached = detached.and_then(|()| match self.devices.get(&source) {
            Some(slot) => slot.device.attach(pasid.map(Pasid::get), table),
            None => Ok(()),
        });
        if attached.is_ok() {
            if let Some(replaced) = self.record(source, pasid, new) {
                gone(source, pasid);
                self.release(&replaced.target);
            }
            return attached;
        }
        if self.is_bound(source, pasid) {
            self.release(&new.target);
        } else {
            // Whether the host took it or not, it is to be detached, and held until it is.
            self.record(source, pasid, Binding { stuck: true, ..new });
        }
        attached
    }

    /// Blocks a pair.
    ///
    /// # Errors
    /// It is stuck.
    pub(crate) fn unbind(
        &mut self,
        source: SourceId,
        pasid: Option<Pasid>,
        gone: Gone<'_>,
    ) -> Result<(), HostError> {
        let Some(slot) = self.devices.get_mut(&source) else { return Ok(()) };
        let Some(binding) = slot.bound.get_mut(&pasid) else { return Ok(()) };
        if let Err(error) = slot.device.detach(pasid.map(Pasid::get)) {
            binding.stuck = true;
            return Err(error);
        }
        gone(source, pasid);
        if let Some(binding) = slot.bound.remove(&pasid) {
            self.release(&binding.target);
        }
        Ok(())
    }

    /// Blocks whatever uses a table.
    ///
    /// # Errors
    /// The first that is stuck.
    pub(crate) fn unbind_table(&mut self, key: &TableKey, gone: Gone<'_>) -> Result<(), HostError> {
        let uses = |(source, slot): (&SourceId, &Slot)| {
            let of_table = slot.bound.iter().filter(|(_, b)| b.target == Target::Table(*key));
            of_table.map(|(pasid, _)| (*source, *pasid)).collect::<Vec<_>>()
        };
        let users: Vec<_> = self.devices.iter().flat_map(uses).collect();
        let mut result = Ok(());
        for (source, pasid) in users {
            let done = self.unbind(source, pasid, gone);
            result = result.and(done);
        }
        result
    }

    /// Takes a device out. What cannot be detached goes when its file is closed.
    pub(crate) fn remove(&mut self, source: SourceId, gone: Gone<'_>) -> Option<Device> {
        let pasids: Vec<_> = self.devices.get(&source)?.bound.keys().rev().copied().collect();
        for pasid in pasids {
            if let Err(error) = self.unbind(source, pasid, gone) {
                log::warn!("{error}");
            }
        }
        let slot = self.devices.remove(&source)?;
        if slot.bound.is_empty() {
            return Some(slot.device);
        }
        drop(slot.device);
        for (pasid, binding) in slot.bound {
            gone(source, pasid);
            self.release(&binding.target);
        }
        None
    }

    fn is_bound(&self, source: SourceId, pasid: Option<Pasid>) -> bool {
        self.devices.get(&source).is_some_and(|slot| slot.bound.contains_key(&pasid))
    }

    fn record(&mut self, source: SourceId, pasid: Option<Pasid>, binding: Binding) -> Option<Binding> {
        self.devices.get_mut(&source)?.bound.insert(pasid, binding)
    }

    fn acquire(&mut self, source: SourceId, target: &Target) -> Result<ObjectId, HostError> {
        let none = || refused("bind", format!("device {source}"), Errno::NODEV);
        let slot = self.devices.get(&source).ok_or_else(none)?;
        let parent = self.parents.get(slot.parent).ok_or_else(none)?;
        match target {
            Target::Parent => Ok(parent.id()),
            Target::Table(key) => self.tables.acquire(*key, || {
                let faults = self.faults.clone().filter(|_| key.faults);
                Nested::new(parent, slot.device.id(), &key.table, faults)
            }),
        }
    }

    fn release(&mut self, target: &Target) {
        if let Target::Table(key) = target {
            self.tables.release(key);
        }
    }
}
