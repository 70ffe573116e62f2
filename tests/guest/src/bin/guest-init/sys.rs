//! System calls and the one port write that the standard library does not offer.
#![allow(unsafe_code, reason = "mount, reboot, port I/O and terminal control have no safe interface in std")]

use std::arch::asm;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Mounts a new file system of `kind` on `folder`.
pub(crate) fn mount(kind: &str, folder: &str) -> io::Result<()> {
    let (kind, folder) = (CString::new(kind)?, CString::new(folder)?);
    // SAFETY: the strings are NUL-terminated and outlive the call; no data pointer is passed.
    let result = unsafe { libc::mount(kind.as_ptr(), folder.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
    check(result).map(drop)
}

/// Loads a kernel module.
pub(crate) fn load_module(file: &File) -> io::Result<()> {
    // SAFETY: the file is open for the call, and the parameters are an empty string.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// How the machine ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ending {
    /// Power off.
    PowerOff,
    /// Restart.
    Restart,
    /// Go on with the kernel that was loaded.
    Kexec,
}

/// Ends the machine; returns only when the kernel refuses.
pub(crate) fn end(ending: Ending) -> io::Error {
    let command = match ending {
        Ending::PowerOff => libc::LINUX_REBOOT_CMD_POWER_OFF,
        Ending::Restart => libc::LINUX_REBOOT_CMD_RESTART,
        Ending::Kexec => libc::LINUX_REBOOT_CMD_KEXEC,
    };
    // SAFETY: takes no pointer.
    unsafe { libc::sync() };
    // SAFETY: takes no pointer; what it does to the machine is its purpose.
    unsafe { libc::reboot(command) };
    io::Error::last_os_error()
}

/// Bytes and where they are to be when the next kernel starts; whole pages, the rest zeros.
pub(crate) struct Segment<'a> {
    /// The bytes.
    pub(crate) bytes: &'a [u8],
    /// Physical address.
    pub(crate) address: u64,
    /// Length in memory, not less than that of the bytes.
    pub(crate) length: usize,
}

/// Loads what [`Ending::Kexec`] starts at the physical address `entry`.
pub(crate) fn kexec_load(entry: u64, segments: &[Segment<'_>]) -> io::Result<()> {
    #[repr(C)]
    struct Raw {
        bytes: *const u8,
        size: usize,
        address: u64,
        length: usize,
    }
    let raw = |segment: &Segment<'_>| Raw {
        bytes: segment.bytes.as_ptr(),
        size: segment.bytes.len(),
        address: segment.address,
        length: segment.length,
    };
    let raw: Vec<Raw> = segments.iter().map(raw).collect();
    // SAFETY: the kernel only reads the vector and the bytes that it names, which live longer than the call.
    let result = unsafe { libc::syscall(libc::SYS_kexec_load, entry, raw.len(), raw.as_ptr(), 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Lets the kernel use a disk as swap.
pub(crate) fn swap_on(disk: &str) -> io::Result<()> {
    let disk = CString::new(disk)?;
    // SAFETY: the string is NUL-terminated and outlives the call.
    check(unsafe { libc::swapon(disk.as_ptr(), 0) }).map(drop)
}

/// Writes 32 bits to an I/O port.
pub(crate) fn write_port(port: u16, value: u32) -> io::Result<()> {
    // SAFETY: takes no pointer; grants this process four ports.
    check(unsafe { libc::ioperm(u64::from(port), 4, 1) })?;
    // SAFETY: the ports were granted above, and `out` touches neither memory nor the stack.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack, preserves_flags)) };
    Ok(())
}

/// The kernel log as it stands.
pub(crate) fn kernel_log() -> io::Result<Vec<u8>> {
    const READ_ALL: libc::c_int = 3;
    const SIZE_BUFFER: libc::c_int = 10;
    // SAFETY: this action uses no buffer.
    let size = check(unsafe { libc::klogctl(SIZE_BUFFER, std::ptr::null_mut(), 0) })?;
    let mut log = vec![0_u8; usize::try_from(size).unwrap_or(0)];
    // SAFETY: the buffer is valid for `size` bytes.
    let length = check(unsafe { libc::klogctl(READ_ALL, log.as_mut_ptr().cast(), size) })?;
    log.truncate(usize::try_from(length).unwrap_or(0));
    Ok(log)
}

/// Waits until the console has sent what was printed: the exit port ends the machine at once.
pub(crate) fn drain_console() {
    // SAFETY: takes no pointer.
    unsafe { libc::tcdrain(io::stdout().as_raw_fd()) };
}

/// Only messages more urgent than `level` reach the console.
pub(crate) fn console_level(level: i32) {
    const CONSOLE_LEVEL: libc::c_int = 8;
    // SAFETY: this action uses no buffer.
    unsafe { libc::klogctl(CONSOLE_LEVEL, std::ptr::null_mut(), level) };
}

/// Lets the program have its own session; with standard input as the `controlling` terminal, if that is wanted. When
/// such a session ends, the kernel throws away what the terminal has not sent yet.
pub(crate) fn with_session(command: &mut Command, controlling: bool) {
    let input = io::stdin().as_raw_fd();
    let prepare = move || {
        // SAFETY: takes no pointer; runs in the new process, which leads no group yet.
        unsafe { libc::setsid() };
        if controlling {
            // SAFETY: the request's argument is an integer. A refusal leaves the program without job control.
            unsafe { libc::ioctl(input, libc::TIOCSCTTY, 1) };
        }
        Ok(())
    };
    // SAFETY: the closure makes two system calls and neither allocates nor takes locks.
    unsafe { command.pre_exec(prepare) };
}

/// Waits until process `id` ends, reaping every orphan meanwhile. Returns its wait status.
pub(crate) fn reap_until(id: u32) -> io::Result<i32> {
    loop {
        let mut status = 0;
        // SAFETY: `status` is valid for the call.
        match check(unsafe { libc::waitpid(-1, &raw mut status, 0) }) {
            Ok(pid) if u32::try_from(pid) == Ok(id) => return Ok(status),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
