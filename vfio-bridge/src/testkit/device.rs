//! VFIO devices.

use rustix::io::Errno;

use super::{Call, Damage, Failure, FakeKernel, Object, World};
use crate::kernel::{DeviceFile, ObjectId, Result};

/// The open file of a device.
pub struct FakeDevice {
    kernel: FakeKernel,
    index: usize,
}

impl FakeDevice {
    pub(super) fn new(kernel: FakeKernel, index: usize) -> Self {
        Self { kernel, index }
    }

    /// The number that the kernel's other methods know it by.
    #[must_use]
    pub fn number(&self) -> usize {
        self.index
    }
}

/// Configuration space with ATS and PRI capabilities; whether they are on.
#[must_use]
pub fn config_space(ats: bool, pri: bool) -> Vec<u8> {
    let mut config = vec![0; 4096];
    let mut put = |offset: usize, word: u32| config[offset..offset + 4].copy_from_slice(&word.to_le_bytes());
    // A hidden capability first, as VFIO leaves one in place of PASID.
    put(0x100, 0x120 << 20 | 1 << 16);
    put(0x120, 0x140 << 20 | 1 << 16 | 0x0f);
    put(0x124, u32::from(ats) << 31 | 1 << 5);
    put(0x140, 1 << 16 | 0x13);
    put(0x144, u32::from(pri) | 1 << 31);
    config
}

impl World {
    /// The kernel's checks, in front of the driver's.
    fn check_table(&self, device: usize, pasid: Option<u32>, table: u32) -> Result<()> {
        let state = &self.devices[device];
        state.id.ok_or(Errno::INVAL)?;
        let compatible = |table: u32| match self.objects.get(&table) {
            Some(Object::Paging { pasid, .. } | Object::Nested { pasid, .. }) => *pasid,
            _ => false,
        };
        match self.objects.get(&table) {
            None => return Err(Errno::NOENT),
            Some(Object::Ioas(_) | Object::Paging { .. } | Object::Nested { .. }) => {}
            Some(_) => return Err(Errno::INVAL),
        }
        // A device that cannot send PASIDs is not looked at.
        let width = state.info.max_pasid_log2;
        if pasid == Some(0) || width != 0 && pasid.is_some_and(|pasid| pasid >> width != 0) {
            return Err(Errno::INVAL);
        }
        // Both ways: a PASID beside requests without PASID, and these beside a PASID.
        let beside = state.books.iter().any(|(other, _)| other.is_some());
        if !compatible(table) && (pasid.is_some() || beside) {
            return Err(Errno::INVAL);
        }
        let without = state.books.get(&None);
        if pasid.is_some() && without.is_some_and(|table| !compatible(*table)) {
            return Err(Errno::INVAL);
        }
        Ok(())
    }

    fn has_faults(&self, table: Option<u32>) -> bool {
        table.and_then(|table| self.objects.get(&table)?.faults()).is_some()
    }

    /// Requests without PASID: a table takes its own reference to a fault queue and forgets that of the one before, and
    /// a failure mends neither.
    fn count_lost(&mut self, device: usize, pasid: Option<u32>, new: u32) {
        let old = self.devices[device].books.get(&pasid).copied();
        let counted = self.has_faults(old) || self.has_faults(Some(new));
        if pasid.is_none() && old.is_some() && counted {
            self.audit.lost_fault_references += 1;
        }
    }

    /// Translations go, and page requests that came through the old attachment are answered.
    fn tear(&mut self, device: usize, pasid: Option<u32>) {
        let state = &mut self.devices[device];
        state.hardware.remove(&pasid);
        state.cached.retain(|(of, _)| *of != pasid);
    }

    fn attach(&mut self, device: usize, pasid: Option<u32>, table: u32) -> Result<()> {
        self.check_table(device, pasid, table)?;
        let old = self.devices[device].books.get(&pasid).copied();
        if old == Some(table) {
            // Nothing is done, whatever the hardware has.
            return Ok(());
        }
        let state = &self.devices[device];
        // For an address space, the kernel makes a page table that fits.
        if self.units.get(&table).is_some_and(|unit| *unit != state.unit) {
            if pasid.is_none() {
                self.tear(device, pasid);
            }
            return Err(Errno::INVAL);
        }
        if let Err(errno) = self.check_reserved(table) {
            self.tear(device, pasid);
            return Err(errno);
        }
        let state = &self.devices[device];
        if self.has_faults(Some(table)) && state.config[0x144] & 1 == 0 {
            self.tear(device, pasid);
            return Err(Errno::NODEV);
        }
        if self.has_faults(old) {
            self.count_lost(device, pasid, table);
        }
        self.tear(device, pasid);
        if let Some(old) = old {
            self.answer_attachment(old, device, pasid);
        }
        let state = &mut self.devices[device];
        state.books.insert(pasid, table);
        if pasid.is_none() || state.info.max_pasid_log2 != 0 {
            state.hardware.insert(pasid, table);
        }
        Ok(())
    }

    fn detach(&mut self, device: usize, pasid: Option<u32>) {
        self.tear(device, pasid);
        if let Some(old) = self.devices[device].books.remove(&pasid) {
            self.answer_attachment(old, device, pasid);
        }
    }
}

impl DeviceFile for FakeDevice {
    fn bind(&self) -> Result<ObjectId> {
        let mut world = self.kernel.world();
        world.enter(Call::Bind).map_err(|f| f.errno)?;
        if world.devices[self.index].id.is_some() {
            return Err(Errno::INVAL);
        }
        let id = world.insert(Object::Device(self.index));
        world.devices[self.index].id = Some(id);
        Ok(ObjectId(id))
    }

    fn attach(&self, pasid: Option<u32>, table: ObjectId) -> Result<()> {
        let mut world = self.kernel.world();
        if let Err(Failure { errno, damage, .. }) = world.enter(Call::Attach) {
            match damage {
                Damage::None => {}
                Damage::Torn => world.tear(self.index, pasid),
                Damage::Done => return world.attach(self.index, pasid, table.0).and(Err(errno)),
            }
            world.count_lost(self.index, pasid, table.0);
            return Err(errno);
        }
        world.attach(self.index, pasid, table.0)
    }

    fn detach(&self, pasid: Option<u32>) -> Result<()> {
        let mut world = self.kernel.world();
        world.enter(Call::Detach).map_err(|f| f.errno)?;
        world.devices[self.index].id.ok_or(Errno::INVAL)?;
        world.detach(self.index, pasid);
        Ok(())
    }

    fn config_read(&self, offset: u16, buffer: &mut [u8]) -> Result<()> {
        let mut world = self.kernel.world();
        world.enter(Call::ConfigRead).map_err(|f| f.errno)?;
        let start = usize::from(offset);
        let bytes = world.devices[self.index].config.get(start..start + buffer.len()).ok_or(Errno::INVAL)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

impl Drop for FakeDevice {
    /// Closing detaches everything.
    fn drop(&mut self) {
        let mut world = self.kernel.world();
        let attached: Vec<_> = world.devices[self.index].books.keys().copied().collect();
        for pasid in attached {
            world.detach(self.index, pasid);
        }
        let state = &mut world.devices[self.index];
        state.open = false;
        if let Some(id) = state.id.take() {
            world.objects.remove(&id);
        }
    }
}
