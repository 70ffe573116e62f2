//! Structures that go through iommufd as bytes. `include/uapi/linux/iommufd.h`.
//!
//! Those that are arguments of ioctls themselves come from the crate `iommufd-bindings`; these are read and written
//! as bytes, by the code that knows what they mean and by the fake kernel, and so are plain data without padding.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `IOMMU_HWPT_DATA_VTD_S1`.
pub const HWPT_DATA_VTD_S1: u32 = iommufd_bindings::iommufd::iommu_hwpt_data_type_IOMMU_HWPT_DATA_VTD_S1;
/// `IOMMU_HWPT_INVALIDATE_DATA_VTD_S1`.
pub const INVALIDATE_DATA_VTD_S1: u32 =
    iommufd_bindings::iommufd::iommu_hwpt_invalidate_data_type_IOMMU_HWPT_INVALIDATE_DATA_VTD_S1;

/// A guest's first-stage table. `struct iommu_hwpt_vtd_s1`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct VtdS1 {
    /// [`VtdS1::SRE`] and others.
    pub flags: u64,
    /// Root, in the parent's input addresses: guest-physical.
    pub pgtbl_addr: u64,
    /// Input width in bits: 48 or 57.
    pub addr_width: u32,
    /// 0.
    pub reserved: u32,
}

impl VtdS1 {
    /// Supervisor requests.
    pub const SRE: u64 = 1;
    /// Extended accessed flag.
    pub const EAFE: u64 = 1 << 1;
    /// Write protect; honoured with [`Self::SRE`] only.
    pub const WPE: u64 = 1 << 2;
}

/// One invalidation. `struct iommu_hwpt_vtd_s1_invalidate`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VtdS1Invalidate {
    /// First address, 4 KiB-aligned.
    pub addr: u64,
    /// Number of 4 KiB pages; `u64::MAX` with address 0: all. Never 0.
    pub npages: u64,
    /// [`Self::LEAF`] or 0.
    pub flags: u32,
    /// 0.
    pub reserved: u32,
}

impl VtdS1Invalidate {
    /// Paging-structure caches may stay.
    pub const LEAF: u32 = 1;
    /// Everything.
    pub const ALL: Self = Self { addr: 0, npages: u64::MAX, flags: 0, reserved: 0 };
}

/// A page request as it is read. `struct iommu_hwpt_pgfault`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FaultRecord {
    /// [`Self::PASID_VALID`], [`Self::LAST_PAGE`].
    pub flags: u32,
    /// The iommufd object of the device.
    pub dev_id: u32,
    /// PASID, if valid.
    pub pasid: u32,
    /// Group index.
    pub grpid: u32,
    /// [`Self::READ`] and others.
    pub perm: u32,
    /// 0.
    pub reserved: u32,
    /// Page address.
    pub addr: u64,
    /// Hint, in bytes; 0 today.
    pub length: u32,
    /// Names the group in the response. Any number: Linux begins with 1, but also gives 0 once that was answered.
    pub cookie: u32,
}

impl FaultRecord {
    /// Size in bytes.
    pub const BYTES: usize = size_of::<Self>();
    /// `pasid` counts.
    pub const PASID_VALID: u32 = 1;
    /// Last of its group.
    pub const LAST_PAGE: u32 = 1 << 1;
    /// Read access is wanted.
    pub const READ: u32 = 1;
    /// Write access is wanted.
    pub const WRITE: u32 = 1 << 1;
    /// Execute access is wanted.
    pub const EXEC: u32 = 1 << 2;
    /// For a privileged context.
    pub const PRIV: u32 = 1 << 3;
}

/// A response as it is written. `struct iommu_hwpt_page_response`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FaultResponse {
    /// Of the group.
    pub cookie: u32,
    /// [`Self::SUCCESS`] or [`Self::INVALID`].
    pub code: u32,
}

impl FaultResponse {
    /// Size in bytes.
    pub const BYTES: usize = size_of::<Self>();
    /// Translate again.
    pub const SUCCESS: u32 = 0;
    /// Give up.
    pub const INVALID: u32 = 1;
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use iommufd_bindings::iommufd as c;

    use super::*;

    /// Ours and those made from the kernel's header.
    #[test]
    fn layouts_are_the_kernels() {
        assert_eq!(size_of::<VtdS1>(), size_of::<c::iommu_hwpt_vtd_s1>());
        assert_eq!(offset_of!(VtdS1, addr_width), offset_of!(c::iommu_hwpt_vtd_s1, addr_width));
        assert_eq!(size_of::<VtdS1Invalidate>(), size_of::<c::iommu_hwpt_vtd_s1_invalidate>());
        let flags = offset_of!(c::iommu_hwpt_vtd_s1_invalidate, flags);
        assert_eq!(offset_of!(VtdS1Invalidate, flags), flags);
        assert_eq!(size_of::<FaultRecord>(), size_of::<c::iommu_hwpt_pgfault>());
        assert_eq!(offset_of!(FaultRecord, addr), offset_of!(c::iommu_hwpt_pgfault, addr));
        assert_eq!(offset_of!(FaultRecord, cookie), offset_of!(c::iommu_hwpt_pgfault, cookie));
        assert_eq!(size_of::<FaultResponse>(), size_of::<c::iommu_hwpt_page_response>());
    }

    #[test]
    fn flags_are_the_kernels() {
        let rows = [
            ("SRE", VtdS1::SRE, u64::from(c::iommu_hwpt_vtd_s1_flags_IOMMU_VTD_S1_SRE)),
            ("EAFE", VtdS1::EAFE, u64::from(c::iommu_hwpt_vtd_s1_flags_IOMMU_VTD_S1_EAFE)),
            ("WPE", VtdS1::WPE, u64::from(c::iommu_hwpt_vtd_s1_flags_IOMMU_VTD_S1_WPE)),
            (
                "LEAF",
                u64::from(VtdS1Invalidate::LEAF),
                u64::from(c::iommu_hwpt_vtd_s1_invalidate_flags_IOMMU_VTD_INV_FLAGS_LEAF),
            ),
            (
                "PASID valid",
                u64::from(FaultRecord::PASID_VALID),
                u64::from(c::iommu_hwpt_pgfault_flags_IOMMU_PGFAULT_FLAGS_PASID_VALID),
            ),
            (
                "last",
                u64::from(FaultRecord::LAST_PAGE),
                u64::from(c::iommu_hwpt_pgfault_flags_IOMMU_PGFAULT_FLAGS_LAST_PAGE),
            ),
            (
                "write",
                u64::from(FaultRecord::WRITE),
                u64::from(c::iommu_hwpt_pgfault_perm_IOMMU_PGFAULT_PERM_WRITE),
            ),
            (
                "invalid",
                u64::from(FaultResponse::INVALID),
                u64::from(c::iommufd_page_response_code_IOMMUFD_PAGE_RESP_INVALID),
            ),
        ];
        for (name, ours, kernels) in rows {
            assert_eq!(ours, kernels, "{name}");
        }
    }
}
