//! Page requests as the kernel hands them out, and answers to them.

use std::fs::File;
use std::io::{Read, Write};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use guest::sys::poll_readable;
use guest::wait::patience;

use crate::sys::{FaultRecord, Id, Iommufd, Response};

/// More records than the tests ever have outstanding.
const ROOM: usize = 64;

/// A fault queue.
#[derive(Debug)]
pub(crate) struct FaultQueue {
    id: Id,
    file: File,
}

impl FaultQueue {
    /// A new one.
    pub(crate) fn new(iommufd: &Iommufd) -> Result<Self> {
        let (id, file) = iommufd.fault_queue().context("FAULT_QUEUE_ALLOC")?;
        Ok(Self { id, file })
    }

    /// Its name for page tables.
    pub(crate) fn id(&self) -> Id {
        self.id
    }

    /// The page requests that are there, or come within `limit`.
    pub(crate) fn poll(&self, limit: Duration) -> Result<Vec<FaultRecord>> {
        if !poll_readable(&self.file, limit)? {
            return Ok(Vec::new());
        }
        let mut bytes = vec![0; ROOM * FaultRecord::BYTES];
        let count = (&self.file).read(&mut bytes).context("cannot read page requests")?;
        ensure!(count.is_multiple_of(FaultRecord::BYTES), "{count} bytes of page requests");
        let (records, _) = bytes[..count].as_chunks();
        Ok(records.iter().map(FaultRecord::decode).collect())
    }

    /// Waits until there are `count` page requests.
    pub(crate) fn wait(&self, count: usize) -> Result<Vec<FaultRecord>> {
        let mut records = Vec::new();
        while records.len() < count {
            let more = self.poll(patience())?;
            ensure!(!more.is_empty(), "{} of {count} page requests came", records.len());
            records.extend(more);
        }
        ensure!(records.len() == count, "{} page requests came, expected {count}", records.len());
        Ok(records)
    }

    /// Waits for one.
    pub(crate) fn one(&self) -> Result<FaultRecord> {
        let records = self.wait(1)?;
        records.first().copied().context("no page request")
    }

    /// Answers a group.
    pub(crate) fn respond(&self, cookie: u32, response: Response) -> std::io::Result<()> {
        (&self.file).write_all(&response.encode(cookie))
    }
}
