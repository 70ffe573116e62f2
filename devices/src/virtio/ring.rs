//! One split virtqueue (§2.7) over a [`Lane`]: each step is a session of its own.

use iommu_core::{Iova, Session};
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryBackend, Permissions};

use super::chain::Chain;
use super::common::QueuePlace;
use super::lane::Lane;
use super::stop::{Mistake, Stop};

/// Bytes of a descriptor, of an entry of the available ring, and of one of the used ring (§2.7).
const ENTRY: (usize, usize, usize) = (16, 2, 8);
/// Bytes of a ring beside its entries: flags, index, event index.
const RING_HEAD: usize = 6;

/// A queue in use.
pub(super) struct Ring {
    number: u16,
    queue: Queue,
}

impl Ring {
    /// # Errors
    /// No queue can be at such a place.
    pub(super) fn new(number: u16, place: &QueuePlace, event_idx: bool) -> Result<Self, Mistake> {
        let build = || {
            let mut queue = Queue::new(place.size)?;
            queue.try_set_desc_table_address(GuestAddress(place.descriptors))?;
            queue.try_set_avail_ring_address(GuestAddress(place.available))?;
            queue.try_set_used_ring_address(GuestAddress(place.used))?;
            queue.set_event_idx(event_idx);
            queue.set_ready(true);
            Ok::<_, virtio_queue::Error>(queue)
        };
        Ok(Self { number, queue: build().map_err(|_| Mistake::Place)? })
    }

    /// Takes the next chain.
    pub(super) fn pop<M: GuestMemoryBackend>(&mut self, lane: &mut Lane<M>) -> Result<Option<Chain>, Stop> {
        let queue = &mut self.queue;
        Ok(lane.session(|session| {
            check(queue, session)?;
            let next = queue.iter(session).map_err(|error| mistake(&error, session))?.next();
            let chain = next.map(Chain::read).transpose()?;
            if chain.is_none() { unless_fault(session).map(|()| None) } else { Ok(chain) }
        })??)
    }

    /// Gives a chain back, and tells the driver if it wants to know.
    pub(super) fn push<M: GuestMemoryBackend>(
        &mut self,
        lane: &mut Lane<M>,
        head: u16,
        written: u32,
    ) -> Result<(), Stop> {
        let queue = &mut self.queue;
        let tell = lane.session(|session| {
            let used = queue.add_used(session, head, written).and_then(|()| wants_to_know(queue, session));
            used.map_err(|error| mistake(&error, session))
        })??;
        if tell {
            lane.interrupt(self.number)?;
        }
        Ok(())
    }

    /// Asks the driver not to notify while the queue is being served.
    pub(super) fn quiet<M: GuestMemoryBackend>(&mut self, lane: &mut Lane<M>) -> Result<(), Stop> {
        let queue = &mut self.queue;
        Ok(lane.session(|session| {
            check(queue, session)?;
            queue.disable_notification(session).map_err(|error| mistake(&error, session))
        })??)
    }

    /// Asks the driver to notify again. `true`: something came in between.
    pub(super) fn listen<M: GuestMemoryBackend>(&mut self, lane: &mut Lane<M>) -> Result<bool, Stop> {
        let queue = &mut self.queue;
        Ok(lane.session(|session| {
            queue.enable_notification(session).map_err(|error| mistake(&error, session))
        })??)
    }
}

/// Sees that all three parts can be accessed, so that what follows finds them in the port's cache.
fn check<M: GuestMemoryBackend>(queue: &Queue, session: &Session<'_, M>) -> Result<(), Mistake> {
    let size = usize::from(queue.size());
    let parts = [
        (queue.desc_table(), ENTRY.0 * size, Permissions::Read),
        (queue.avail_ring(), RING_HEAD + ENTRY.1 * size, Permissions::Read),
        (queue.used_ring(), RING_HEAD + ENTRY.2 * size, Permissions::Write),
    ];
    for (address, len, access) in parts {
        if !session.check_range(GuestAddress(address), len, access) {
            let at = session.fault().map_or(Iova(address), |fault| fault.address());
            return Err(Mistake::Memory(at));
        }
    }
    Ok(())
}

fn wants_to_know<M: GuestMemoryBackend>(
    queue: &mut Queue,
    session: &Session<'_, M>,
) -> Result<bool, virtio_queue::Error> {
    if queue.event_idx_enabled() {
        return queue.needs_notification(session);
    }
    let flags = session.read_obj::<u16>(GuestAddress(queue.avail_ring()));
    let flags = flags.map_err(virtio_queue::Error::GuestMemory)?;
    Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
}

fn unless_fault<M: GuestMemoryBackend>(session: &Session<'_, M>) -> Result<(), Mistake> {
    session.fault().map_or(Ok(()), |fault| Err(Mistake::Memory(fault.address())))
}

fn mistake<M: GuestMemoryBackend>(error: &virtio_queue::Error, session: &Session<'_, M>) -> Mistake {
    match (error, session.fault()) {
        (_, Some(fault)) => Mistake::Memory(fault.address()),
        (virtio_queue::Error::InvalidAvailRingIndex, None) => Mistake::Index,
        (_, None) => Mistake::Place,
    }
}
