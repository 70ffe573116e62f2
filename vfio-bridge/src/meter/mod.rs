//! A kernel asked through another, and everything counted: what a guest costs its host, for operators, and for tests
//! that compare it with what the guest's IOMMU and the host's were asked to do.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use iommu_core::sync::Mutex;
use iommu_core::{Durations, IovaRange, Percentiles, Permissions};
use rustix::io::Errno;
use serde::Serialize;
use zerocopy::FromBytes as _;

use crate::kernel::{
    ContainerFile, DeviceFile, Entries, FaultFile, HwInfo, HwptAlloc, IoasCopy, Kernel, ObjectId, Partial,
    Result,
};
use crate::memory::{HostRange, SharedMemory};
use crate::sys::uapi::{FaultRecord, FaultResponse, INVALIDATE_DATA_VTD_S1, VtdS1Invalidate};

/// What was asked of the host since the meter was made.
///
/// Calls are counted whether they succeed or not, records and answers if they do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MeterReading {
    /// Ranges of memory mapped, into an address space or a container.
    pub maps: u64,
    /// Ranges of devices' memory that other devices were let at: those that the host took.
    pub device_maps: u64,
    /// Mappings copied from one address space to another.
    pub copies: u64,
    /// Ranges unmapped.
    pub unmaps: u64,
    /// Page tables made, the parents of nested ones among them.
    pub tables_made: u64,
    /// Attachments of a device, or of a PASID of one, to a table.
    pub attachments: u64,
    /// Detachments.
    pub detachments: u64,
    /// Calls that invalidate in a nested table.
    pub invalidate_calls: u64,
    /// Entries of those calls.
    pub invalidate_entries: u64,
    /// Those of them that name a range of addresses, of the VT-d format; the others are for whole tables.
    pub invalidate_ranges: u64,
    /// Reads of fault queues, also those that found nothing.
    pub fault_reads: u64,
    /// Those of them that found nothing, as those do by which a guest's drain makes sure.
    pub empty_fault_reads: u64,
    /// Page requests that were read.
    pub page_requests: u64,
    /// Groups of page requests that were read to their ends.
    pub page_request_groups: u64,
    /// Writes to fault queues.
    pub fault_writes: u64,
    /// Answers that the host took.
    pub page_group_responses: u64,
    /// How long invalidating calls took.
    pub invalidate_times: Percentiles,
    /// From the moment a group was read to that when its answer was taken.
    pub page_request_times: Percentiles,
}

#[derive(Default)]
struct Meter {
    maps: AtomicU64,
    device_maps: AtomicU64,
    copies: AtomicU64,
    unmaps: AtomicU64,
    tables_made: AtomicU64,
    attachments: AtomicU64,
    detachments: AtomicU64,
    invalidate_calls: AtomicU64,
    invalidate_entries: AtomicU64,
    invalidate_ranges: AtomicU64,
    fault_reads: AtomicU64,
    empty_fault_reads: AtomicU64,
    page_requests: AtomicU64,
    page_request_groups: AtomicU64,
    fault_writes: AtomicU64,
    page_group_responses: AtomicU64,
    invalidate_times: Durations,
    page_request_times: Durations,
    /// When groups without answer were read, by cookie. The host gives a cookie again only after the group's end, so
    /// there are not more than it has groups under way at once.
    read_at: Mutex<HashMap<(ObjectId, u32), Instant>>,
}

/// How many entries name a range.
fn ranges(entries: &Entries<'_>) -> usize {
    if (entries.kind, entries.entry_len) != (INVALIDATE_DATA_VTD_S1, size_of::<VtdS1Invalidate>()) {
        return 0;
    }
    let entries = entries.bytes.chunks_exact(entries.entry_len);
    let entries = entries.filter_map(|bytes| VtdS1Invalidate::read_from_bytes(bytes).ok());
    entries.filter(|entry| entry.npages != u64::MAX).count()
}

fn add(counter: &AtomicU64, number: usize) {
    counter.fetch_add(number as u64, Ordering::Relaxed);
}

/// A kernel, and what is asked of it.
#[derive(Clone)]
pub struct Metered {
    kernel: Arc<dyn Kernel>,
    meter: Arc<Meter>,
}

impl Metered {
    /// Counts what `kernel` is asked from here on.
    #[must_use]
    pub fn new(kernel: Arc<dyn Kernel>) -> Self {
        Self { kernel, meter: Arc::default() }
    }

    /// Counts what a device is asked, too.
    #[must_use]
    pub fn device(&self, file: Box<dyn DeviceFile>) -> Box<dyn DeviceFile> {
        Box::new(MeteredDevice { file, meter: self.meter.clone() })
    }

    /// Counts what a container is asked, too.
    #[must_use]
    pub fn container(&self, file: Box<dyn ContainerFile>) -> Box<dyn ContainerFile> {
        Box::new(MeteredContainer { file, meter: self.meter.clone() })
    }

    /// The numbers. While the host is being asked, they are not of one moment.
    #[must_use]
    pub fn read(&self) -> MeterReading {
        let meter = &*self.meter;
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        MeterReading {
            maps: of(&meter.maps),
            device_maps: of(&meter.device_maps),
            copies: of(&meter.copies),
            unmaps: of(&meter.unmaps),
            tables_made: of(&meter.tables_made),
            attachments: of(&meter.attachments),
            detachments: of(&meter.detachments),
            invalidate_calls: of(&meter.invalidate_calls),
            invalidate_entries: of(&meter.invalidate_entries),
            invalidate_ranges: of(&meter.invalidate_ranges),
            fault_reads: of(&meter.fault_reads),
            empty_fault_reads: of(&meter.empty_fault_reads),
            page_requests: of(&meter.page_requests),
            page_request_groups: of(&meter.page_request_groups),
            fault_writes: of(&meter.fault_writes),
            page_group_responses: of(&meter.page_group_responses),
            invalidate_times: meter.invalidate_times.percentiles(),
            page_request_times: meter.page_request_times.percentiles(),
        }
    }
}

impl Kernel for Metered {
    fn destroy(&self, object: ObjectId) -> Result<()> {
        self.kernel.destroy(object)
    }

    fn ioas_alloc(&self) -> Result<ObjectId> {
        self.kernel.ioas_alloc()
    }

    fn ioas_map(
        &self,
        ioas: ObjectId,
        iova: u64,
        memory: &HostRange,
        permissions: Permissions,
    ) -> Result<()> {
        add(&self.meter.maps, 1);
        self.kernel.ioas_map(ioas, iova, memory, permissions)
    }

    fn ioas_map_file(
        &self,
        ioas: ObjectId,
        iova: u64,
        memory: &SharedMemory,
        permissions: Permissions,
    ) -> Result<()> {
        self.kernel.ioas_map_file(ioas, iova, memory, permissions)?;
        add(&self.meter.device_maps, 1);
        Ok(())
    }

    fn ioas_copy(&self, copy: &IoasCopy) -> Result<()> {
        add(&self.meter.copies, 1);
        self.kernel.ioas_copy(copy)
    }

    fn ioas_iova_ranges(&self, ioas: ObjectId) -> Result<Vec<IovaRange>> {
        self.kernel.ioas_iova_ranges(ioas)
    }

    fn ioas_unmap(&self, ioas: ObjectId, range: IovaRange) -> Result<()> {
        add(&self.meter.unmaps, 1);
        self.kernel.ioas_unmap(ioas, range)
    }

    fn hw_info(&self, device: ObjectId) -> Result<HwInfo> {
        self.kernel.hw_info(device)
    }

    fn hwpt_alloc(&self, request: &HwptAlloc<'_>) -> Result<ObjectId> {
        add(&self.meter.tables_made, 1);
        self.kernel.hwpt_alloc(request)
    }

    fn hwpt_invalidate(&self, hwpt: ObjectId, entries: &Entries<'_>) -> std::result::Result<(), Partial> {
        let meter = &*self.meter;
        add(&meter.invalidate_calls, 1);
        add(&meter.invalidate_entries, entries.bytes.len() / entries.entry_len.max(1));
        add(&meter.invalidate_ranges, ranges(entries));
        let start = Instant::now();
        let result = self.kernel.hwpt_invalidate(hwpt, entries);
        meter.invalidate_times.note(start.elapsed());
        result
    }

    fn fault_queue_alloc(&self) -> Result<(ObjectId, Box<dyn FaultFile>)> {
        let (queue, file) = self.kernel.fault_queue_alloc()?;
        Ok((queue, Box::new(MeteredFaults { file, queue, meter: self.meter.clone() })))
    }
}

struct MeteredFaults {
    file: Box<dyn FaultFile>,
    queue: ObjectId,
    meter: Arc<Meter>,
}

impl AsFd for MeteredFaults {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl FaultFile for MeteredFaults {
    fn read(&self, buffer: &mut [u8]) -> Result<usize> {
        let meter = &*self.meter;
        add(&meter.fault_reads, 1);
        let len = self.file.read(buffer)?;
        add(&meter.empty_fault_reads, usize::from(len == 0));
        let records = buffer.get(..len).unwrap_or_default().chunks_exact(FaultRecord::BYTES);
        let now = Instant::now();
        for record in records.filter_map(|bytes| FaultRecord::read_from_bytes(bytes).ok()) {
            add(&meter.page_requests, 1);
            if record.flags & FaultRecord::LAST_PAGE != 0 {
                add(&meter.page_request_groups, 1);
                meter.read_at.lock().insert((self.queue, record.cookie), now);
            }
        }
        Ok(len)
    }

    fn write(&self, responses: &[u8]) -> Result<usize> {
        let meter = &*self.meter;
        add(&meter.fault_writes, 1);
        // Before: once it is answered, the cookie may be given again.
        let cookies = responses.chunks_exact(FaultResponse::BYTES);
        let cookies = cookies.filter_map(|bytes| FaultResponse::read_from_bytes(bytes).ok());
        let name = |response: FaultResponse| (self.queue, response.cookie);
        let starts: Vec<_> = {
            let mut read_at = meter.read_at.lock();
            cookies.map(name).map(|name| (name, read_at.remove(&name))).collect()
        };
        let written = self.file.write(responses);
        let taken = written.unwrap_or(0) / FaultResponse::BYTES;
        add(&meter.page_group_responses, taken);
        let (answered, left) = starts.split_at(taken.min(starts.len()));
        for start in answered.iter().filter_map(|(_, start)| *start) {
            meter.page_request_times.note(start.elapsed());
        }
        if written != Err(Errno::INVAL) {
            // These wait on, and are offered again.
            let mut read_at = meter.read_at.lock();
            for (name, start) in left {
                start.map(|start| read_at.entry(*name).or_insert(start));
            }
        }
        written
    }
}

impl Drop for MeteredFaults {
    /// The queue goes, and with it what is unanswered.
    fn drop(&mut self) {
        self.meter.read_at.lock().retain(|(queue, _), _| *queue != self.queue);
    }
}

struct MeteredDevice {
    file: Box<dyn DeviceFile>,
    meter: Arc<Meter>,
}

impl DeviceFile for MeteredDevice {
    fn bind(&self) -> Result<ObjectId> {
        self.file.bind()
    }

    fn attach(&self, pasid: Option<u32>, table: ObjectId) -> Result<()> {
        add(&self.meter.attachments, 1);
        self.file.attach(pasid, table)
    }

    fn detach(&self, pasid: Option<u32>) -> Result<()> {
        add(&self.meter.detachments, 1);
        self.file.detach(pasid)
    }

    fn config_read(&self, offset: u16, buffer: &mut [u8]) -> Result<()> {
        self.file.config_read(offset, buffer)
    }
}

struct MeteredContainer {
    file: Box<dyn ContainerFile>,
    meter: Arc<Meter>,
}

impl ContainerFile for MeteredContainer {
    fn map(&self, iova: u64, memory: &HostRange, permissions: Permissions) -> Result<()> {
        add(&self.meter.maps, 1);
        self.file.map(iova, memory, permissions)
    }

    fn unmap(&self, range: IovaRange) -> Result<()> {
        add(&self.meter.unmaps, 1);
        self.file.unmap(range)
    }

    fn iova_ranges(&self) -> Result<Vec<IovaRange>> {
        self.file.iova_ranges()
    }
}
