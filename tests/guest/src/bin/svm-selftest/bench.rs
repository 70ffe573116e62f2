//! What every case works with: the endpoint and random numbers.

use anyhow::{Result, ensure};
pub(crate) use guest::expect::{ExpectedFault, faulted, requests, same, success};
pub(crate) use guest::suite::Skip;

use crate::endpoint::{Completion, Device, Endpoint, Operation, Queue};
use crate::model::Random;
use crate::sys::{Mapping, PAGE};

/// The surroundings of a case.
pub(crate) struct Bench<'a> {
    /// The endpoint. Nobody else has it open when a case starts.
    pub(crate) endpoint: &'a dyn Endpoint,
    /// Random numbers of this case.
    pub(crate) random: Random,
    /// Lines for whoever reads the output, without the leading `# `.
    pub(crate) notes: Vec<String>,
}

impl Bench<'_> {
    /// Binds this process and enables queue 0.
    pub(crate) fn lane(&self) -> Result<Lane> {
        let device = Device::open(self.endpoint)?;
        let queue = device.queue(0)?;
        Ok(Lane { queue, device })
    }

    /// Present, writable pages with random bytes, and a copy of these.
    pub(crate) fn resident(&mut self, pages: usize) -> Result<(Mapping, Vec<u8>)> {
        let bytes = self.random.bytes(pages * PAGE);
        let mapping = Mapping::anonymous(bytes.len())?;
        mapping.write(0, &bytes);
        Ok((mapping, bytes))
    }
}

/// Pages that are mapped but not there.
pub(crate) fn fresh(pages: usize) -> Result<Mapping> {
    Ok(Mapping::anonymous(pages * PAGE)?)
}

/// The endpoint open, with queue 0 enabled.
pub(crate) struct Lane {
    /// Queue 0; goes first when the lane is dropped.
    pub(crate) queue: Queue,
    /// The endpoint.
    pub(crate) device: Device,
}

impl Lane {
    /// Runs an operation alone on the device, which must succeed over `length` bytes; returns its
    /// page requests, on which record, queue and device must agree.
    pub(crate) fn counted(&self, operation: &Operation, length: usize) -> Result<u64> {
        let (completion, requests) = self.run_counted(operation)?;
        success(&completion, length)?;
        Ok(requests)
    }

    /// Runs an operation alone on the device; returns its page requests besides.
    pub(crate) fn run_counted(&self, operation: &Operation) -> Result<(Completion, u64)> {
        let before = (self.queue.page_requests(), self.device.counters().page_requests);
        let completion = self.queue.run(operation)?;
        let after = (self.queue.page_requests(), self.device.counters().page_requests);
        let (queue, device) = (after.0.wrapping_sub(before.0), after.1.wrapping_sub(before.1));
        let record = u64::from(completion.page_requests);
        ensure!(
            record == queue && queue == device,
            "page requests: the record says {record}, the queue {queue}, the device {device}"
        );
        Ok((completion, record))
    }
}

/// A copy of all of `source` to the start of `destination`.
pub(crate) fn copy_all(source: &Mapping, destination: &Mapping) -> Operation {
    Operation::copy(source.address(), destination.address(), source.len())
}
