//! A descriptor chain, read out of the ring and checked (§2.7.4, §2.7.5).

use iommu_core::{Iova, Session};
use virtio_queue::DescriptorChain;
use vm_memory::GuestMemoryBackend;

use super::stop::Mistake;

/// Most buffers of a chain. A driver may make none that is longer than its queue (§2.7.5.3.1), but some that shrink
/// their queue do.
pub const MOST_BUFFERS: u16 = 1024;

/// A buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where.
    pub address: Iova,
    /// Bytes.
    pub len: u32,
}

/// The buffers of one direction, as one range of bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segments {
    list: Vec<Segment>,
    len: u64,
}

impl Segments {
    /// Bytes of all buffers, below 2^32.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is not a byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn push(&mut self, segment: Segment) {
        self.len += u64::from(segment.len);
        self.list.push(segment);
    }

    /// The pieces that hold `len` bytes from `offset` on, in order; fewer bytes where the range ends before.
    /// A piece whose address wraps is cut into nothing: it ends the walk. **Pure.**
    pub fn pieces(&self, offset: u64, len: usize) -> impl Iterator<Item = (Iova, usize)> {
        let (mut skip, mut rest) = (offset, len);
        self.list.iter().map_while(move |segment| {
            let inside = skip.min(u64::from(segment.len));
            skip -= inside;
            let available = usize::try_from(u64::from(segment.len) - inside).unwrap_or(usize::MAX);
            let taken = available.min(rest);
            rest -= taken;
            segment.address.0.checked_add(inside).map(|address| (Iova(address), taken))
        })
    }
}

/// One chain: what the device may read, then what it may write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name in the rings.
    pub head: u16,
    /// Buffers for the device to read.
    pub readable: Segments,
    /// Buffers for the device to write.
    pub writable: Segments,
}

impl Chain {
    /// Reads a chain of at most [`MOST_BUFFERS`] buffers, inside the session that `chain` came from.
    ///
    /// # Errors
    /// It cannot be read, or is no chain that a driver may make.
    pub fn read<M: GuestMemoryBackend>(mut chain: DescriptorChain<&Session<'_, M>>) -> Result<Self, Mistake> {
        let mut read =
            Self { head: chain.head_index(), readable: Segments::default(), writable: Segments::default() };
        // The iterator also ends where it finds something wrong; then the last buffer had said that another follows.
        let mut more = true;
        for descriptor in chain.by_ref().take(usize::from(MOST_BUFFERS) + 1) {
            let segment = Segment { address: Iova(descriptor.addr().0), len: descriptor.len() };
            match descriptor.is_write_only() {
                true => read.writable.push(segment),
                false if read.writable.list.is_empty() => read.readable.push(segment),
                false => return Err(Mistake::Chain),
            }
            more = descriptor.has_next();
        }
        if let Some(fault) = chain.memory().fault() {
            return Err(Mistake::Memory(fault.address()));
        }
        let count = read.readable.list.len() + read.writable.list.len();
        if more || count > usize::from(MOST_BUFFERS) { Err(Mistake::Chain) } else { Ok(read) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_the_range_and_nothing_else() {
        let mut segments = Segments::default();
        for (address, len) in [(0x1000, 0x10), (0x9000, 0), (0x5000, 0x20), (u64::MAX - 3, 8)] {
            segments.push(Segment { address: Iova(address), len });
        }
        type Row = (&'static str, u64, usize, &'static [(u64, usize)]);
        let rows: [Row; 6] = [
            ("all of the first", 0, 0x10, &[(0x1000, 0x10)]),
            ("across", 8, 0x10, &[(0x1008, 8), (0x5000, 8)]),
            ("the second", 0x10, 0x20, &[(0x5000, 0x20)]),
            ("nothing", 4, 0, &[]),
            ("beyond the end", 0x28, 0x100, &[(0x5018, 8), (u64::MAX - 3, 8)]),
            ("an address that wraps", 0x36, 1, &[]),
        ];
        for (name, offset, len, expected) in rows {
            let found: Vec<(u64, usize)> =
                segments.pieces(offset, len).map(|(a, n)| (a.0, n)).filter(|(_, n)| *n > 0).collect();
            assert_eq!(found, expected, "{name}");
        }
        assert_eq!(segments.len(), 0x38);
    }
}
