//! Completion records: written last, and their pages asked for if need be (section 3.2).

use std::sync::atomic::Ordering;

use iommu_core::{Access, DmaFault, Gpa, Iova, Session};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryBackend, Permissions};
use zerocopy::IntoBytes;

use super::paging::Miss;
use super::{Remedy, Task, Worker, remedy};
use crate::svm::spec::Record;

impl<M: GuestMemoryBackend + Clone> Worker<M> {
    /// Writes a record, asking for its page if need be. `false`: it could not be written.
    pub(super) fn write_record(&mut self, task: &mut Task<'_>, address: Iova, mut record: Record) -> bool {
        if !address.0.is_multiple_of(size_of::<Record>() as u64) {
            return false;
        }
        loop {
            record.page_requests = u16::try_from(task.page_requests).unwrap_or(u16::MAX).into();
            match self.in_session(task.job, true, |session| store(session, address, &record)) {
                Ok((Ok(()), _)) => return true,
                Ok((Err(fault), ats)) => {
                    let asks = matches!(remedy(&fault, ats), Remedy::Ask);
                    if !asks || self.page_in(task, Miss::alone(address, Access::Write)).is_err() {
                        return false;
                    }
                }
                Err(_) => return false,
            }
        }
    }
}

/// Stores a record at its address, a multiple of its size: bytes 0 to 7 last, in one store.
fn store<M: GuestMemoryBackend>(
    session: &Session<'_, M>,
    address: Iova,
    record: &Record,
) -> Result<(), DmaFault> {
    let nowhere = || session.fault().unwrap_or(DmaFault::NoMemory { address, gpa: Gpa(0) });
    let bytes = record.as_bytes();
    let slice = session
        .get_slices(GuestAddress(address.0), bytes.len(), Permissions::Write)
        .ok()
        .and_then(|mut slices| slices.next()?.ok())
        .ok_or_else(nowhere)?;
    let (first, rest) = bytes.split_first_chunk::<8>().ok_or_else(nowhere)?;
    // Aligned, so it is one slice, unless a memory region ends inside.
    if slice.len() < bytes.len() {
        return Err(nowhere());
    }
    slice.offset(first.len()).map_err(|_| nowhere())?.copy_from(rest);
    slice.store(u64::from_ne_bytes(*first), 0, Ordering::Release).map_err(|_| nowhere())
}
