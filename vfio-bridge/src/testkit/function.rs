//! The function behind a VFIO device, as far as an assigned function can tell.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use iommu_core::sync::{Mutex, MutexGuard};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use vmm_sys_util::eventfd::EventFd;

use super::{Call, FakeKernel};
use crate::function_file::{FunctionFile, Irqs, Region, irq, region};
use crate::kernel::Result;
use crate::memory::{DeviceMemory, SharedMemory};
use crate::sys::map;

/// What a device is like.
#[derive(Clone, Debug)]
pub struct Model {
    /// Configuration space as VFIO shows it at first.
    pub config: Vec<u8>,
    /// Bytes of the BARs.
    pub bars: [u64; 6],
    /// BARs that can be mapped as a whole.
    pub mappable: [bool; 6],
    /// Vectors of each kind, MSI and MSI-X.
    pub vectors: [u32; 2],
    /// MSI-X vectors can be added while some are on.
    pub dynamic: bool,
    /// The device can be reset.
    pub can_reset: bool,
    /// It tells errors, and the host's wishes.
    pub notices: bool,
    /// It has an interrupt line.
    pub line: bool,
    /// Its memory can be made known to other devices.
    pub shares: bool,
}

/// Offsets in the configuration space of [`Model::endpoint`].
pub mod place {
    /// Power management.
    pub const POWER: u16 = 0x40;
    /// MSI: 64-bit, 8 vectors, masks.
    pub const MSI: u16 = 0x50;
    /// MSI-X: 4 vectors, in BAR 2 at 0x1000, pending bits at 0x2000.
    pub const MSIX: u16 = 0x70;
    /// PCI Express, version 2, with function-level reset.
    pub const EXPRESS: u16 = 0x80;
    /// Vendor-specific, 8 bytes.
    pub const VENDOR: u16 = 0xc0;
    /// One that no guest is to see: hot-plug.
    pub const HIDDEN: u16 = 0xd0;
    /// ATS, read-only.
    pub const ATS: u16 = 0x120;
    /// PRI, read-only.
    pub const PRI: u16 = 0x140;
    /// SR-IOV, which no guest is to see.
    pub const SR_IOV: u16 = 0x160;
    /// Vendor-specific, 16 bytes.
    pub const VENDOR_EXTENDED: u16 = 0x200;
    /// Serial number.
    pub const SERIAL: u16 = 0x240;
}

impl Model {
    /// An endpoint with a bit of everything: BAR 0 of 4 KiB, BAR 2 of 64 KiB and 64-bit with MSI-X in it, an I/O BAR
    /// 4, and the capabilities of [`place`].
    #[must_use]
    pub fn endpoint() -> Self {
        let mut config = vec![0; 4096];
        let mut put = |offset: u16, word: u32| {
            config[usize::from(offset)..usize::from(offset) + 4].copy_from_slice(&word.to_le_bytes());
        };
        put(0x00, 0x10f0_1af4);
        put(0x04, 0x0010_0000);
        put(0x08, 0x0880_0001);
        put(0x10, 0);
        put(0x18, 0x4);
        put(0x20, 0x1);
        put(0x2c, 0x0001_1af4);
        put(0x34, 0x40);
        put(0x3c, 0x0100);
        put(place::POWER, 0xfbc3_5001);
        put(place::MSI, 0x0186_7005);
        put(place::MSIX, 0x0003_8011);
        put(place::MSIX + 4, 0x1002);
        put(place::MSIX + 8, 0x2002);
        put(place::EXPRESS, 0x0002_c010);
        put(place::EXPRESS + 4, 0x1000_8001);
        put(place::EXPRESS + 8, 0x0000_2810);
        put(place::VENDOR, 0x0008_d009);
        put(place::VENDOR + 4, 0x5555_5555);
        put(place::HIDDEN, 0x0000_000c);
        put(0xf0, 0xabcd_abcd);
        put(0x100, 0x1200_0000 | 1 << 16);
        put(place::ATS, 0x1401_000f);
        put(place::ATS + 4, 0x8000_0025);
        put(place::PRI, 0x1601_0013);
        put(place::PRI + 4, 0x8000_0001);
        put(place::PRI + 8, 64);
        put(place::SR_IOV, 0x2001_0010);
        put(place::SR_IOV + 4, 0xffff_ffff);
        put(place::VENDOR_EXTENDED, 0x2401_000b);
        put(place::VENDOR_EXTENDED + 4, 0x0100_1234);
        put(place::SERIAL, 0x0001_0003);
        put(place::SERIAL + 4, 0x1111_2222);
        Self {
            config,
            bars: [0x1000, 0, 0x1_0000, 0, 0x100, 0],
            mappable: [true, false, true, false, false, false],
            vectors: [8, 4],
            dynamic: true,
            can_reset: true,
            notices: true,
            line: true,
            shares: true,
        }
    }
}

/// What was done to a device that matters for the order of things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Did {
    /// The command register was written.
    Command(u16),
    /// Interrupts of a kind were given events: kind, first, how many.
    Irqs(u32, u32, usize),
    /// The interrupt line was unmasked.
    Unmasked,
    /// A kind was switched off.
    IrqsOff(u32),
    /// It was reset.
    Reset,
}

struct State {
    model: Model,
    memory: [Option<File>; 6],
    /// By kind and number.
    events: [Vec<Option<EventFd>>; 5],
    did: Vec<Did>,
    /// The device asserts its interrupt line; the host has masked it.
    line: (bool, bool),
    /// Numbers of the dma-bufs that were made of it.
    shares: Vec<usize>,
    /// Bytes of configuration space that were written, the command register left out.
    written: Vec<u16>,
}

/// The file of a device. Clones are the same one.
#[derive(Clone)]
pub struct FakeFunction {
    kernel: FakeKernel,
    state: Arc<Mutex<State>>,
}

const COMMAND: u64 = 4;
const COMMAND_MEMORY: u8 = 1 << 1;
const COMMAND_INTERRUPT_DISABLE: u8 = 1 << 2;
const STATUS: u16 = 6;
const STATUS_INTERRUPT: u8 = 1 << 3;

impl FakeFunction {
    /// A device of a kernel, whose calls can be made to fail.
    ///
    /// # Panics
    /// There is no memory for it.
    #[must_use]
    #[allow(clippy::expect_used, reason = "a test without memory has nothing to say")]
    pub fn new(kernel: &FakeKernel, model: Model) -> Self {
        let memory = model.bars.map(|len| {
            let file = File::from(memfd_create("bar", MemfdFlags::CLOEXEC).ok().filter(|_| len > 0)?);
            file.set_len(len.max(4096)).ok().map(|()| file)
        });
        let state = State {
            model,
            memory,
            events: Default::default(),
            did: Vec::new(),
            line: (false, false),
            shares: Vec::new(),
            written: Vec::new(),
        };
        Self { kernel: kernel.clone(), state: Arc::new(Mutex::new(state)) }
    }

    fn enter(&self, call: Call) -> Result<MutexGuard<'_, State>> {
        self.kernel.world().enter(call).map_err(|failure| failure.errno)?;
        Ok(self.state.lock())
    }

    /// What was done since this was asked last.
    #[must_use]
    pub fn did(&self) -> Vec<Did> {
        std::mem::take(&mut self.state.lock().did)
    }

    /// Which bytes of configuration space were written since this was asked last, the command register left out.
    #[must_use]
    pub fn written(&self) -> Vec<u16> {
        std::mem::take(&mut self.state.lock().written)
    }

    /// The device signals. `false`: nobody is to hear of it.
    #[must_use]
    pub fn signal(&self, kind: u32, number: u32) -> bool {
        let state = self.state.lock();
        let event = state.events.get(kind as usize).and_then(|all| all.get(number as usize));
        event.is_some_and(|event| event.as_ref().is_some_and(|event| event.write(1).is_ok()))
    }

    /// The device asserts its interrupt line, or does no longer. The host takes notice if it may.
    pub fn assert_line(&self, asserted: bool) {
        let mut state = self.state.lock();
        state.line.0 = asserted;
        let status = &mut state.model.config[usize::from(STATUS)];
        *status = *status & !STATUS_INTERRUPT | if asserted { STATUS_INTERRUPT } else { 0 };
        state.tell_line();
    }

    /// How many vectors of a kind have events.
    #[must_use]
    pub fn heard(&self, kind: u32) -> usize {
        self.state.lock().events.get(kind as usize).map_or(0, |all| all.iter().flatten().count())
    }

    /// Makes a dma-buf of several ranges of a BAR, which an iommufd does not take.
    ///
    /// # Errors
    /// As [`FunctionFile::share`].
    pub fn share_ranges(&self, index: u32, ranges: &[Range<u64>]) -> Result<SharedMemory> {
        let mut state = self.enter(Call::Share)?;
        let bar = usize::try_from(index).ok().and_then(|bar| state.model.bars.get(bar));
        if !state.model.shares {
            return Err(Errno::NOTTY);
        }
        let len = *bar.filter(|len| **len > 0).ok_or(Errno::NODEV)?;
        let aligned = |at: u64| at & 0xfff == 0;
        let fits = |range: &Range<u64>| {
            range.start < range.end && range.end <= len && aligned(range.start) && aligned(range.end)
        };
        if ranges.is_empty() || !ranges.iter().all(fits) {
            return Err(Errno::INVAL);
        }
        let revoked = state.check_memory().is_err();
        let (number, file) = self.kernel.world().add_share(index, ranges, revoked)?;
        state.shares.push(number);
        Ok(SharedMemory::new(file, ranges.iter().map(|range| range.end - range.start).sum()))
    }

    /// The host takes the memory away and gives it back, unasked: somebody else reset the device.
    pub fn revoke(&self) {
        let state = self.state.lock();
        let off = state.check_memory().is_err();
        self.kernel.world().revoke_shares(&state.shares, true);
        self.kernel.world().revoke_shares(&state.shares, off);
    }

    /// The device's own command register.
    #[must_use]
    pub fn command(&self) -> u16 {
        let state = self.state.lock();
        u16::from_le_bytes([state.model.config[4], state.model.config[5]])
    }
}

impl State {
    fn count(&self, kind: u32) -> u32 {
        match kind {
            irq::INTX => u32::from(self.model.line),
            irq::MSI => self.model.vectors[0],
            irq::MSIX => self.model.vectors[1],
            irq::ERROR | irq::REQUEST => u32::from(self.model.notices),
            _ => 0,
        }
    }

    /// The host hears the line: once, then it is masked.
    fn tell_line(&mut self) {
        let disabled = self.model.config[5] & COMMAND_INTERRUPT_DISABLE != 0;
        let event = self.events[irq::INTX as usize].first().and_then(Option::as_ref);
        if self.line == (true, false)
            && !disabled
            && let Some(event) = event
        {
            self.line.1 = event.write(1).is_ok();
        }
    }

    fn is_on(&self, kind: u32) -> bool {
        self.events.get(kind as usize).is_some_and(|all| !all.is_empty())
    }

    /// The number of a BAR by where it is in the file.
    fn bar(&self, wanted: &Region) -> Option<usize> {
        let index = usize::try_from(wanted.file_offset >> 40).ok()?;
        self.memory.get(index)?.is_some().then_some(index)
    }

    fn check_memory(&self) -> Result<()> {
        if self.model.config[4] & COMMAND_MEMORY == 0 { Err(Errno::IO) } else { Ok(()) }
    }
}

fn in_config(wanted: &Region) -> bool {
    wanted.file_offset >> 40 == u64::from(region::CONFIG)
}

impl FunctionFile for FakeFunction {
    fn can_reset(&self) -> Result<bool> {
        Ok(self.enter(Call::DeviceInfo)?.model.can_reset)
    }

    fn region(&self, index: u32) -> Result<Region> {
        let state = self.enter(Call::RegionInfo)?;
        let file_offset = u64::from(index) << 40;
        if index == region::CONFIG {
            return Ok(Region { len: state.model.config.len() as u64, file_offset, mappable: Vec::new() });
        }
        let bar = usize::try_from(index).unwrap_or(usize::MAX);
        let len = state.model.bars.get(bar).copied().unwrap_or(0);
        let mappable = state.model.mappable.get(bar).copied().unwrap_or(false);
        Ok(Region { len, file_offset, mappable: mappable.then_some(0..len).into_iter().collect() })
    }

    fn read(&self, region: &Region, offset: u64, data: &mut [u8]) -> Result<()> {
        use std::os::unix::fs::FileExt as _;
        let state = self.enter(Call::RegionRead)?;
        if in_config(region) {
            let start = usize::try_from(offset).map_err(|_| Errno::INVAL)?;
            let bytes = state.model.config.get(start..start + data.len()).ok_or(Errno::INVAL)?;
            data.copy_from_slice(bytes);
            return Ok(());
        }
        state.check_memory()?;
        let file = state.bar(region).and_then(|bar| state.memory[bar].as_ref()).ok_or(Errno::INVAL)?;
        file.read_exact_at(data, offset).map_err(|_| Errno::INVAL)
    }

    fn write(&self, region: &Region, offset: u64, data: &[u8]) -> Result<()> {
        use std::os::unix::fs::FileExt as _;
        let mut state = self.enter(Call::RegionWrite)?;
        if !in_config(region) {
            state.check_memory()?;
            let file = state.bar(region).and_then(|bar| state.memory[bar].as_ref()).ok_or(Errno::INVAL)?;
            return file.write_all_at(data, offset).map_err(|_| Errno::INVAL);
        }
        let start = usize::try_from(offset).map_err(|_| Errno::INVAL)?;
        let bytes = state.model.config.get_mut(start..start + data.len()).ok_or(Errno::INVAL)?;
        bytes.copy_from_slice(data);
        match (offset, data) {
            (COMMAND, &[low, high]) => {
                state.did.push(Did::Command(u16::from_le_bytes([low, high])));
                self.kernel.world().revoke_shares(&state.shares, state.check_memory().is_err());
                if high & COMMAND_INTERRUPT_DISABLE == 0 {
                    state.line.1 = false;
                    state.tell_line();
                }
            }
            _ => {
                let end = offset + data.len() as u64;
                state.written.extend((offset..end).filter_map(|at| u16::try_from(at).ok()));
            }
        }
        Ok(())
    }

    fn map(&self, region: &Region, range: Range<u64>) -> Result<DeviceMemory> {
        let state = self.enter(Call::RegionMap)?;
        let bar = state.bar(region).filter(|bar| state.model.mappable[*bar]).ok_or(Errno::INVAL)?;
        let file = state.memory[bar].as_ref().ok_or(Errno::INVAL)?;
        map(file, range.start, usize::try_from(range.end - range.start).map_err(|_| Errno::INVAL)?)
    }

    fn share(&self, index: u32, range: Range<u64>) -> Result<SharedMemory> {
        self.share_ranges(index, &[range])
    }

    fn irqs(&self, kind: u32) -> Result<Irqs> {
        let state = self.enter(Call::IrqInfo)?;
        Ok(Irqs { count: state.count(kind), dynamic: kind == irq::MSIX && state.model.dynamic })
    }

    fn set_irqs(&self, kind: u32, start: u32, events: &[Option<&EventFd>]) -> Result<()> {
        let mut state = self.enter(Call::SetIrqs)?;
        let first = start as usize;
        let end = first + events.len();
        let kinds = [irq::INTX, irq::MSI, irq::MSIX];
        let exclusive = kinds.contains(&kind);
        let other_on = kinds.iter().any(|other| *other != kind && state.is_on(*other));
        let on = state.is_on(kind);
        let grows = on && end > state.events[kind as usize].len();
        let dynamic = kind == irq::MSIX && state.model.dynamic;
        if end > state.count(kind) as usize
            || exclusive && other_on
            || exclusive && !on && start != 0
            || grows && !dynamic
        {
            return Err(Errno::INVAL);
        }
        let all = &mut state.events[kind as usize];
        if all.len() < end {
            all.resize_with(end, || None);
        }
        for (slot, event) in all[first..end].iter_mut().zip(events) {
            *slot = event.and_then(|event| event.try_clone().ok());
        }
        state.did.push(Did::Irqs(kind, start, events.len()));
        if kind == irq::INTX {
            state.line.1 = false;
            state.tell_line();
        }
        Ok(())
    }

    fn unmask_irqs(&self, kind: u32) -> Result<()> {
        let mut state = self.enter(Call::UnmaskIrqs)?;
        if kind != irq::INTX {
            return Err(Errno::NOTTY);
        }
        if !state.is_on(kind) {
            return Err(Errno::INVAL);
        }
        state.did.push(Did::Unmasked);
        state.line.1 = false;
        state.tell_line();
        Ok(())
    }

    fn disable_irqs(&self, kind: u32) -> Result<()> {
        let mut state = self.enter(Call::DisableIrqs)?;
        state.events.get_mut(kind as usize).ok_or(Errno::INVAL)?.clear();
        state.did.push(Did::IrqsOff(kind));
        Ok(())
    }

    /// Everything but the command register stays as it was: VFIO restores it.
    fn reset(&self) -> Result<()> {
        let mut state = self.enter(Call::Reset)?;
        if !state.model.can_reset {
            return Err(Errno::INVAL);
        }
        state.did.push(Did::Reset);
        drop(state);
        self.revoke();
        Ok(())
    }
}
