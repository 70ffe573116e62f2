//! The calls of the kernel, by name.

/// Declares the calls, and lists them.
macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// The calls that can fail.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Call {
            $($(#[$doc])* $name,)+
        }

        impl Call {
            /// Every one.
            pub const ALL: &[Self] = &[$(Self::$name,)+];
        }
    };
}

calls! {
    /// `IOMMU_DESTROY`.
    Destroy,
    /// `IOMMU_IOAS_ALLOC`.
    IoasAlloc,
    /// `IOMMU_IOAS_MAP`.
    IoasMap,
    /// `IOMMU_IOAS_MAP_FILE`.
    IoasMapFile,
    /// `IOMMU_IOAS_UNMAP`.
    IoasUnmap,
    /// `IOMMU_IOAS_COPY`.
    IoasCopy,
    /// `IOMMU_IOAS_IOVA_RANGES`.
    IovaRanges,
    /// `IOMMU_GET_HW_INFO`.
    HwInfo,
    /// `IOMMU_HWPT_ALLOC`.
    HwptAlloc,
    /// `IOMMU_HWPT_INVALIDATE`.
    Invalidate,
    /// `IOMMU_FAULT_QUEUE_ALLOC`.
    FaultQueueAlloc,
    /// `read` of a fault queue.
    FaultRead,
    /// `write` to a fault queue.
    FaultWrite,
    /// `VFIO_DEVICE_BIND_IOMMUFD`.
    Bind,
    /// `VFIO_DEVICE_ATTACH_IOMMUFD_PT`.
    Attach,
    /// `VFIO_DEVICE_DETACH_IOMMUFD_PT`.
    Detach,
    /// `pread` of configuration space.
    ConfigRead,
    /// `VFIO_DEVICE_GET_INFO`.
    DeviceInfo,
    /// `VFIO_DEVICE_GET_REGION_INFO`.
    RegionInfo,
    /// `pread` of a region, by the function.
    RegionRead,
    /// `pwrite` of a region.
    RegionWrite,
    /// `mmap` of a region.
    RegionMap,
    /// `VFIO_DEVICE_FEATURE` with `VFIO_DEVICE_FEATURE_DMA_BUF`.
    Share,
    /// `VFIO_DEVICE_GET_IRQ_INFO`.
    IrqInfo,
    /// `VFIO_DEVICE_SET_IRQS` with events.
    SetIrqs,
    /// `VFIO_DEVICE_SET_IRQS` that unmasks.
    UnmaskIrqs,
    /// `VFIO_DEVICE_SET_IRQS` with none.
    DisableIrqs,
    /// `VFIO_DEVICE_RESET`.
    Reset,
    /// `VFIO_IOMMU_MAP_DMA`.
    ContainerMap,
    /// `VFIO_IOMMU_UNMAP_DMA`.
    ContainerUnmap,
    /// `VFIO_IOMMU_GET_INFO`.
    ContainerInfo,
}
