//! Layouts and constants of virtio 1.2 and its PCI transport, as far as they are emulated.

use bitbybit::bitfield;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, transmute};

use crate::pci::VendorSpec;

/// Vendor of every virtio function (§4.1.2).
pub const VENDOR: u16 = 0x1af4;
/// Device id of a modern function: this plus the device's kind (§4.1.2).
pub const DEVICE_BASE: u16 = 0x1040;
/// Lowest subsystem id that tells old drivers to stay away (§4.1.2.1).
pub const SUBSYSTEM: u16 = 0x40;
/// No MSI-X vector (§4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xffff;
/// Most queues of a device of this crate.
pub const MAX_QUEUES: usize = 64;

/// Feature bits that belong to no kind of device (§6).
pub mod feature {
    use virtio_bindings::virtio_config::{VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_VERSION_1};
    use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

    /// Descriptors may refer to tables of descriptors.
    pub const INDIRECT_DESC: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;
    /// Notifications are asked for by index.
    pub const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
    /// Not a legacy device.
    pub const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
    /// Addresses are those of the platform's DMA, not physical ones.
    pub const ACCESS_PLATFORM: u64 = 1 << VIRTIO_F_ACCESS_PLATFORM;

    /// Offered by every device.
    pub const ALWAYS: u64 = INDIRECT_DESC | EVENT_IDX | REQUIRED;
    /// A driver that leaves one of them out is refused.
    pub const REQUIRED: u64 = VERSION_1 | ACCESS_PLATFORM;
}

/// Device status (§2.1).
#[bitfield(u8, default = 0, debug, forbid_overlaps)]
#[derive(PartialEq, Eq)]
pub struct DeviceStatus {
    /// The guest has noticed the device.
    #[bit(0, rw)]
    acknowledge: bool,
    /// The guest has a driver for it.
    #[bit(1, rw)]
    driver: bool,
    /// The driver runs.
    #[bit(2, rw)]
    driver_ok: bool,
    /// The features are agreed on.
    #[bit(3, rw)]
    features_ok: bool,
    /// The device gave up.
    #[bit(6, rw)]
    needs_reset: bool,
    /// The driver gave up.
    #[bit(7, rw)]
    failed: bool,
}

/// ISR status (§4.1.4.5).
#[bitfield(u8, default = 0, debug, forbid_overlaps)]
pub struct IsrStatus {
    /// A queue has used buffers.
    #[bit(0, rw)]
    queue: bool,
    /// The configuration or the status changed.
    #[bit(1, rw)]
    configuration: bool,
}

/// Common configuration (§4.1.4.3), without what features would add that are not offered.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CommonConfig {
    /// Which 32 of the offered features `device_feature` shows.
    pub device_feature_select: U32,
    /// Offered features.
    pub device_feature: U32,
    /// Which 32 of the accepted features `driver_feature` shows.
    pub driver_feature_select: U32,
    /// Accepted features.
    pub driver_feature: U32,
    /// Vector of configuration changes.
    pub config_msix_vector: U16,
    /// Number of queues.
    pub num_queues: U16,
    /// [`DeviceStatus`].
    pub device_status: u8,
    /// Changes with the device configuration.
    pub config_generation: u8,
    /// Which queue the rest is about.
    pub queue_select: U16,
    /// Number of descriptors; 0: there is no such queue.
    pub queue_size: U16,
    /// Vector of the queue.
    pub queue_msix_vector: U16,
    /// 1: in use.
    pub queue_enable: U16,
    /// Where its notifications go, in units of the multiplier.
    pub queue_notify_off: U16,
    /// Descriptor table.
    pub queue_desc: U64,
    /// Available ring.
    pub queue_driver: U64,
    /// Used ring.
    pub queue_device: U64,
}

const COMMON_LEN: u32 = 0x38;
const _: () = assert!(size_of::<CommonConfig>() == COMMON_LEN as usize);

/// BAR0, a page for each structure. BAR1 holds MSI-X.
pub mod bar {
    /// Bytes of a page.
    pub const PAGE: u32 = 0x1000;
    /// The BAR with the structures below.
    pub const STRUCTURES: u8 = 0;
    /// Its length.
    pub const STRUCTURES_LEN: u32 = 4 * PAGE;
    /// Common configuration.
    pub const COMMON: u32 = 0;
    /// ISR status.
    pub const ISR: u32 = PAGE;
    /// Device configuration.
    pub const DEVICE: u32 = 2 * PAGE;
    /// Notifications, [`NOTIFY_MULTIPLIER`] bytes a queue.
    pub const NOTIFY: u32 = 3 * PAGE;
    /// Bytes between the notification addresses of two queues.
    pub const NOTIFY_MULTIPLIER: u32 = 4;
    /// The BAR with MSI-X.
    pub const MSIX: u8 = 1;
    /// Its length; the table comes first.
    pub const MSIX_LEN: u32 = PAGE;
    /// Pending bits.
    pub const MSIX_PENDING: u32 = PAGE / 2;
}

/// Structure kinds (§4.1.4).
pub mod structure {
    /// Common configuration.
    pub const COMMON: u8 = 1;
    /// Notifications.
    pub const NOTIFY: u8 = 2;
    /// ISR status.
    pub const ISR: u8 = 3;
    /// Device configuration.
    pub const DEVICE: u8 = 4;
    /// Access to BARs through configuration space.
    pub const PCI: u8 = 5;
}

/// A capability that says where a structure is (§4.1.4), after id and pointer.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Capability {
    /// Bytes of the capability, id and pointer included.
    pub cap_len: u8,
    /// Kind of structure.
    pub cfg_type: u8,
    /// BAR.
    pub bar: u8,
    /// Tells several of a kind apart.
    pub id: u8,
    /// Zeros.
    pub padding: [u8; 2],
    /// Offset in the BAR.
    pub offset: U32,
    /// Bytes.
    pub length: U32,
}

/// A capability with a word behind it.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LongCapability {
    /// The common part.
    pub capability: Capability,
    /// Of notifications (§4.1.4.4): the multiplier. Of BAR access (§4.1.4.9): the data.
    pub word: U32,
}

/// Bytes of a capability before [`Capability`]: id and pointer.
pub const CAPABILITY_HEAD: u16 = 2;

const fn capability(cfg_type: u8, cap_len: u8, offset: u32, length: u32) -> Capability {
    Capability {
        cap_len,
        cfg_type,
        bar: bar::STRUCTURES,
        id: 0,
        padding: [0; 2],
        offset: U32::new(offset),
        length: U32::new(length),
    }
}

const PLAIN: u8 = 16;
const EXTENDED: u8 = 20;
const NOTIFY_LEN: u32 = bar::NOTIFY_MULTIPLIER * 64;
const _: () = assert!(MAX_QUEUES == 64);

const COMMON_CAPABILITY: [u8; 14] = transmute!(capability(structure::COMMON, PLAIN, bar::COMMON, COMMON_LEN));
const ISR_CAPABILITY: [u8; 14] = transmute!(capability(structure::ISR, PLAIN, bar::ISR, 1));
const DEVICE_CAPABILITY: [u8; 14] = transmute!(capability(structure::DEVICE, PLAIN, bar::DEVICE, bar::PAGE));
const NOTIFY_CAPABILITY: [u8; 18] = transmute!(LongCapability {
    capability: capability(structure::NOTIFY, EXTENDED, bar::NOTIFY, NOTIFY_LEN),
    word: U32::new(bar::NOTIFY_MULTIPLIER),
});
/// The guest says which bytes it means.
const PCI_CAPABILITY: [u8; 18] =
    transmute!(LongCapability { capability: capability(structure::PCI, EXTENDED, 0, 0), word: U32::ZERO });
const PCI_WRITABLE: [u8; 18] = transmute!(LongCapability {
    capability: Capability { cfg_type: 0, bar: 0xff, ..capability(0, 0, u32::MAX, u32::MAX) },
    word: U32::ZERO,
});

/// The capabilities of every function.
pub const CAPABILITIES: &[VendorSpec] = &[
    VendorSpec { body: &COMMON_CAPABILITY, writable: &[] },
    VendorSpec { body: &ISR_CAPABILITY, writable: &[] },
    VendorSpec { body: &DEVICE_CAPABILITY, writable: &[] },
    VendorSpec { body: &NOTIFY_CAPABILITY, writable: &[] },
    VendorSpec { body: &PCI_CAPABILITY, writable: &PCI_WRITABLE },
];
