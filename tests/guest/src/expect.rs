//! Plain expectations of operations and bytes.

use anyhow::{Result, bail, ensure};

use crate::endpoint::{Completion, Reason, Status};
use crate::model;
use crate::sys::PAGE_BYTES;

/// The operation succeeded and did all its bytes.
///
/// # Errors
/// It is not so.
pub fn success(completion: &Completion, length: usize) -> Result<()> {
    let good = completion.status == Status::Success && completion.completed == length as u64;
    ensure!(good, "expected success over {length:#x} bytes: {}", describe(completion));
    Ok(())
}

/// What a fault should look like.
#[derive(Clone, Copy, Debug)]
pub struct ExpectedFault {
    /// Some address in the page that is not accessible.
    pub address: u64,
    /// Whether writing it failed.
    pub write: bool,
    /// Bytes done before.
    pub completed: u64,
}

/// The operation faulted, in that page, because the page is not accessible.
///
/// # Errors
/// It is not so.
pub fn faulted(completion: &Completion, expected: ExpectedFault) -> Result<()> {
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
///
/// # Errors
/// It is not so.
pub fn requests(actual: u64, expected: usize) -> Result<()> {
    ensure!(actual == expected as u64, "{actual} page requests, expected {expected}");
    Ok(())
}

/// The bytes are the expected ones.
///
/// # Errors
/// It is not so.
pub fn same(what: &str, actual: &[u8], expected: &[u8]) -> Result<()> {
    if actual == expected {
        return Ok(());
    }
    ensure!(actual.len() == expected.len(), "{what}: {} bytes, expected {}", actual.len(), expected.len());
    let Some(at) = model::first_difference(actual, expected) else {
        return Ok(());
    };
    let wrong = actual.iter().zip(expected).filter(|(a, b)| a != b).count();
    bail!(
        "{what}: {wrong} of {} bytes wrong, the first at {at:#x}: {:#x}, expected {:#x}",
        actual.len(),
        actual[at],
        expected[at]
    )
}

/// How an operation ended, for messages. Pure.
#[must_use]
pub fn describe(completion: &Completion) -> String {
    let Completion { status, completed, page_requests, .. } = completion;
    let end = format!("{status:?} after {completed:#x} bytes and {page_requests} page requests");
    if *status != Status::Fault {
        return end;
    }
    let access = if completion.write { "write" } else { "read" };
    format!("{end}, {access} of {:#x}: {:?}", completion.fault_address, completion.reason)
}
