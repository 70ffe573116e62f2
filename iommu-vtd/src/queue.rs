//! Chapter 6: the invalidation queue as a ring in guest memory.
//!
//! [`fetch`] takes one descriptor out; who calls it, how often, and what then happens is [`crate::unit`]'s.

use arbitrary_int::traits::Integer;
use arbitrary_int::{u3, u52};
use iommu_core::{Gpa, Msi, SourceId};

use crate::capability::Capability;
use crate::fault;
use crate::invalidation::{Descriptor, QueueError, QueueMode, decode};
use crate::memory::TableMemory;
use crate::regs::{FSTS, IQERCD, IQH, IQT, RegisterFile};
use crate::spec::registers::{FaultStatus, QueueAddress, QueueOffset, TranslationTableMode};

/// A ring, as latched when the queue was enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    base: Gpa,
    /// Bytes of the ring; at most 2^7 pages.
    len_bytes: u64,
    wide: bool,
}

impl Ring {
    /// The ring that IQA describes.
    #[must_use]
    pub fn latch(address: QueueAddress) -> Self {
        Self {
            base: Gpa(address.iqa().value() << 12),
            len_bytes: 4096 << address.qs().as_u32(),
            wide: address.dw(),
        }
    }

    /// What IQA said when the ring was latched.
    #[must_use]
    pub fn address(&self) -> QueueAddress {
        let pages = self.len_bytes >> 12;
        QueueAddress::DEFAULT
            .with_iqa(u52::masked_new(self.base.0 >> 12))
            .with_qs(u3::masked_new(pages.trailing_zeros()))
            .with_dw(self.wide)
    }

    /// Whether a head may stand at `offset`: at a descriptor, inside the ring.
    #[must_use]
    pub fn holds(&self, offset: u64) -> bool {
        offset < self.len_bytes && offset.is_multiple_of(self.descriptor_bytes())
    }

    fn descriptor_bytes(&self) -> u64 {
        if self.wide { 32 } else { 16 }
    }

    /// Number of descriptors: a bound for what one tail write can make the unit do.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.len_bytes / self.descriptor_bytes()
    }

    fn read(&self, head: u64, memory: &impl TableMemory) -> Option<[u64; 4]> {
        let gpa = Gpa(self.base.0.checked_add(head)?);
        if self.wide {
            return memory.load_words::<4>(gpa);
        }
        memory.load_words::<2>(gpa).map(|[low, high]| [low, high, 0, 0])
    }
}

/// Whether there is a descriptor and no error that keeps it from being fetched.
#[must_use]
pub fn may_fetch(file: &RegisterFile) -> bool {
    let status = file.get(FSTS);
    !status.iqe() && !status.ite() && file.get(IQH) != file.get(IQT)
}

/// The next descriptor, with the head moved past it; `None` if the queue is empty or has stopped.
///
/// # Errors
/// The queue is to [`stop`]; the head stays at the offending descriptor.
pub fn fetch(
    file: &mut RegisterFile,
    ring: &Ring,
    tables: TranslationTableMode,
    memory: &impl TableMemory,
    capability: &Capability,
) -> Result<Option<Descriptor>, QueueError> {
    if !may_fetch(file) {
        return Ok(None);
    }
    let head = file.get(IQH).raw_value();
    let tail = file.get(IQT).raw_value();
    if tail >= ring.len_bytes {
        return Err(QueueError::TailOutOfRange);
    }
    if !tail.is_multiple_of(ring.descriptor_bytes()) {
        return Err(QueueError::TailMisaligned);
    }
    let words = ring.read(head, memory).ok_or(QueueError::Fetch)?;
    let descriptor = decode(&words, QueueMode { wide: ring.wide, tables }, capability)?;
    let next = (head + ring.descriptor_bytes()) % ring.len_bytes;
    file.set(IQH, QueueOffset::new_with_raw_value(next));
    Ok(Some(descriptor))
}

/// Stops the queue until software clears FSTS.IQE. Yields the fault event's message, if one is due.
#[must_use]
pub fn stop(file: &mut RegisterFile, error: QueueError) -> Option<Msi> {
    log::debug!("invalidation queue stopped at {:#x}: {error:?}", file.get(IQH).raw_value());
    let record = file.get(IQERCD);
    file.set(IQERCD, record.with_iqei(arbitrary_int::u4::new(error as u8)));
    fault::signal(file, FaultStatus::DEFAULT.with_iqe(true))
}

/// A function did not complete the invalidation of its device-TLB: stops the queue until software clears FSTS.ITE. Yields
/// the fault event's message, if one is due.
///
/// The head stays behind the wait that was pending, which is aborted: it never reports. That is where Linux looks for
/// waits to repeat, together with what they wait for; and the queue goes on for others when the function never answers.
#[must_use]
pub fn time_out(file: &mut RegisterFile, source: SourceId) -> Option<Msi> {
    log::debug!("{source} did not complete a device-TLB invalidation");
    let record = file.get(IQERCD);
    file.set(IQERCD, record.with_itesid(source.0));
    fault::signal(file, FaultStatus::DEFAULT.with_ite(true))
}
