//! `/dev/iommu`.

use iommu_core::{IovaRange, Permissions};
use rustix::event::EventfdFlags;
use rustix::io::Errno;
use zerocopy::FromBytes as _;

use super::faults::FakeFaults;
use super::space::{LAST, Space, Target, usable};
use super::{Call, Damage, FakeKernel, Object, Queue, World};
use crate::kernel::{
    Entries, FaultFile, HwInfo, HwptAlloc, IoasCopy, Kernel, ObjectId, Partial, Payload, Result,
};
use crate::memory::{HostRange, INTERRUPT_WINDOW, SharedMemory};
use crate::sys::uapi::{HWPT_DATA_VTD_S1, INVALIDATE_DATA_VTD_S1, VtdS1, VtdS1Invalidate};

/// What no hardware reaches.
const BEYOND: IovaRange = match IovaRange::new(LAST + 1, u64::MAX) {
    Some(range) => range,
    None => IovaRange::ALL,
};

impl World {
    /// Whether something refers to an object.
    fn is_busy(&self, id: u32) -> bool {
        let of_object = |object: &Object| match object {
            Object::Paging { ioas, faults, .. } => *ioas == id || *faults == Some(id),
            Object::Nested { parent, faults, .. } => *parent == id || *faults == Some(id),
            Object::Ioas(_) | Object::FaultQueue(_) | Object::Device(_) => false,
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
        let recoverable_parent = request.nest_parent && request.fault_queue.is_some();
        let cannot_nest = request.nest_parent && !self.supports_nesting;
        if request.data.is_some() || recoverable_parent || cannot_nest {
            return Err(Errno::OPNOTSUPP);
        }
        let space = self.space(request.parent.0)?;
        if space.has(&BEYOND) {
            return Err(Errno::ADDRINUSE);
        }
        if request.nest_parent && space.has_read_only() {
            return Err(Errno::INVAL);
        }
        Ok(Object::Paging {
            ioas: request.parent.0,
            pasid: request.pasid,
            nest: request.nest_parent,
            faults: self.fault_queue_of(request)?,
        })
    }

    fn fault_queue_of(&self, request: &HwptAlloc<'_>) -> Result<Option<u32>> {
        let Some(ObjectId(id)) = request.fault_queue else { return Ok(None) };
        let known = matches!(self.objects.get(&id), Some(Object::FaultQueue(_)));
        if known { Ok(Some(id)) } else { Err(Errno::NOENT) }
    }

    /// Whether read-only mappings are refused: VT-d hosts allow none below nested tables.
    pub(super) fn is_nest_parent(&self, ioas: u32) -> bool {
        let feeds =
            |object: &Object| matches!(object, Object::Paging { ioas: fed, nest: true, .. } if *fed == ioas);
        self.objects.values().any(feeds)
    }

    pub(super) fn space(&mut self, ioas: u32) -> Result<&mut Space> {
        match self.objects.get_mut(&ioas) {
            Some(Object::Ioas(space)) => Ok(space),
            _ => Err(Errno::NOENT),
        }
    }

    /// Whether hardware uses an address space, so that its limits show.
    pub(super) fn is_used(&self, ioas: u32) -> bool {
        let feeds = |object: &Object| matches!(object, Object::Paging { ioas: fed, .. } if *fed == ioas);
        let attached = self.devices.iter().any(|d| d.books.values().any(|table| *table == ioas));
        attached || self.objects.values().any(feeds)
    }

    /// Whether a device may be attached to an address space, or to a page table that is fed by it.
    pub(super) fn check_reserved(&mut self, table: u32) -> Result<()> {
        let ioas = match self.objects.get(&table) {
            Some(Object::Paging { ioas, .. }) => *ioas,
            Some(Object::Ioas(_)) => table,
            _ => return Ok(()),
        };
        let space = self.space(ioas)?;
        if space.has(&INTERRUPT_WINDOW) || space.has(&BEYOND) { Err(Errno::ADDRINUSE) } else { Ok(()) }
    }

    /// On a page table, which is a parent or not.
    fn nested(&self, request: &HwptAlloc<'_>, nest: bool) -> Result<Object> {
        let data = request.data.as_ref().ok_or(Errno::OPNOTSUPP)?;
        if request.nest_parent {
            return Err(Errno::OPNOTSUPP);
        }
        if !nest {
            return Err(Errno::INVAL);
        }
        if data.kind != HWPT_DATA_VTD_S1 {
            return Err(Errno::OPNOTSUPP);
        }
        let table = VtdS1::read_from_bytes(data.bytes).map_err(|_| Errno::INVAL)?;
        let faults = self.fault_queue_of(request)?;
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
        Ok(ObjectId(world.insert(Object::Ioas(Space::default()))))
    }

    fn ioas_map(
        &self,
        ioas: ObjectId,
        iova: u64,
        memory: &HostRange,
        permissions: Permissions,
    ) -> Result<()> {
        let mut world = self.world();
        world.enter(Call::IoasMap).map_err(|f| f.errno)?;
        if world.is_nest_parent(ioas.0) && !permissions.write {
            return Err(Errno::INVAL);
        }
        let used = world.is_used(ioas.0);
        let target = Target::Memory(memory.host_address());
        world.space(ioas.0)?.map(iova, memory.len_bytes(), (target, permissions), used)
    }

    fn ioas_map_file(
        &self,
        ioas: ObjectId,
        iova: u64,
        memory: &SharedMemory,
        permissions: Permissions,
    ) -> Result<()> {
        let mut world = self.world();
        world.enter(Call::IoasMapFile).map_err(|f| f.errno)?;
        world.map_share(ioas, iova, memory, permissions)
    }

    fn ioas_copy(&self, copy: &IoasCopy) -> Result<()> {
        let mut world = self.world();
        world.enter(Call::IoasCopy).map_err(|f| f.errno)?;
        if !world.supports_copy {
            return Err(Errno::NOTTY);
        }
        let used = world.is_used(copy.to.0);
        let pieces = world.space(copy.from.0)?.pieces(&copy.range)?;
        let wanted = copy.permissions;
        if pieces.iter().any(|(_, _, has)| wanted.read && !has.read || wanted.write && !has.write) {
            return Err(Errno::PERM);
        }
        let space = world.space(copy.to.0)?;
        let last = copy.iova.checked_add(copy.range.last() - copy.range.start()).ok_or(Errno::OVERFLOW)?;
        if space.has(&IovaRange::new(copy.iova, last).ok_or(Errno::INVAL)?) {
            return Err(Errno::EXIST);
        }
        let mut iova = copy.iova;
        for (len, target, _) in pieces {
            space.map(iova, len, (target, wanted), used)?;
            iova += len;
        }
        Ok(())
    }

    fn ioas_iova_ranges(&self, ioas: ObjectId) -> Result<Vec<IovaRange>> {
        let mut world = self.world();
        world.enter(Call::IovaRanges).map_err(|f| f.errno)?;
        world.space(ioas.0)?;
        Ok(if world.is_used(ioas.0) { usable() } else { vec![IovaRange::ALL] })
    }

    fn ioas_unmap(&self, ioas: ObjectId, range: IovaRange) -> Result<()> {
        let mut world = self.world();
        let failure = world.enter(Call::IoasUnmap).err();
        let space = world.space(ioas.0)?;
        if let Some(failure) = failure {
            if failure.damage == Damage::Done {
                space.unmap(&range);
            }
            return Err(failure.errno);
        }
        match space.unmap(&range) {
            (0, _) if range != IovaRange::ALL => Err(Errno::NOENT),
            (_, true) => Ok(()),
            (_, false) => Err(Errno::NOENT),
        }
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
        let shapeless = |data: &Payload<'_>| (data.kind == 0) != data.bytes.is_empty();
        if request.data.as_ref().is_some_and(shapeless) {
            return Err(Errno::INVAL);
        }
        let Some(Object::Device(device)) = world.objects.get(&request.device.0) else {
            return Err(Errno::NOENT);
        };
        let unit = world.devices[*device].unit;
        let object = match world.objects.get(&request.parent.0) {
            Some(Object::Ioas(_)) => world.paging(request)?,
            Some(Object::Paging { nest, .. }) => world.nested(request, *nest)?,
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
            lowest: 1,
            event,
        }));
        Ok((ObjectId(id), Box::new(FakeFaults::new(self.clone(), id, shown))))
    }
}
