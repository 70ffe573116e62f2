//! What every case works with: the endpoint, random numbers, and plain expectations.

use std::fmt;

use anyhow::{Result, ensure};

use crate::endpoint::{Completion, Device, Endpoint, Operation, Queue, Reason, Status};
use crate::model::{self, Random};
use crate::sys::{Mapping, PAGE, PAGE_BYTES};

/// The surroundings of a case.
pub(crate) struct Bench<'a> {
    /// The endpoint. Nobody else has it open when a case starts.
    pub(crate) endpoint: &'a dyn Endpoint,
    /// Random numbers of this case.
    pub(crate) random: Random,
    /// Lines for whoever reads the output, without the leading `# `.
    pub(crate) notes: Vec<String>,
}

/// Why a case does not apply here.
#[derive(Debug)]
pub(crate) struct Skip(pub(crate) &'static str);

impl fmt::Display for Skip {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.0)
    }
}

impl std::error::Error for Skip {}

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

/// The operation succeeded and did all its bytes.
pub(crate) fn success(completion: &Completion, length: usize) -> Result<()> {
    let good = completion.status == Status::Success && completion.completed == length as u64;
    ensure!(good, "expected success over {length:#x} bytes: {}", describe(completion));
    Ok(())
}

/// What a fault should look like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExpectedFault {
    /// Some address in the page that is not accessible.
    pub(crate) address: u64,
    /// Whether writing it failed.
    pub(crate) write: bool,
    /// Bytes done before.
    pub(crate) completed: u64,
}

/// The operation faulted, in that page, because the page is not accessible.
pub(crate) fn faulted(completion: &Completion, expected: ExpectedFault) -> Result<()> {
    let page = |address: u64| address & !(PAGE_BYTES - 1);
    let good = completion.status == Status::Fault
        && completion.reason == Reason::NotAccessible
        && completion.write == expected.write
        && completion.completed == expected.completed
        && page(completion.fault_address) == page(expected.address);
    ensure!(good, "expected {expected:x?}: {}", describe(completion));
    Ok(())
}

/// Exactly this many page requests.
pub(crate) fn requests(actual: u64, expected: usize) -> Result<()> {
    ensure!(actual == expected as u64, "{actual} page requests, expected {expected}");
    Ok(())
}

/// The bytes are the expected ones.
pub(crate) fn same(what: &str, actual: &[u8], expected: &[u8]) -> Result<()> {
    ensure!(actual.len() == expected.len(), "{what}: {} bytes, expected {}", actual.len(), expected.len());
    let Some(at) = model::first_difference(actual, expected) else {
        return Ok(());
    };
    let wrong = actual.iter().zip(expected).filter(|(a, b)| a != b).count();
    anyhow::bail!(
        "{what}: {wrong} of {} bytes wrong, the first at {at:#x}: {:#x}, expected {:#x}",
        actual.len(),
        actual[at],
        expected[at]
    )
}

fn describe(completion: &Completion) -> String {
    let Completion { status, completed, page_requests, .. } = completion;
    let end = format!("{status:?} after {completed:#x} bytes and {page_requests} page requests");
    if *status != Status::Fault {
        return end;
    }
    let access = if completion.write { "write" } else { "read" };
    format!("{end}, {access} of {:#x}: {:?}", completion.fault_address, completion.reason)
}
