//! System calls that the standard library does not offer.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
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
    let mut child = Child::start(|line| line.read_exact(&mut [0]).is_ok() && judge())?;
    let good = before_end();
    child.line.write_all(&[1])?;
    Ok(child.wait()? && good)
}

/// A child process made by a fork, which runs a function and says whether all was well.
#[derive(Debug)]
pub struct Child {
    id: libc::pid_t,
    line: UnixStream,
    waited: bool,
}

impl Child {
    /// Runs `work` in a child process, which gets a line to its parent and ends with it.
    ///
    /// The child has one thread: `work` must not wait for another one or take a lock that one may hold.
    ///
    /// # Errors
    /// There is no room for another process.
    pub fn start(work: impl FnOnce(&mut UnixStream) -> bool) -> io::Result<Self> {
        let (ours, mut theirs) = UnixStream::pair()?;
        // SAFETY: the child only runs `work` and leaves by `_exit`.
        let id = unsafe { libc::fork() };
        if id < 0 {
            return Err(io::Error::last_os_error());
        }
        if id == 0 {
            drop(ours);
            let status = libc::c_int::from(!work(&mut theirs));
            // SAFETY: ends the child without running what belongs to the parent.
            unsafe { libc::_exit(status) };
        }
        Ok(Self { id, line: ours, waited: false })
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id.unsigned_abs()
    }

    /// The line to it.
    pub fn line(&mut self) -> &mut UnixStream {
        &mut self.line
    }

    /// Waits for its end; true if it said that all was well.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn wait(mut self) -> io::Result<bool> {
        self.reap()
    }

    fn reap(&mut self) -> io::Result<bool> {
        let mut status = 0;
        self.waited = true;
        // SAFETY: `status` is valid for the call.
        let waited = unsafe { libc::waitpid(self.id, &raw mut status, 0) };
        if waited < 0 { Err(io::Error::last_os_error()) } else { Ok(status == 0) }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.waited {
            // SAFETY: the child is ours and was not waited for, so the number is its own still.
            unsafe { libc::kill(self.id, libc::SIGKILL) };
            let _ = self.reap();
        }
    }
}

/// Mounts a file system of the kernel's own.
///
/// # Errors
/// The kernel has none of this kind, or this process may not.
pub fn mount(kind: &str, folder: &Path) -> io::Result<()> {
    let (kind, folder) = (CString::new(kind)?, CString::new(folder.as_os_str().as_encoded_bytes())?);
    // SAFETY: strings that end in zero, and no data.
    let result = unsafe { libc::mount(kind.as_ptr(), folder.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Ends a mount.
///
/// # Errors
/// Nothing is mounted there, or it is in use.
pub fn unmount(folder: &Path) -> io::Result<()> {
    let folder = CString::new(folder.as_os_str().as_encoded_bytes())?;
    // SAFETY: a string that ends in zero.
    let result = unsafe { libc::umount2(folder.as_ptr(), 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
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
