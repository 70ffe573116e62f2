//! Memory to swap to.

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::PAGE;

/// Where a swap area's header says what it is.
const SIGNATURE: &[u8] = b"SWAPSPACE2";
/// Where the header of a swap area begins; what is before is left to boot loaders.
const HEADER: usize = 1024;

/// A block device that the kernel swaps to; dropping it ends that.
#[derive(Debug)]
pub struct Swap {
    path: CString,
}

impl Swap {
    /// Makes a swap area of all of a block device, and uses it.
    ///
    /// # Errors
    /// There is no such device, or it is in use, or this process may not.
    pub fn on(device: &Path, length: usize) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).open(device)?;
        file.write_all_at(&header(length), 0)?;
        drop(file);
        let path = CString::new(device.as_os_str().as_encoded_bytes()).map_err(io::Error::other)?;
        // SAFETY: a path that ends in zero.
        let result = unsafe { libc::swapon(path.as_ptr(), 0) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(Self { path }) }
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        // SAFETY: a path that ends in zero.
        if unsafe { libc::swapoff(self.path.as_ptr()) } < 0 {
            println!("# cannot end the use of swap: {}", io::Error::last_os_error());
        }
    }
}

/// The first page of a swap area of `length` bytes: version, last page, no bad pages, signature. Pure.
fn header(length: usize) -> [u8; PAGE] {
    let last = u32::try_from(length / PAGE).unwrap_or(u32::MAX).saturating_sub(1);
    let mut page = [0; PAGE];
    page[HEADER..HEADER + 4].copy_from_slice(&1_u32.to_le_bytes());
    page[HEADER + 4..HEADER + 8].copy_from_slice(&last.to_le_bytes());
    page[PAGE - SIGNATURE.len()..].copy_from_slice(SIGNATURE);
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_what_mkswap_writes() {
        let page = header(64 << 20);
        assert_eq!(&page[4086..], b"SWAPSPACE2");
        assert_eq!(page[1024..1032], [1, 0, 0, 0, 0xff, 0x3f, 0, 0]);
        assert!(page[..1024].iter().all(|byte| *byte == 0));
    }
}
