//! `/dev/iommu` (kernel header `linux/iommufd.h`), one method for each ioctl.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::FromRawFd;

use guest::sys::Mapping;

use super::{Argument, call, size};

/// Flags of a page table to be allocated.
pub(crate) mod hwpt_flags {
    /// Nested tables may sit on it.
    pub(crate) const NEST_PARENT: u32 = 1;
    /// Dirty pages can be tracked.
    pub(crate) const DIRTY_TRACKING: u32 = 2;
    /// It may be attached to PASIDs, and to a function that has PASIDs attached.
    pub(crate) const PASID: u32 = 8;
}

const FAULT_ID_VALID: u32 = 4;
const FIXED_IOVA: u32 = 1;
const WRITEABLE: u32 = 2;
const READABLE: u32 = 4;

/// An object of an open `/dev/iommu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Id(pub(crate) u32);

/// An open `/dev/iommu`. What it made goes when it and all devices and fault queues of it are closed.
#[derive(Debug)]
pub(crate) struct Iommufd {
    file: File,
}

/// What the kernel says of the unit and the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HwInfo {
    /// 1: VT-d.
    pub(crate) kind: u32,
    /// Capability register.
    pub(crate) cap: u64,
    /// Extended capability register.
    pub(crate) ecap: u64,
    /// Width of PASIDs that can be attached; 0: none.
    pub(crate) pasid_bits: u8,
    /// Bit 0: dirty tracking.
    pub(crate) capabilities: u64,
}

/// What a page table is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) enum HwptKind {
    /// The kernel's own, from an I/O address space.
    Paging(Id),
    /// A VT-d first stage of this program's on a nest parent.
    Nested(Id, VtdS1),
}

/// A VT-d first stage.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct VtdS1 {
    /// Supervisor requests, extended accessed bit, write protection.
    pub(crate) flags: u64,
    /// The root table in the parent's address space.
    pub(crate) root: u64,
    /// 48 or 57.
    pub(crate) address_width: u32,
    /// 0.
    pub(crate) reserved: u32,
}

/// What to invalidate of a VT-d first stage.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct VtdS1Invalidate {
    /// First page.
    pub(crate) address: u64,
    /// Pages of 4 KiB; `u64::MAX` with address 0: everything.
    pub(crate) pages: u64,
    /// Bit 0: leaf entries only.
    pub(crate) flags: u32,
    /// 0.
    pub(crate) reserved: u32,
}

/// Accesses that a page request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageRights {
    /// Read.
    pub(crate) read: bool,
    /// Write.
    pub(crate) write: bool,
}

/// A page request as a fault queue tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FaultRecord {
    /// The PASID, if the request has one.
    pub(crate) pasid: Option<u32>,
    /// Last of its group.
    pub(crate) last: bool,
    /// The device.
    pub(crate) device: Id,
    /// Index of the group.
    pub(crate) group: u32,
    /// Permission bits as they came.
    pub(crate) permissions: u32,
    /// The page.
    pub(crate) address: u64,
    /// Names the group in the response.
    pub(crate) cookie: u32,
}

impl FaultRecord {
    /// Bytes of a record.
    pub(crate) const BYTES: usize = 40;

    /// Reads a record. Pure.
    pub(crate) fn decode(bytes: &[u8; Self::BYTES]) -> Self {
        let word = |at: usize| {
            let mut word = [0; 4];
            word.copy_from_slice(&bytes[at..at + 4]);
            u32::from_ne_bytes(word)
        };
        let flags = word(0);
        Self {
            pasid: (flags & 1 != 0).then(|| word(8)),
            last: flags & 2 != 0,
            device: Id(word(4)),
            group: word(12),
            permissions: word(16),
            address: u64::from(word(24)) | u64::from(word(28)) << 32,
            cookie: word(36),
        }
    }

    /// The accesses that it asks for.
    pub(crate) fn rights(&self) -> PageRights {
        PageRights { read: self.permissions & 1 != 0, write: self.permissions & 2 != 0 }
    }
}

/// How a page request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Response {
    /// The page is there.
    Success,
    /// It will never be.
    Invalid,
}

impl Response {
    /// The bytes that a fault queue takes. Pure.
    pub(crate) fn encode(self, cookie: u32) -> [u8; 8] {
        let code: u32 = match self {
            Self::Success => 0,
            Self::Invalid => 1,
        };
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&cookie.to_ne_bytes());
        bytes[4..].copy_from_slice(&code.to_ne_bytes());
        bytes
    }
}

#[repr(C)]
struct OneId {
    size: u32,
    id: u32,
}

#[repr(C)]
struct IoasAlloc {
    size: u32,
    flags: u32,
    out_id: u32,
}

#[repr(C)]
struct IoasMap {
    size: u32,
    flags: u32,
    ioas: u32,
    reserved: u32,
    user_address: u64,
    length: u64,
    iova: u64,
}

#[repr(C)]
struct IoasUnmap {
    size: u32,
    ioas: u32,
    iova: u64,
    length: u64,
}

#[repr(C)]
struct SetOption {
    size: u32,
    option: u32,
    operation: u16,
    reserved: u16,
    object: u32,
    value: u64,
}

#[repr(C)]
struct HwptAlloc {
    size: u32,
    flags: u32,
    device: u32,
    table: u32,
    out_id: u32,
    reserved: u32,
    data_type: u32,
    data_length: u32,
    data: u64,
    fault: u32,
    reserved2: u32,
}

#[repr(C)]
struct GetHwInfo {
    size: u32,
    flags: u32,
    device: u32,
    data_length: u32,
    data: u64,
    data_type: u32,
    pasid_bits: u8,
    reserved: [u8; 3],
    capabilities: u64,
}

#[repr(C)]
#[derive(Default)]
struct VtdInfo {
    flags: u32,
    reserved: u32,
    cap: u64,
    ecap: u64,
}

#[repr(C)]
struct SetDirtyTracking {
    size: u32,
    flags: u32,
    hwpt: u32,
    reserved: u32,
}

#[repr(C)]
struct GetDirtyBitmap {
    size: u32,
    hwpt: u32,
    flags: u32,
    reserved: u32,
    iova: u64,
    length: u64,
    page_size: u64,
    data: u64,
}

#[repr(C)]
struct Invalidate {
    size: u32,
    hwpt: u32,
    data: u64,
    data_type: u32,
    entry_length: u32,
    entries: u32,
    reserved: u32,
}

#[repr(C)]
struct FaultAlloc {
    size: u32,
    flags: u32,
    out_id: u32,
    out_file: u32,
}

// SAFETY: no pointers.
unsafe impl Argument for OneId {}
// SAFETY: no pointers.
unsafe impl Argument for IoasAlloc {}
// SAFETY: `Iommufd::map` names a mapping, which is accessed by copies only.
unsafe impl Argument for IoasMap {}
// SAFETY: no pointers.
unsafe impl Argument for IoasUnmap {}
// SAFETY: no pointers.
unsafe impl Argument for SetOption {}
// SAFETY: the kernel only reads what `data` names.
unsafe impl Argument for HwptAlloc {}
// SAFETY: `Iommufd::hw_info` names a `VtdInfo` of its own with its length.
unsafe impl Argument for GetHwInfo {}
// SAFETY: no pointers.
unsafe impl Argument for SetDirtyTracking {}
// SAFETY: `Iommufd::dirty_bitmap` names a vector with a bit for each page.
unsafe impl Argument for GetDirtyBitmap {}
// SAFETY: the kernel only reads what `data` names.
unsafe impl Argument for Invalidate {}
// SAFETY: no pointers.
unsafe impl Argument for FaultAlloc {}

const _: () = assert!(
    size::<HwptAlloc>() == 48
        && size::<GetHwInfo>() == 40
        && size::<GetDirtyBitmap>() == 48
        && size::<Invalidate>() == 32
        && size::<IoasMap>() == 40
        && size::<SetOption>() == 24
        && size::<VtdS1>() == 24
        && size::<VtdS1Invalidate>() == 24
);

impl Iommufd {
    /// Opens it.
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self { file: OpenOptions::new().read(true).write(true).open("/dev/iommu")? })
    }

    /// The open file.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// DESTROY.
    pub(crate) fn destroy(&self, id: Id) -> io::Result<()> {
        call(&self.file, 0x80, &mut OneId { size: size::<OneId>(), id: id.0 }).map(drop)
    }

    /// IOAS_ALLOC.
    pub(crate) fn ioas(&self) -> io::Result<Id> {
        let mut argument = IoasAlloc { size: size::<IoasAlloc>(), flags: 0, out_id: 0 };
        call(&self.file, 0x81, &mut argument)?;
        Ok(Id(argument.out_id))
    }

    /// IOAS_MAP of a whole mapping at `iova`, readable, and writable if asked for.
    pub(crate) fn map(&self, ioas: Id, memory: &Mapping, iova: u64, writable: bool) -> io::Result<()> {
        let mut argument = IoasMap {
            size: size::<IoasMap>(),
            flags: FIXED_IOVA | READABLE | if writable { WRITEABLE } else { 0 },
            ioas: ioas.0,
            reserved: 0,
            user_address: memory.address(),
            length: memory.len() as u64,
            iova,
        };
        call(&self.file, 0x85, &mut argument).map(drop)
    }

    /// IOAS_UNMAP; returns the bytes unmapped.
    pub(crate) fn unmap(&self, ioas: Id, iova: u64, length: u64) -> io::Result<u64> {
        let mut argument = IoasUnmap { size: size::<IoasUnmap>(), ioas: ioas.0, iova, length };
        call(&self.file, 0x86, &mut argument)?;
        Ok(argument.length)
    }

    /// OPTION: maps an address space by 4 KiB pages only.
    pub(crate) fn small_pages(&self, ioas: Id) -> io::Result<()> {
        const HUGE_PAGES: u32 = 1;
        let mut argument = SetOption {
            size: size::<SetOption>(),
            option: HUGE_PAGES,
            operation: 0,
            reserved: 0,
            object: ioas.0,
            value: 0,
        };
        call(&self.file, 0x87, &mut argument).map(drop)
    }

    /// HWPT_ALLOC with flags and, if given, a fault queue.
    pub(crate) fn hwpt(&self, device: Id, kind: HwptKind, flags: u32, fault: Option<Id>) -> io::Result<Id> {
        const VTD_S1: u32 = 1;
        let (table, s1) = match kind {
            HwptKind::Paging(ioas) => (ioas, None),
            HwptKind::Nested(parent, s1) => (parent, Some(s1)),
        };
        let mut argument = HwptAlloc {
            size: size::<HwptAlloc>(),
            flags: flags | fault.map_or(0, |_| FAULT_ID_VALID),
            device: device.0,
            table: table.0,
            out_id: 0,
            reserved: 0,
            data_type: s1.map_or(0, |_| VTD_S1),
            data_length: s1.map_or(0, |_| size::<VtdS1>()),
            data: s1.as_ref().map_or(0, |s1| std::ptr::from_ref(s1) as u64),
            fault: fault.map_or(0, |fault| fault.0),
            reserved2: 0,
        };
        call(&self.file, 0x89, &mut argument)?;
        Ok(Id(argument.out_id))
    }

    /// GET_HW_INFO.
    pub(crate) fn hw_info(&self, device: Id) -> io::Result<HwInfo> {
        let mut info = VtdInfo::default();
        let mut argument = GetHwInfo {
            size: size::<GetHwInfo>(),
            flags: 0,
            device: device.0,
            data_length: size::<VtdInfo>(),
            data: std::ptr::from_mut(&mut info) as u64,
            data_type: 0,
            pasid_bits: 0,
            reserved: [0; 3],
            capabilities: 0,
        };
        call(&self.file, 0x8a, &mut argument)?;
        let GetHwInfo { data_type: kind, pasid_bits, capabilities, .. } = argument;
        Ok(HwInfo { kind, cap: info.cap, ecap: info.ecap, pasid_bits, capabilities })
    }

    /// HWPT_SET_DIRTY_TRACKING.
    pub(crate) fn track_dirty(&self, hwpt: Id, on: bool) -> io::Result<()> {
        let mut argument = SetDirtyTracking {
            size: size::<SetDirtyTracking>(),
            flags: u32::from(on),
            hwpt: hwpt.0,
            reserved: 0,
        };
        call(&self.file, 0x8b, &mut argument).map(drop)
    }

    /// HWPT_GET_DIRTY_BITMAP of `pages` pages of 4 KiB from `iova` on; a bit for each.
    pub(crate) fn dirty(&self, hwpt: Id, iova: u64, pages: usize, clear: bool) -> io::Result<Vec<bool>> {
        const PAGE: u64 = 4096;
        let mut bits = vec![0_u64; pages.div_ceil(64)];
        let mut argument = GetDirtyBitmap {
            size: size::<GetDirtyBitmap>(),
            hwpt: hwpt.0,
            flags: u32::from(!clear),
            reserved: 0,
            iova,
            length: pages as u64 * PAGE,
            page_size: PAGE,
            data: bits.as_mut_ptr() as u64,
        };
        call(&self.file, 0x8c, &mut argument)?;
        Ok((0..pages).map(|page| bits[page / 64] >> (page % 64) & 1 != 0).collect())
    }

    /// HWPT_INVALIDATE; how many entries were done, and the error that ended it.
    pub(crate) fn invalidate(&self, hwpt: Id, entries: &[VtdS1Invalidate]) -> (u32, io::Result<()>) {
        let mut argument = Invalidate {
            size: size::<Invalidate>(),
            hwpt: hwpt.0,
            data: entries.as_ptr() as u64,
            data_type: 0,
            entry_length: size::<VtdS1Invalidate>(),
            entries: u32::try_from(entries.len()).unwrap_or(u32::MAX),
            reserved: 0,
        };
        let outcome = call(&self.file, 0x8d, &mut argument).map(drop);
        (argument.entries, outcome)
    }

    /// FAULT_QUEUE_ALLOC: the object and its file.
    pub(crate) fn fault_queue(&self) -> io::Result<(Id, File)> {
        let mut argument = FaultAlloc { size: size::<FaultAlloc>(), flags: 0, out_id: 0, out_file: 0 };
        call(&self.file, 0x8e, &mut argument)?;
        let file = i32::try_from(argument.out_file).map_err(io::Error::other)?;
        // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
        Ok((Id(argument.out_id), unsafe { File::from_raw_fd(file) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_record_is_read_where_the_header_says() {
        let words: [u32; 10] = [3, 7, 0x4_0001, 9, 3, 0, 0x1234_5000, 0x7f00, 0, 0x55];
        let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
        let record = FaultRecord::decode(bytes.as_slice().try_into().unwrap());
        let expected = FaultRecord {
            pasid: Some(0x4_0001),
            last: true,
            device: Id(7),
            group: 9,
            permissions: 3,
            address: 0x7f00_1234_5000,
            cookie: 0x55,
        };
        assert_eq!(record, expected);
        assert_eq!(record.rights(), PageRights { read: true, write: true });
        assert_eq!(Response::Invalid.encode(0x55)[4..], 1_u32.to_ne_bytes());
    }
}
