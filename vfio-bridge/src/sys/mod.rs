//! The real kernel: the only place with unsafe code.
//!
//! Where an ioctl takes a pointer, the structure that holds it and what it points at outlive the call, and the
//! kernel writes to no memory that is not exclusively borrowed for it. That, and that file descriptors are owned,
//! is all there is to show.

mod iommufd;
pub mod uapi;
mod vfio;

pub use iommufd::Iommufd;
pub use vfio::Cdev;

use rustix::io::Errno;

/// The error of the system call that this thread made last.
fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
