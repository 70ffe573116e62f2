//! What every case works with: the endpoint and random numbers.

use std::fs::{self, File};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
pub(crate) use guest::expect::{ExpectedFault, faulted, requests, same, success};
pub(crate) use guest::suite::Skip;

use rustix::fs::MemfdFlags;

use crate::endpoint::{Completion, Device, Endpoint, Operation, Queue};
use crate::model::Random;
use crate::sys::{Mapping, PAGE};

/// How long the soak goes on: until both are reached.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Soak {
    /// So many operations, at least.
    pub(crate) operations: u64,
    /// So long, at least.
    pub(crate) time: Duration,
}

/// The surroundings of a case.
pub(crate) struct Bench<'a> {
    /// The endpoint. Nobody else has it open when a case starts.
    pub(crate) endpoint: &'a dyn Endpoint,
    /// Random numbers of this case.
    pub(crate) random: Random,
    /// Whether settings of the machine may be changed for a while.
    pub(crate) may_change_machine: bool,
    /// Whether cases may take as long as they like.
    pub(crate) thorough: bool,
    /// How long the soak goes on.
    pub(crate) soak: Soak,
    /// Lines for whoever reads the output, without the leading `# `.
    pub(crate) notes: Vec<String>,
}

impl<'a> Bench<'a> {
    /// The surroundings of a part of a case that runs in another process.
    pub(crate) fn new(endpoint: &'a dyn Endpoint, seed: u64) -> Self {
        Self {
            endpoint,
            random: Random::new(seed),
            may_change_machine: false,
            thorough: false,
            soak: Soak { operations: 0, time: Duration::ZERO },
            notes: Vec::new(),
        }
    }

    /// Binds this process and enables queue 0.
    pub(crate) fn lane(&self) -> Result<Lane> {
        let device = Device::open(self.endpoint)?;
        let queue = device.queue(0)?;
        Ok(Lane { queue, device })
    }

    /// Asks for the right to change settings of the machine.
    pub(crate) fn change_machine(&self) -> Result<()> {
        if self.may_change_machine {
            return Ok(());
        }
        Err(Skip("changes settings of the machine: --change-machine lets a rehearsal do that").into())
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

/// A file in memory without a name, `length` bytes of zeros long.
pub(crate) fn memory_file(length: usize) -> Result<File> {
    let file = rustix::fs::memfd_create("svm-selftest", MemfdFlags::CLOEXEC).context("no file in memory")?;
    rustix::fs::ftruncate(&file, length as u64)?;
    Ok(file.into())
}

/// A setting of the machine, changed for a while: a file of one line.
pub(crate) struct Setting {
    path: &'static str,
    before: String,
}

impl Setting {
    /// Changes it until this is dropped. Where the file is not, or may not be written, the case does not apply.
    pub(crate) fn change(path: &'static str, value: &str) -> Result<Self> {
        let Ok(before) = fs::read_to_string(path) else {
            return Err(Skip("the kernel lacks a setting of this case").into());
        };
        if fs::write(path, value).is_err() {
            return Err(Skip("this process may not change the machine's settings").into());
        }
        Ok(Self { path, before })
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        if let Err(error) = fs::write(self.path, self.before.trim()) {
            println!("# {} stays changed: {error}", self.path);
        }
    }
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
