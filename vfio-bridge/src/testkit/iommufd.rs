//! `/dev/iommu`.

use iommu_core::IovaRange;
use rustix::event::EventfdFlags;
use rustix::io::Errno;
use zerocopy::FromBytes as _;

use super::faults::FakeFaults;
use super::{Call, FakeKernel, Object, Queue, World};
use crate::kernel::{Entries, FaultFile, HwInfo, HwptAlloc, Kernel, ObjectId, Partial, Result};
use crate::memory::HostRange;
use crate::sys::uapi::{HWPT_DATA_VTD_S1, INVALIDATE_DATA_VTD_S1, VtdS1, VtdS1Invalidate};

impl World {
    /// Whether something refers to an object.
    fn is_busy(&self, id: u32) -> bool {
        let of_object = |object: &Object| match object {
            Object::Parent { ioas, .. } => *ioas == id,
            Object::Nested { parent, faults, .. } => *parent == id || *faults == Some(id),
            Object::Ioas { .. } | Object::FaultQueue(_) | Object::Device(_) => false,
        };
        let open = match self.objects.get(&id) {
            Some(Object::FaultQueue(queue)) => queue.open,
            // Devices go when their file is closed.
            Some(Object::Device(_)) => true,
            _ => false,
        };
        let attached = self.devices.iter().any(|d| d.books.values().any(|table| *table == id));
        open || attached || self.objects.values().any(of_object)
    }

    fn paging(&mut self, request: &HwptAlloc<'_>) -> Result<Object> {
        if request.fault_queue.is_some() || request.nest_parent && !self.supports_nesting {
            return Err(Errno::OPNOTSUPP);
        }
        Ok(Object::Parent { ioas: request.parent.0, pasid: request.pasid })
    }

    fn nested(&self, request: &HwptAlloc<'_>) -> Result<Object> {
        let data = request.data.as_ref().ok_or(Errno::OPNOTSUPP)?;
        if request.nest_parent || data.kind != HWPT_DATA_VTD_S1 {
            return Err(Errno::OPNOTSUPP);
        }
        let table = VtdS1::read_from_bytes(data.bytes).map_err(|_| Errno::INVAL)?;
        let faults = request.fault_queue.map(|queue| queue.0);
        if let Some(id) = faults
            && !matches!(self.objects.get(&id), Some(Object::FaultQueue(_)))
        {
            return Err(Errno::NOENT);
        }
        Ok(Object::Nested { parent: request.parent.0, table, pasid: request.pasid, faults })
    }

    /// Drops what one entry covers, widened as the kernel widens it.
    fn flush(&mut self, hwpt: u32, entry: &VtdS1Invalidate) -> Result<()> {
        if entry.flags & !VtdS1Invalidate::LEAF != 0 || entry.reserved != 0 {
            return Err(Errno::OPNOTSUPP);
        }
        let all = entry.npages == u64::MAX;
        if entry.addr & 0xfff != 0 || all && entry.addr != 0 {
            return Err(Errno::INVAL);
        }
        assert!(entry.npages != 0, "no pages: the kernel would flush some other range");
        let first = entry.addr >> 12;
        let last = first.saturating_add(entry.npages - 1);
        let mask =
            1_u64.checked_shl(u64::BITS - (first ^ last).leading_zeros()).map_or(u64::MAX, |size| size - 1);
        for device in &mut self.devices {
            let hardware = &device.hardware;
            device.cached.retain(|(pasid, page)| {
                let other = hardware.get(pasid) != Some(&hwpt);
                other || !all && (page ^ first) & !mask != 0
            });
        }
        Ok(())
    }
}

impl Kernel for FakeKernel {
    fn destroy(&self, object: ObjectId) -> Result<()> {
        let mut world = self.world();
        world.enter(Call::Destroy).map_err(|f| f.errno)?;
        if !world.objects.contains_key(&object.0) {
            return Err(Errno::NOENT);
        }
        if world.is_busy(object.0) {
            world.audit.busy += 1;
            return Err(Errno::BUSY);
        }
        world.answer_all(object.0);
        world.objects.remove(&object.0);
        Ok(())
    }

    fn ioas_alloc(&self) -> Result<ObjectId> {
        let mut world = self.world();
        world.enter(Call::IoasAlloc).map_err(|f| f.errno)?;
        Ok(ObjectId(world.insert(Object::Ioas { mapped: Vec::new() })))
    }

    fn ioas_map(&self, ioas: ObjectId, iova: u64, memory: &HostRange) -> Result<()> {
        let mut world = self.world();
        world.enter(Call::IoasMap).map_err(|f| f.errno)?;
        let Some(Object::Ioas { mapped }) = world.objects.get_mut(&ioas.0) else { return Err(Errno::NOENT) };
        let last = iova.checked_add(memory.len_bytes() - 1).ok_or(Errno::OVERFLOW)?;
        let range = IovaRange::new(iova, last).ok_or(Errno::INVAL)?;
        if mapped.iter().any(|other| other.overlaps(&range)) {
            return Err(Errno::EXIST);
        }
        mapped.push(range);
        Ok(())
    }

    fn ioas_unmap(&self, ioas: ObjectId, range: IovaRange) -> Result<()> {
        let mut world = self.world();
        world.enter(Call::IoasUnmap).map_err(|f| f.errno)?;
        let Some(Object::Ioas { mapped }) = world.objects.get_mut(&ioas.0) else { return Err(Errno::NOENT) };
        mapped.sort_by_key(IovaRange::start);
        let before = mapped.len();
        let touched: Vec<_> = mapped.iter().filter(|m| m.overlaps(&range)).copied().collect();
        for area in touched {
            // Those before the one that would be cut are gone.
            if !range.contains(area.start()) || !range.contains(area.last()) {
                return Err(Errno::NOENT);
            }
            mapped.retain(|m| *m != area);
        }
        if mapped.len() == before { Err(Errno::NOENT) } else { Ok(()) }
    }

    fn hw_info(&self, device: ObjectId) -> Result<HwInfo> {
        let mut world = self.world();
        world.enter(Call::HwInfo).map_err(|f| f.errno)?;
        let Some(Object::Device(index)) = world.objects.get(&device.0) else { return Err(Errno::NOENT) };
        Ok(world.devices[*index].info)
    }

    fn hwpt_alloc(&self, request: &HwptAlloc<'_>) -> Result<ObjectId> {
        let mut world = self.world();
        world.enter(Call::HwptAlloc).map_err(|f| f.errno)?;
        if request.pasid && !world.supports_pasid {
            return Err(Errno::OPNOTSUPP);
        }
        let Some(Object::Device(device)) = world.objects.get(&request.device.0) else {
            return Err(Errno::NOENT);
        };
        let unit = world.devices[*device].unit;
        let object = match world.objects.get(&request.parent.0) {
            Some(Object::Ioas { .. }) => world.paging(request)?,
            Some(Object::Parent { .. }) => world.nested(request)?,
            _ => return Err(Errno::INVAL),
        };
        let id = world.insert(object);
        world.units.insert(id, unit);
        Ok(ObjectId(id))
    }

    fn hwpt_invalidate(&self, hwpt: ObjectId, entries: &Entries<'_>) -> std::result::Result<(), Partial> {
        let mut world = self.world();
        let failure = world.enter(Call::Invalidate).err();
        let refused = |done, errno| Err(Partial { done, errno });
        if let Some(failure) = failure.filter(|f| f.partial == 0) {
            return refused(0, failure.errno);
        }
        match world.objects.get(&hwpt.0) {
            None => return refused(0, Errno::NOENT),
            Some(Object::Nested { .. }) => {}
            Some(_) => return refused(0, Errno::INVAL),
        }
        let entry_len = size_of::<VtdS1Invalidate>();
        if entries.kind != INVALIDATE_DATA_VTD_S1 || entries.entry_len != entry_len {
            return refused(0, Errno::INVAL);
        }
        for (done, bytes) in entries.bytes.chunks(entry_len).enumerate() {
            if let Some(failure) = failure.filter(|f| f.partial == done) {
                return refused(done, failure.errno);
            }
            let entry = VtdS1Invalidate::read_from_bytes(bytes).map_err(|_| Errno::FAULT);
            if let Err(errno) = entry.and_then(|entry| world.flush(hwpt.0, &entry)) {
                return refused(done, errno);
            }
        }
        Ok(())
    }

    fn fault_queue_alloc(&self) -> Result<(ObjectId, Box<dyn FaultFile>)> {
        let mut world = self.world();
        world.enter(Call::FaultQueueAlloc).map_err(|f| f.errno)?;
        let event = rustix::event::eventfd(0, EventfdFlags::NONBLOCK)?;
        let shown = event.try_clone().map_err(|_| Errno::MFILE)?;
        let id = world.insert(Object::FaultQueue(Queue {
            open: true,
            unread: Default::default(),
            read: Default::default(),
            next_cookie: 1,
            event,
        }));
        Ok((ObjectId(id), Box::new(FakeFaults::new(self.clone(), id, shown))))
    }
}
