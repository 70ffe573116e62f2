//! System calls that the standard library does not offer.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// Whether `file` becomes readable within `limit`.
pub fn poll_readable(file: &File, limit: Duration) -> io::Result<bool> {
    let mut entry = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let milliseconds = libc::c_int::try_from(limit.as_millis()).unwrap_or(libc::c_int::MAX);
    // SAFETY: one valid entry.
    let count = unsafe { libc::poll(&raw mut entry, 1, milliseconds) };
    if count < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(entry.revents & libc::POLLIN != 0)
}

/// Runs `judge` in a child process; true if it returned true there.
///
/// The child has one thread: `judge` must not wait for another one or take a lock that one may hold.
pub fn fork_and(before_end: impl FnOnce() -> bool, judge: impl FnOnce() -> bool) -> io::Result<bool> {
    let (mut ours, mut theirs) = std::os::unix::net::UnixStream::pair()?;
    // SAFETY: the child only runs `judge` and leaves by `_exit`.
    let child = unsafe { libc::fork() };
    if child < 0 {
        return Err(io::Error::last_os_error());
    }
    if child == 0 {
        drop(ours);
        let mut byte = [0];
        let told = io::Read::read_exact(&mut theirs, &mut byte).is_ok();
        let status = libc::c_int::from(!(told && judge()));
        // SAFETY: ends the child without running what belongs to the parent.
        unsafe { libc::_exit(status) };
    }
    drop(theirs);
    let good = before_end();
    let told = io::Write::write_all(&mut ours, &[1]);
    let mut status = 0;
    // SAFETY: `status` is valid for the call.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    told?;
    if waited < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(good && status == 0)
}

/// A file that a child process has open, open here too: the same open file, not a second opening.
pub fn share_file(child: u32, file: RawFd) -> io::Result<File> {
    // SAFETY: the arguments are integers.
    let handle = descriptor(unsafe { libc::syscall(libc::SYS_pidfd_open, child, 0) })?;
    // SAFETY: the arguments are integers.
    let shared = unsafe { libc::syscall(libc::SYS_pidfd_getfd, handle.as_raw_fd(), file, 0) };
    descriptor(shared).map(File::from)
}

fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let file = RawFd::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(file) })
}

/// Reads this process's memory as another process would: what is not accessible is an error.
pub fn copy_from_self(address: u64, bytes: &mut [u8]) -> io::Result<()> {
    let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let remote = remote(address, bytes.len())?;
    // SAFETY: the kernel writes into `bytes` only and checks the remote range itself.
    let count = unsafe { libc::process_vm_readv(own_id()?, &raw const local, 1, &raw const remote, 1, 0) };
    whole(count, bytes.len())
}

/// Writes this process's memory as another process would: what is not writable is an error.
pub fn copy_to_self(address: u64, bytes: &[u8]) -> io::Result<()> {
    let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let remote = remote(address, bytes.len())?;
    // SAFETY: callers pass only ranges of `Mapping`s, which nothing references; others are refused
    // by the kernel or belong to the test's own mistake.
    let count = unsafe { libc::process_vm_writev(own_id()?, &raw const local, 1, &raw const remote, 1, 0) };
    whole(count, bytes.len())
}

fn own_id() -> io::Result<libc::pid_t> {
    libc::pid_t::try_from(std::process::id()).map_err(io::Error::other)
}

fn remote(address: u64, length: usize) -> io::Result<libc::iovec> {
    let base = usize::try_from(address).map_err(io::Error::other)?;
    Ok(libc::iovec { iov_base: base as *mut libc::c_void, iov_len: length })
}

fn whole(count: isize, length: usize) -> io::Result<()> {
    if count < 0 {
        return Err(io::Error::last_os_error());
    }
    if usize::try_from(count) == Ok(length) {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EFAULT))
    }
}
