//! The disk as a service for chains.

use std::io;

use vm_memory::GuestMemoryBackend;
use zerocopy::{FromBytes, IntoBytes};

use super::disk::Disk;
use super::request::{Limits, Request, Status};
use super::spec::{
    CLASS, Config, DISCARD_SECTORS_MAX, DISCARD_SEGMENTS_MAX, DiscardSegment, Header, ID_BYTES, KIND,
    QUEUE_SIZE, SECTOR, SEGMENTS_MAX, feature,
};
use crate::virtio::chain::Chain;
use crate::virtio::device::{Description, Service};
use crate::virtio::lane::{Lane, MOST_BYTES};
use crate::virtio::stop::{Denied, Mistake, Stop};

const HEADER: u64 = size_of::<Header>() as u64;
const DISCARD_SEGMENT: u64 = size_of::<DiscardSegment>() as u64;

/// A disk.
pub struct Blk {
    disk: Box<dyn Disk>,
    limits: Limits,
    id: [u8; ID_BYTES],
    durable_writes: bool,
    /// Where data waits between guest and disk.
    buffer: Vec<u8>,
}

/// Why a request is not done.
enum Failure {
    /// The driver is told.
    Status(Status),
    Stop(Stop),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl From<Denied> for Failure {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::Gone => Self::Stop(Stop::Gone),
            Denied::Fault => Self::Status(Status::IoError),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        log::debug!("virtio disk: {error}");
        Self::Status(Status::IoError)
    }
}

impl Blk {
    /// A disk with these contents, in whole sectors: a rest is out of reach. Of `id` the first [`ID_BYTES`] bytes count.
    #[must_use]
    pub fn new(disk: Box<dyn Disk>, id: &str, read_only: bool) -> Self {
        let limits = Limits { disk: disk.len() / SECTOR * SECTOR, read_only };
        let mut name = [0; ID_BYTES];
        name.iter_mut().zip(id.as_bytes()).for_each(|(slot, byte)| *slot = *byte);
        Self { disk, limits, id: name, durable_writes: true, buffer: vec![0; MOST_BYTES] }
    }

    /// For the transport.
    #[must_use]
    pub fn description(&self) -> Description {
        let config = Config {
            capacity: (self.limits.disk / SECTOR).into(),
            seg_max: SEGMENTS_MAX.into(),
            blk_size: u32::try_from(SECTOR).unwrap_or(0).into(),
            max_discard_sectors: DISCARD_SECTORS_MAX.into(),
            max_discard_seg: DISCARD_SEGMENTS_MAX.into(),
            discard_sector_alignment: 8.into(),
            ..Config::default()
        };
        let kind = if self.limits.read_only { feature::READ_ONLY } else { feature::DISCARD };
        Description {
            kind: KIND,
            class: CLASS,
            features: feature::SEG_MAX | feature::BLOCK_SIZE | feature::FLUSH | kind,
            queue_sizes: vec![QUEUE_SIZE],
            config: config.as_bytes().to_vec(),
        }
    }

    /// Does what a chain with room for `writable` bytes of data asks for, and returns how many it wrote.
    fn perform<M: GuestMemoryBackend>(
        &mut self,
        chain: &Chain,
        writable: u64,
        lane: &mut Lane<M>,
    ) -> Result<u64, Failure> {
        let mut header = [0; size_of::<Header>()];
        lane.read(&chain.readable, 0, &mut header)?;
        let header = Header::read_from_bytes(&header).map_err(|_| Status::IoError)?;
        let readable = chain.readable.len().saturating_sub(HEADER);
        match self.limits.decode(&header, readable, writable)? {
            Request::Read { offset, len } => self.read(chain, offset, len, lane),
            Request::Write { offset, len } => self.write(chain, offset, len, lane),
            Request::Flush => Ok(self.disk.flush().map(|()| 0)?),
            Request::GetId => {
                let len = ID_BYTES.min(usize::try_from(writable).unwrap_or(ID_BYTES));
                lane.write(&chain.writable, 0, &self.id[..len])?;
                Ok(len as u64)
            }
            Request::Discard { len } => self.discard(chain, len, lane),
        }
    }

    fn read<M: GuestMemoryBackend>(
        &mut self,
        chain: &Chain,
        offset: u64,
        len: u64,
        lane: &mut Lane<M>,
    ) -> Result<u64, Failure> {
        for (at, part) in parts(len) {
            let data = &mut self.buffer[..part];
            self.disk.read(offset + at, data)?;
            lane.write(&chain.writable, at, data)?;
        }
        Ok(len)
    }

    fn write<M: GuestMemoryBackend>(
        &mut self,
        chain: &Chain,
        offset: u64,
        len: u64,
        lane: &mut Lane<M>,
    ) -> Result<u64, Failure> {
        for (at, part) in parts(len) {
            let data = &mut self.buffer[..part];
            lane.read(&chain.readable, HEADER + at, data)?;
            self.disk.write(offset + at, data)?;
        }
        if self.durable_writes {
            self.disk.flush()?;
        }
        Ok(0)
    }

    /// All segments are judged before the first is acted on.
    fn discard<M: GuestMemoryBackend>(
        &mut self,
        chain: &Chain,
        len: u64,
        lane: &mut Lane<M>,
    ) -> Result<u64, Failure> {
        let count = len / DISCARD_SEGMENT;
        if !len.is_multiple_of(DISCARD_SEGMENT) || count > DISCARD_SEGMENTS_MAX.into() {
            return Err(Status::IoError.into());
        }
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        lane.read(&chain.readable, HEADER, &mut bytes)?;
        let segments = <[DiscardSegment]>::ref_from_bytes(&bytes).map_err(|_| Status::IoError)?;
        let mut ranges = Vec::with_capacity(segments.len());
        for segment in segments {
            if segment.flags.get() != 0 {
                return Err(Status::Unsupported.into());
            }
            let bytes = u64::from(segment.sectors.get()) * SECTOR;
            if segment.sectors.get() > DISCARD_SECTORS_MAX {
                return Err(Status::IoError.into());
            }
            ranges.push((self.limits.range(segment.sector.get(), bytes)?, bytes));
        }
        for (offset, bytes) in ranges.into_iter().filter(|(_, bytes)| *bytes > 0) {
            self.disk.discard(offset, bytes)?;
        }
        Ok(0)
    }
}

/// Cuts `len` bytes into pieces that fit the buffer: where each begins, and its length. **Pure.**
fn parts(len: u64) -> impl Iterator<Item = (u64, usize)> {
    let most = MOST_BYTES as u64;
    (0..len.div_ceil(most)).map(move |n| (n * most, usize::try_from((len - n * most).min(most)).unwrap_or(0)))
}

impl<M: GuestMemoryBackend> Service<M> for Blk {
    fn start(&mut self, features: u64) {
        self.durable_writes = features & feature::FLUSH == 0;
    }

    fn serve(&mut self, _: u16, chain: &Chain, lane: &mut Lane<M>) -> Result<u32, Stop> {
        // The last byte that the device may write is the status (§5.2.6), whatever buffers it is cut into (§2.7.4.1).
        let writable = chain.writable.len().checked_sub(1).ok_or(Mistake::Chain)?;
        let (status, data) = match self.perform(chain, writable, lane) {
            Ok(data) => (Status::Ok, data),
            Err(Failure::Status(status)) => (status, 0),
            Err(Failure::Stop(stop)) => return Err(stop),
        };
        let (address, _) =
            chain.writable.pieces(writable, 1).find(|(_, len)| *len > 0).ok_or(Mistake::Chain)?;
        lane.write(&chain.writable, writable, &[status as u8]).map_err(|denied| Stop::of(denied, address))?;
        // What lies before the status counts as written only if all of it was.
        let all = data == writable;
        Ok(if all {
            u32::try_from(data + 1).unwrap_or(u32::MAX)
        } else {
            u32::try_from(data).unwrap_or(u32::MAX)
        })
    }
}
