//! Batches (section 3.1): descriptors that the device reads from memory by itself.

use iommu_core::{Access, DmaFault, Gpa, Iova, Session};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryBackend, Permissions};
use zerocopy::IntoBytes;

use super::paging::Miss;
use super::{Descriptor, End, Fate, Outcome, Task, Worker, ended};
use crate::svm::descriptor::Batch;

impl<M: GuestMemoryBackend + Clone> Worker<M> {
    /// Does a batch's descriptors, one after the other.
    pub(super) fn batch(&mut self, task: &mut Task<'_>, batch: Batch) -> Outcome {
        let mut first_failure = None;
        for index in 0..batch.count {
            let until_here =
                |end| Outcome { end, completed: index, result: first_failure.unwrap_or(u64::MAX) };
            let descriptor = match self.fetch(task, &batch, index) {
                Ok(descriptor) => descriptor,
                Err(end) => return until_here(end),
            };
            let header = descriptor.header();
            let mut element = Task { job: task.job, header, page_requests: 0, element: true };
            let outcome = match (self.queue().fate(task.job), descriptor.work()) {
                (Fate::Go, Err(_)) => End::Invalid.into(),
                (Fate::Go, Ok(_)) if header.fence && first_failure.is_some() => End::Fenced.into(),
                (Fate::Go, Ok(work)) => self.work(&mut element, work),
                (fate, _) => return until_here(ended(fate)),
            };
            self.complete(&mut element, outcome);
            match outcome.end {
                End::Success => {}
                End::Dropped => return End::Dropped.into(),
                _ => first_failure = first_failure.or(Some(index)),
            }
        }
        let end = if first_failure.is_some() { End::Incomplete } else { End::Success };
        Outcome { end, completed: batch.count, result: first_failure.unwrap_or(u64::MAX) }
    }

    /// Reads one of a batch's descriptors.
    fn fetch(&mut self, task: &mut Task<'_>, batch: &Batch, index: u64) -> Result<Descriptor, End> {
        let address = batch.at(index);
        loop {
            let read = self.in_session(task.job, false, |session| read(session, address));
            let (read, ats) = read.map_err(|blocked| blocked.end(address, Access::Read))?;
            match read {
                Ok(descriptor) => return Ok(descriptor),
                Err(fault) => {
                    let miss = Miss { last: Iova(batch.last()), ..Miss::of(&fault, Access::Read) };
                    self.resolve(task, miss, &fault, ats)?;
                }
            }
        }
    }
}

/// Reads a descriptor at a multiple of its size.
fn read<M: GuestMemoryBackend>(session: &Session<'_, M>, address: Iova) -> Result<Descriptor, DmaFault> {
    let nowhere = || session.fault().unwrap_or(DmaFault::NoMemory { address, gpa: Gpa(0) });
    let mut descriptor = Descriptor::default();
    let mut rest = descriptor.as_mut_bytes();
    let slices = session.get_slices(GuestAddress(address.0), rest.len(), Permissions::Read);
    for slice in slices.map_err(|_| nowhere())? {
        let length = slice.map_err(|_| nowhere())?.copy_to(rest);
        rest = &mut rest[length..];
    }
    Ok(descriptor)
}
