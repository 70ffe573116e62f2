//! Loading a Linux kernel and its initramfs into guest memory.

use std::io::Seek;

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{self, KernelLoader, KernelLoaderResult};
use vm_memory::{GuestAddress, ReadVolatile, VolatileMemory};

use crate::config::{Complaint, Initrd, Kernel, KernelFormat};
use crate::layout::{LOW_RAM_LIMIT, low};
use crate::memory::GuestRam;

/// How a kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// 32-bit, paging off, start info in RBX.
    Pvh,
    /// The 64-bit entry of the Linux boot protocol, zero page in RSI.
    Linux64,
}

/// Where a kernel is entered, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Guest-physical address of the first instruction.
    pub(crate) address: u64,
    /// What it expects.
    pub(crate) protocol: Protocol,
}

/// A kernel in memory.
pub(crate) struct LoadedKernel {
    /// Where it is entered.
    pub(crate) entry: Entry,
    /// End (exclusive) of what it needs from the start: its image, or the room it unpacks into.
    pub(crate) end: u64,
    /// Its setup header, if it has one.
    pub(crate) header: Option<setup_header>,
}

/// The 64-bit entry of a bzImage lies this far into the loaded part.
const BZIMAGE_ENTRY64: u64 = 0x200;
/// Setup header `xloadflags` bit 0: the kernel has the 64-bit entry.
const XLF_KERNEL_64: u16 = 1;
const PAGE: u64 = 0x1000;

/// Loads a kernel.
///
/// # Errors
/// It cannot be read, is not what it looked like, or does not fit.
pub(crate) fn load_kernel(
    ram: &GuestRam,
    kernel: &mut Kernel,
    low_end: u64,
) -> Result<LoadedKernel, Complaint> {
    let thing = format!("--kernel {}", kernel.path.display());
    let start = Some(GuestAddress(low::END));
    let loaded = match kernel.format {
        KernelFormat::BzImage => loader::BzImage::load(ram, start, &mut kernel.file, None),
        KernelFormat::Elf => loader::Elf::load(ram, None, &mut kernel.file, start),
    };
    let loaded = loaded.map_err(|error| {
        let remedy = "raise --memory-mib if it is small, or give another kernel";
        Complaint::new(&thing, format_args!("cannot be loaded ({})", last_reason(&error)), remedy)
    })?;
    let kernel = match loaded.setup_header {
        Some(header) => bzimage(&loaded, header)
            .map_err(|reason| Complaint::new(&thing, reason, "give a kernel for x86-64"))?,
        None => elf(&loaded),
    };
    if kernel.end > low_end {
        let reason = format!("needs the first {} MiB of memory", kernel.end.div_ceil(1 << 20));
        return Err(Complaint::new(thing, reason, "raise --memory-mib"));
    }
    Ok(kernel)
}

/// The innermost of the reasons that the loader chains in one text.
fn last_reason(error: &loader::Error) -> String {
    let text = error.to_string();
    text.rsplit("Kernel Loader: ").next().unwrap_or(&text).to_lowercase()
}

fn bzimage(loaded: &KernelLoaderResult, header: setup_header) -> Result<LoadedKernel, &'static str> {
    if header.version < 0x20c || header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err("has no 64-bit entry");
    }
    let address = loaded.kernel_load.0 + BZIMAGE_ENTRY64;
    let unpacked = loaded.kernel_load.0.max(header.pref_address).saturating_add(u64::from(header.init_size));
    Ok(LoadedKernel {
        entry: Entry { address, protocol: Protocol::Linux64 },
        end: unpacked.max(loaded.kernel_end),
        header: Some(header),
    })
}

fn elf(loaded: &KernelLoaderResult) -> LoadedKernel {
    let entry = match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(address) => Entry { address: address.0, protocol: Protocol::Pvh },
        _ => Entry { address: loaded.kernel_load.0, protocol: Protocol::Linux64 },
    };
    LoadedKernel { entry, end: loaded.kernel_end, header: None }
}

/// A loaded initramfs: start (inclusive) and length in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LoadedInitrd {
    /// Guest-physical address, page-aligned.
    pub(crate) start: u64,
    /// Length in bytes.
    pub(crate) len: u64,
}

/// Loads an initramfs at the top of low RAM.
///
/// # Errors
/// It cannot be read, or does not fit above the kernel.
pub(crate) fn load_initrd(
    ram: &GuestRam,
    initrd: &mut Initrd,
    kernel: &LoadedKernel,
    low_end: u64,
) -> Result<LoadedInitrd, Complaint> {
    let thing = format!("--initrd {}", initrd.path.display());
    let highest = kernel.header.map_or(LOW_RAM_LIMIT, |header| u64::from(header.initrd_addr_max) + 1);
    let place = place_initrd(initrd.len, kernel.end, low_end.min(highest));
    let start = place.ok_or_else(|| {
        let reason = format!("{} MiB do not fit above the kernel", initrd.len.div_ceil(1 << 20));
        Complaint::new(&thing, reason, "raise --memory-mib")
    })?;
    let read = copy_in(ram, initrd, start);
    read.map_err(|error| {
        Complaint::new(&thing, format_args!("cannot be read ({error})"), "give a readable file")
    })?;
    Ok(LoadedInitrd { start, len: initrd.len })
}

/// The highest page at which `len` bytes fit between `floor` and `ceiling` (exclusive). **Pure.**
fn place_initrd(len: u64, floor: u64, ceiling: u64) -> Option<u64> {
    let start = ceiling.checked_sub(len)? & !(PAGE - 1);
    (start >= floor).then_some(start)
}

fn copy_in(ram: &GuestRam, initrd: &mut Initrd, start: u64) -> Result<(), Box<dyn std::error::Error>> {
    use vm_memory::GuestMemoryBackend;
    initrd.file.rewind()?;
    let len = usize::try_from(initrd.len)?;
    let slice = ram.get_slice(GuestAddress(start), len)?;
    initrd.file.read_exact_volatile(&mut slice.get_slice(0, len)?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_initrd_lies_as_high_as_it_can() {
        for (name, len, floor, ceiling, expected) in [
            ("aligned down", 1, 0x10_0000, 0x1000_0000, Some(0xfff_f000)),
            ("whole pages", 0x2000, 0x10_0000, 0x1000_0000, Some(0xfff_e000)),
            ("exactly", 0x2000, 0xe000, 0x1_0000, Some(0xe000)),
            ("one too many", 0x2001, 0xe000, 0x1_0000, None),
            ("larger than memory", u64::MAX, 0, 0x1_0000, None),
        ] {
            assert_eq!(place_initrd(len, floor, ceiling), expected, "{name}");
        }
    }
}
