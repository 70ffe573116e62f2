//! Address spaces, of an iommufd and of containers.

use std::collections::BTreeMap;

use iommu_core::{IovaRange, Permissions};
use rustix::io::Errno;

use crate::kernel::Result;
use crate::memory::INTERRUPT_WINDOW;

/// What the hardware makes of addresses: the last that it takes.
pub(super) const LAST: u64 = (1 << 48) - 1;

/// What a mapping leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Memory at this address of this process.
    Memory(u64),
    /// A device's memory: number of the share, and offset into it.
    Device { share: usize, offset: u64 },
}

impl Target {
    fn plus(self, more: u64) -> Self {
        match self {
            Self::Memory(host) => Self::Memory(host + more),
            Self::Device { share, offset } => Self::Device { share, offset: offset + more },
        }
    }

    fn is_aligned(self) -> bool {
        let (Self::Memory(at) | Self::Device { offset: at, .. }) = self;
        at & 0xfff == 0
    }
}

#[derive(Clone, Copy, Debug)]
struct Mapped {
    last: u64,
    target: Target,
    permissions: Permissions,
    /// It was a device's memory, and leads nowhere any more.
    revoked: bool,
}

/// Mappings that do not overlap, by their first address.
#[derive(Debug, Default)]
pub(super) struct Space(BTreeMap<u64, Mapped>);

impl Space {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    fn overlapping(&self, range: &IovaRange) -> Vec<(u64, Mapped)> {
        let below = self.0.range(..=range.last()).rev();
        let mut found: Vec<_> =
            below.map(|(start, m)| (*start, *m)).take_while(|(_, m)| m.last >= range.start()).collect();
        found.reverse();
        found
    }

    pub(super) fn has(&self, range: &IovaRange) -> bool {
        !self.overlapping(range).is_empty()
    }

    /// Whether some of it may not be written.
    pub(super) fn has_read_only(&self) -> bool {
        self.0.values().any(|mapped| !mapped.permissions.write)
    }

    /// Maps; `used`: a page table is fed by it, so that what hardware cannot do shows.
    pub(super) fn map(
        &mut self,
        iova: u64,
        len: u64,
        (target, permissions): (Target, Permissions),
        used: bool,
    ) -> Result<()> {
        let last = iova.checked_add(len.checked_sub(1).ok_or(Errno::INVAL)?).ok_or(Errno::OVERFLOW)?;
        let range = IovaRange::new(iova, last).ok_or(Errno::INVAL)?;
        let aligned = iova & 0xfff == 0 && len & 0xfff == 0 && target.is_aligned();
        let reserved = range.overlaps(&INTERRUPT_WINDOW) || last > LAST;
        if permissions == Permissions::NONE || !aligned || used && reserved {
            return Err(Errno::INVAL);
        }
        if self.has(&range) {
            return Err(Errno::EXIST);
        }
        self.0.insert(iova, Mapped { last, target, permissions, revoked: false });
        Ok(())
    }

    /// What is mapped without a gap at `range`: pieces with their length, address in this process and permissions.
    pub(super) fn pieces(&self, range: &IovaRange) -> Result<Vec<(u64, Target, Permissions)>> {
        let mut at = Some(range.start());
        let mut pieces = Vec::new();
        for (start, mapped) in self.overlapping(range) {
            let first = start.max(range.start());
            let last = mapped.last.min(range.last());
            if at != Some(first) {
                return Err(Errno::NOENT);
            }
            pieces.push((last - first + 1, mapped.target.plus(first - start), mapped.permissions));
            at = last.checked_add(1);
        }
        if pieces.is_empty() || at.is_some_and(|at| at <= range.last()) {
            Err(Errno::NOENT)
        } else {
            Ok(pieces)
        }
    }

    /// Takes back what lies in `range`, up to the first mapping that would be cut. How many were, and whether all.
    pub(super) fn unmap(&mut self, range: &IovaRange) -> (usize, bool) {
        let found = self.overlapping(range);
        let whole = |(start, mapped): &&(u64, Mapped)| range.contains(*start) && range.contains(mapped.last);
        let gone: Vec<_> = found.iter().take_while(whole).map(|(start, _)| *start).collect();
        for start in &gone {
            self.0.remove(start);
        }
        (gone.len(), gone.len() == found.len())
    }

    /// Whether one of the mappings would be cut.
    pub(super) fn cuts(&self, range: &IovaRange) -> bool {
        let found = self.overlapping(range);
        found.iter().any(|(start, mapped)| !range.contains(*start) || !range.contains(mapped.last))
    }

    /// Where an address leads.
    pub(super) fn lookup(&self, address: u64) -> Option<(Target, Permissions)> {
        let (start, mapped) = self.0.range(..=address).next_back()?;
        let there = mapped.last >= address && !mapped.revoked;
        there.then(|| (mapped.target.plus(address - start), mapped.permissions))
    }

    /// Where an address leads in this process, if it is memory.
    pub(super) fn lookup_memory(&self, address: u64) -> Option<(u64, Permissions)> {
        match self.lookup(address)? {
            (Target::Memory(host), permissions) => Some((host, permissions)),
            (Target::Device { .. }, _) => None,
        }
    }

    /// Nothing leads to a device's memory any more.
    pub(super) fn revoke(&mut self, share: usize) {
        let of_share =
            |mapped: &&mut Mapped| matches!(mapped.target, Target::Device { share: it, .. } if it == share);
        self.0.values_mut().filter(of_share).for_each(|mapped| mapped.revoked = true);
    }
}

/// Everything that hardware can use.
pub(super) fn usable() -> Vec<IovaRange> {
    let below = IovaRange::new(0, INTERRUPT_WINDOW.start() - 1);
    let above = IovaRange::new(INTERRUPT_WINDOW.last() + 1, LAST);
    below.into_iter().chain(above).collect()
}
