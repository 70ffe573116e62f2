//! Which CPU this thread runs on.

use std::io;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Has this thread run on no CPU but this one.
///
/// # Errors
/// There is no such CPU.
pub fn pin(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// Runs `work` in this thread, which may go elsewhere meanwhile: it may run where it could before afterwards.
///
/// # Errors
/// The kernel does not tell where the thread may run, or does not take it back.
pub fn and_back<T>(work: impl FnOnce(&CpuSet) -> T) -> io::Result<T> {
    let all = sched_getaffinity(None)?;
    let outcome = work(&all);
    sched_setaffinity(None, &all)?;
    Ok(outcome)
}

/// Has the kernel let go of address spaces whose processes have ended: an idle CPU keeps the one that it used last, and
/// the PASID with it, until it runs another process. This one visits them all.
///
/// # Errors
/// As [`and_back`] and [`pin`].
pub fn visit_all() -> io::Result<()> {
    and_back(|all| (0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu)).try_for_each(pin))?
}
