//! A VFIO device's file, as far as the PCI function itself is concerned.

use std::fs::File;
use std::mem::offset_of;
use std::ops::Range;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;
use vfio_bindings::bindings::vfio as c;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::{ioctl, ioctl_with_mut_ptr, ioctl_with_mut_ref, ioctl_with_ptr, ioctl_with_ref};
use vmm_sys_util::ioctl_io_nr;

use super::done;
use super::mapping::map;
use crate::function_file::{FunctionFile, Irqs, Region};
use crate::kernel::Result;
use crate::memory::{DeviceMemory, SharedMemory};

ioctl_io_nr!(VFIO_DEVICE_GET_INFO, c::VFIO_TYPE as u32, c::VFIO_BASE + 7);
ioctl_io_nr!(VFIO_DEVICE_GET_REGION_INFO, c::VFIO_TYPE as u32, c::VFIO_BASE + 8);
ioctl_io_nr!(VFIO_DEVICE_GET_IRQ_INFO, c::VFIO_TYPE as u32, c::VFIO_BASE + 9);
ioctl_io_nr!(VFIO_DEVICE_SET_IRQS, c::VFIO_TYPE as u32, c::VFIO_BASE + 10);
ioctl_io_nr!(VFIO_DEVICE_RESET, c::VFIO_TYPE as u32, c::VFIO_BASE + 11);
ioctl_io_nr!(VFIO_DEVICE_FEATURE, c::VFIO_TYPE as u32, c::VFIO_BASE + 17);

/// The open file of a VFIO PCI device, of whichever kind: clones of it are the same file.
#[derive(Clone)]
pub struct FunctionHandle(pub(super) Arc<File>);

impl FunctionHandle {
    /// Takes over the file of a device that is in use already, as one of a group is.
    #[must_use]
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(Arc::new(File::from(fd)))
    }
}

/// Bytes of the structures as the ioctls want them told.
const INFO_BYTES: u32 = 16;
const REGION_INFO_BYTES: u32 = 32;
const IRQ_INFO_BYTES: u32 = 16;
/// `struct vfio_irq_set` without its array.
const IRQ_SET_BYTES: u32 = 20;
const _: () = {
    assert!(size_of::<c::vfio_region_info>() == REGION_INFO_BYTES as usize);
    assert!(size_of::<c::vfio_irq_info>() == IRQ_INFO_BYTES as usize);
    assert!(size_of::<c::vfio_irq_set>() == IRQ_SET_BYTES as usize);
    assert!(size_of::<ShareArgument>() == SHARE_BYTES as usize);
    let (feature, buffer) =
        (size_of::<c::vfio_device_feature>(), size_of::<c::vfio_device_feature_dma_buf>());
    assert!(offset_of!(ShareArgument, region_index) == feature);
    assert!(offset_of!(ShareArgument, range) == feature + buffer);
};
const SHARE_BYTES: u32 = 40;

/// `struct vfio_device_feature`, in it `struct vfio_device_feature_dma_buf`, and in that one range.
#[repr(C)]
struct ShareArgument {
    argsz: u32,
    flags: u32,
    region_index: u32,
    open_flags: u32,
    buffer_flags: u32,
    nr_ranges: u32,
    range: c::vfio_region_dma_range,
}

/// Most bytes that a region's description is taken for: what a device of 1000 mappable areas would have.
const REGION_INFO_MAX: u32 = 0x4000;

fn errno_of(error: &std::io::Error) -> Errno {
    // Of a short read or write, the standard library makes an error without a number.
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

impl FunctionHandle {
    fn region_info(&self, index: u32, bytes: u32) -> Result<Vec<u64>> {
        let mut words = vec![0u64; (bytes as usize).div_ceil(8)];
        words[0] = u64::from(bytes);
        words[1] = u64::from(index);
        // SAFETY: the argument is as long as its first word says, and the kernel writes no more than that.
        done(unsafe { ioctl_with_mut_ptr(&*self.0, VFIO_DEVICE_GET_REGION_INFO(), words.as_mut_ptr()) })?;
        Ok(words)
    }

    fn irq_set(&self, words: &[u32]) -> Result<()> {
        // SAFETY: the argument is as long as its first word says, and the kernel only reads it.
        let answer = unsafe { ioctl_with_ptr(&*self.0, VFIO_DEVICE_SET_IRQS(), words.as_ptr()) };
        // How many the host could give, if not all.
        if answer > 0 { Err(Errno::NOSPC) } else { done(answer) }
    }
}

impl FunctionFile for FunctionHandle {
    fn can_reset(&self) -> Result<bool> {
        let mut argument = c::vfio_device_info { argsz: INFO_BYTES, ..Default::default() };
        // SAFETY: the argument is of the type that this ioctl reads and writes.
        done(unsafe { ioctl_with_mut_ref(&*self.0, VFIO_DEVICE_GET_INFO(), &mut argument) })?;
        if argument.flags & c::VFIO_DEVICE_FLAGS_PCI == 0 {
            return Err(Errno::INVAL);
        }
        Ok(argument.flags & c::VFIO_DEVICE_FLAGS_RESET != 0)
    }

    fn region(&self, index: u32) -> Result<Region> {
        let mut info = self.region_info(index, REGION_INFO_BYTES)?;
        let wanted = u32::try_from(info[0] & u64::from(u32::MAX)).unwrap_or(0);
        if wanted > REGION_INFO_BYTES {
            info = self.region_info(index, wanted.min(REGION_INFO_MAX))?;
        }
        Ok(parse_region(&info))
    }

    fn read(&self, region: &Region, offset: u64, data: &mut [u8]) -> Result<()> {
        let at = region.file_offset.checked_add(offset).ok_or(Errno::OVERFLOW)?;
        self.0.read_exact_at(data, at).map_err(|error| errno_of(&error))
    }

    fn write(&self, region: &Region, offset: u64, data: &[u8]) -> Result<()> {
        let at = region.file_offset.checked_add(offset).ok_or(Errno::OVERFLOW)?;
        self.0.write_all_at(data, at).map_err(|error| errno_of(&error))
    }

    fn map(&self, region: &Region, range: Range<u64>) -> Result<DeviceMemory> {
        let at = region.file_offset.checked_add(range.start).ok_or(Errno::OVERFLOW)?;
        let len = range.end.checked_sub(range.start).and_then(|len| usize::try_from(len).ok());
        map(&*self.0, at, len.ok_or(Errno::INVAL)?)
    }

    fn share(&self, index: u32, range: Range<u64>) -> Result<SharedMemory> {
        let length = range.end.checked_sub(range.start).ok_or(Errno::INVAL)?;
        let argument = ShareArgument {
            argsz: SHARE_BYTES,
            flags: c::VFIO_DEVICE_FEATURE_GET | c::VFIO_DEVICE_FEATURE_DMA_BUF,
            region_index: index,
            open_flags: (OFlags::RDWR | OFlags::CLOEXEC).bits(),
            buffer_flags: 0,
            nr_ranges: 1,
            range: c::vfio_region_dma_range { offset: range.start, length },
        };
        // SAFETY: the argument is as long as its first word says and has as many ranges as it tells; it is only read.
        let answer = unsafe { ioctl_with_ref(&*self.0, VFIO_DEVICE_FEATURE(), &argument) };
        done(answer)?;
        // SAFETY: the kernel just opened it for us, and nobody else knows its number.
        Ok(SharedMemory::new(unsafe { OwnedFd::from_raw_fd(answer) }, length))
    }

    fn irqs(&self, kind: u32) -> Result<Irqs> {
        let mut argument = c::vfio_irq_info { argsz: IRQ_INFO_BYTES, index: kind, ..Default::default() };
        // SAFETY: the argument is of the type that this ioctl reads and writes.
        done(unsafe { ioctl_with_mut_ref(&*self.0, VFIO_DEVICE_GET_IRQ_INFO(), &mut argument) })?;
        let usable = argument.flags & c::VFIO_IRQ_INFO_EVENTFD != 0;
        Ok(Irqs {
            count: if usable { argument.count } else { 0 },
            dynamic: argument.flags & c::VFIO_IRQ_INFO_NORESIZE == 0,
        })
    }

    fn set_irqs(&self, kind: u32, start: u32, events: &[Option<&EventFd>]) -> Result<()> {
        let count = u32::try_from(events.len()).map_err(|_| Errno::INVAL)?;
        let bytes = count.checked_mul(4).and_then(|bytes| bytes.checked_add(IRQ_SET_BYTES));
        let flags = c::VFIO_IRQ_SET_DATA_EVENTFD | c::VFIO_IRQ_SET_ACTION_TRIGGER;
        let mut words = vec![bytes.ok_or(Errno::INVAL)?, flags, kind, start, count];
        let number = |event: &Option<&EventFd>| event.map_or(-1, |event| event.as_raw_fd());
        words.extend(events.iter().map(number).map(i32::cast_unsigned));
        self.irq_set(&words)
    }

    fn unmask_irqs(&self, kind: u32) -> Result<()> {
        let flags = c::VFIO_IRQ_SET_DATA_NONE | c::VFIO_IRQ_SET_ACTION_UNMASK;
        self.irq_set(&[IRQ_SET_BYTES, flags, kind, 0, 1])
    }

    fn disable_irqs(&self, kind: u32) -> Result<()> {
        let flags = c::VFIO_IRQ_SET_DATA_NONE | c::VFIO_IRQ_SET_ACTION_TRIGGER;
        self.irq_set(&[IRQ_SET_BYTES, flags, kind, 0, 0])
    }

    fn reset(&self) -> Result<()> {
        // SAFETY: this ioctl has no argument.
        done(unsafe { ioctl(&*self.0, VFIO_DEVICE_RESET()) })
    }
}

/// Reads `struct vfio_region_info` and what follows it. **Pure.** Ends on every list of capabilities.
fn parse_region(words: &[u64]) -> Region {
    let byte = |at: usize| Some(words.get(at / 8)?.to_le_bytes()[at % 8]);
    let u16_at = |at: usize| Some(u16::from_le_bytes([byte(at)?, byte(at + 1)?]));
    let u32_at = |at: usize| Some(u32::from(u16_at(at)?) | u32::from(u16_at(at + 2)?) << 16);
    let u64_at = |at: usize| Some(u64::from(u32_at(at)?) | u64::from(u32_at(at + 4)?) << 32);
    let flags = u32_at(4).unwrap_or(0);
    let len = u64_at(16).unwrap_or(0);
    let mut mappable = Vec::new();
    if flags & c::VFIO_REGION_INFO_FLAG_MMAP != 0 {
        mappable.push(0..len);
    }
    let mut next =
        if flags & c::VFIO_REGION_INFO_FLAG_CAPS != 0 { u32_at(12).unwrap_or(0) as usize } else { 0 };
    // A list has no more members than 8-byte words.
    for _ in 0..words.len() {
        let Some(id) = u16_at(next).filter(|_| next >= REGION_INFO_BYTES as usize) else { break };
        if u32::from(id) == c::VFIO_REGION_INFO_CAP_SPARSE_MMAP {
            let count = u32_at(next + 8).unwrap_or(0) as usize;
            let area = |number: usize| {
                let at = next + 16 + 16 * number;
                let start = u64_at(at)?;
                Some(start..start.checked_add(u64_at(at + 8)?).filter(|end| *end <= len)?)
            };
            mappable = (0..count.min(words.len())).map_while(area).collect();
        }
        next = u32_at(next + 4).unwrap_or(0) as usize;
    }
    mappable.retain(|area| !area.is_empty());
    mappable.sort_by_key(|area| area.start);
    Region { len, file_offset: u64_at(24).unwrap_or(0), mappable }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MMAP: u64 = (c::VFIO_REGION_INFO_FLAG_MMAP as u64) << 32;
    const CAPS: u64 = (c::VFIO_REGION_INFO_FLAG_CAPS as u64) << 32;
    const MSIX_MAPPABLE: u64 = 3;

    /// A file that knows no ioctl: every call fails with the kernel's own errno.
    #[test]
    fn errors_are_the_kernels() {
        let file = File::options().read(true).write(true).open("/dev/null").unwrap();
        let function = FunctionHandle(Arc::new(file));
        let region = Region { len: 4096, file_offset: 0, mappable: vec![] };
        let rows = [
            ("information", function.can_reset().err()),
            ("region", function.region(0).err()),
            ("share", function.share(0, 0..4096).err()),
            ("interrupts", function.irqs(2).err()),
            ("set interrupts", function.set_irqs(2, 0, &[None]).err()),
            ("unmask", function.unmask_irqs(0).err()),
            ("no interrupts", function.disable_irqs(2).err()),
            ("reset", function.reset().err()),
        ];
        for (name, errno) in rows {
            assert_eq!(errno, Some(Errno::NOTTY), "{name}");
        }
        assert_eq!(function.read(&region, 0, &mut [0; 4]), Err(Errno::IO), "nothing to read");
        assert_eq!(function.read(&region, u64::MAX, &mut [0; 4]), Err(Errno::INVAL), "no such offset");
        assert_eq!(function.map(&region, 0..4096).err(), Some(Errno::NODEV));
        let backwards = Range { start: 4096, end: 0 };
        assert_eq!(function.map(&region, backwards.clone()).err(), Some(Errno::INVAL));
        assert_eq!(function.share(0, backwards).err(), Some(Errno::INVAL));
    }

    #[test]
    fn mapped_memory_is_the_files() {
        let file = File::from(rustix::fs::memfd_create("memory", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        file.set_len(8192).unwrap();
        let memory = map(&file, 4096, 4096).unwrap();
        assert_eq!(memory.len_bytes(), 4096);
        assert_eq!(memory.host_address() % 4096, 0);
        assert_eq!(map(&file, 0, 0).err(), Some(Errno::INVAL));
        assert_eq!(map(&file, 1, 4096).err(), Some(Errno::INVAL));
    }

    /// (name, words, length, mappable)
    #[test]
    fn regions_are_read_from_any_bytes() {
        type Row = (&'static str, Vec<u64>, u64, Vec<Range<u64>>);
        let head = |flags: u64, first: u64| vec![32 | flags, first << 32, 0x3000, 7 << 40];
        let with = |mut words: Vec<u64>, more: &[u64]| {
            words.extend(more);
            words
        };
        let (whole, none) = (0..0x3000, vec![]);
        let rows: [Row; 9] = [
            ("nothing", vec![], 0, vec![]),
            ("no mapping", head(0, 0), 0x3000, none.clone()),
            ("whole", head(MMAP, 0), 0x3000, vec![whole.clone()]),
            (
                "another capability",
                with(head(MMAP | CAPS, 32), &[MSIX_MAPPABLE]),
                0x3000,
                vec![whole.clone()],
            ),
            (
                "sparse, out of order",
                with(head(MMAP | CAPS, 32), &[1, 2, 0x2000, 0x1000, 0, 0x1000]),
                0x3000,
                vec![0..0x1000, 0x2000..0x3000],
            ),
            (
                "sparse, beyond the end",
                with(head(MMAP | CAPS, 32), &[1, 1, 0x2000, 0x2000]),
                0x3000,
                none.clone(),
            ),
            ("sparse, cut off", with(head(MMAP | CAPS, 32), &[1, 9]), 0x3000, none.clone()),
            ("a loop", with(head(MMAP | CAPS, 32), &[MSIX_MAPPABLE | 32 << 32]), 0x3000, vec![whole.clone()]),
            ("a list outside", head(MMAP | CAPS, 0xffff_fff0), 0x3000, vec![whole]),
        ];
        for (name, words, len, mappable) in rows {
            let region = parse_region(&words);
            assert_eq!((region.len, region.mappable), (len, mappable), "{name}");
        }
    }
}
