//! Layouts and constants of the disk (§5.2).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Kind of device (§5).
pub const KIND: u16 = 2;
/// PCI class: mass storage, SCSI, as other virtio disks have it.
pub const CLASS: u32 = 0x01_0000;
/// Bytes of a sector, the unit of all addresses whatever the block size (§5.2.4).
pub const SECTOR: u64 = 512;
/// Bytes of the answer to get-id.
pub const ID_BYTES: usize = 20;
/// Descriptors of the queue.
pub const QUEUE_SIZE: u16 = 256;
/// Most data buffers of a request: those of a chain without header and status.
pub const SEGMENTS_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Most sectors of a segment of a discard.
pub const DISCARD_SECTORS_MAX: u32 = 1 << 22;
/// Most segments of a discard.
pub const DISCARD_SEGMENTS_MAX: u32 = 32;

/// Features of disks (§5.2.3).
pub mod feature {
    use virtio_bindings::virtio_blk as bit;

    /// `seg_max` is valid.
    pub const SEG_MAX: u64 = 1 << bit::VIRTIO_BLK_F_SEG_MAX;
    /// Writes fail.
    pub const READ_ONLY: u64 = 1 << bit::VIRTIO_BLK_F_RO;
    /// `blk_size` is valid.
    pub const BLOCK_SIZE: u64 = 1 << bit::VIRTIO_BLK_F_BLK_SIZE;
    /// Flush exists, and writes may be volatile until then.
    pub const FLUSH: u64 = 1 << bit::VIRTIO_BLK_F_FLUSH;
    /// Discard exists.
    pub const DISCARD: u64 = 1 << bit::VIRTIO_BLK_F_DISCARD;
}

/// Request types (§5.2.6).
pub mod request {
    use virtio_bindings::virtio_blk as kind;

    /// Read.
    pub const READ: u32 = kind::VIRTIO_BLK_T_IN;
    /// Write.
    pub const WRITE: u32 = kind::VIRTIO_BLK_T_OUT;
    /// Make durable what was written.
    pub const FLUSH: u32 = kind::VIRTIO_BLK_T_FLUSH;
    /// The disk's name.
    pub const GET_ID: u32 = kind::VIRTIO_BLK_T_GET_ID;
    /// Forget contents.
    pub const DISCARD: u32 = kind::VIRTIO_BLK_T_DISCARD;
}

/// Head of a request (§5.2.6).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// One of [`request`].
    pub kind: U32,
    /// Ignored.
    pub reserved: U32,
    /// First sector of a read or write.
    pub sector: U64,
}

/// A segment of a discard (§5.2.6).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DiscardSegment {
    /// First sector.
    pub sector: U64,
    /// Sectors.
    pub sectors: U32,
    /// Bit 0 is "unmap", for write-zeroes only; the rest is reserved.
    pub flags: U32,
}

/// Device configuration (§5.2.4) up to what discard needs.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Config {
    /// Sectors.
    pub capacity: U64,
    /// Not offered.
    pub size_max: U32,
    /// Most data buffers of a request.
    pub seg_max: U32,
    /// Not offered: cylinders, heads, sectors.
    pub geometry: [u8; 4],
    /// Bytes of a logical block.
    pub blk_size: U32,
    /// Not offered: physical block exponent, alignment, least and best I/O size.
    pub topology: [u8; 8],
    /// Not offered.
    pub writeback: u8,
    /// Zero.
    pub unused: u8,
    /// Not offered.
    pub num_queues: U16,
    /// Most sectors of a segment of a discard.
    pub max_discard_sectors: U32,
    /// Most segments of a discard.
    pub max_discard_seg: U32,
    /// Sectors to which a discard should be aligned.
    pub discard_sector_alignment: U32,
}

const _: () = assert!(std::mem::offset_of!(Config, max_discard_sectors) == 36);
