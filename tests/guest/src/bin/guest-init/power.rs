//! Another kernel in place of the running one, and hibernation.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};

use crate::action;
use crate::kexec;
use crate::sys::{self, Ending};

/// Status for what did not work.
const FAILED: u32 = 1;
/// Where a hibernated machine is written to.
const DISK: &str = "/dev/vda";
const PAGE: usize = 4096;

/// Starts the kernel that the image holds; returns only when that cannot be.
pub(crate) fn take_over() -> anyhow::Error {
    let attempt =
        || -> Result<()> { kexec::load(&action::next_command_line(&fs::read_to_string("/proc/cmdline")?)) };
    if let Err(error) = attempt() {
        return error;
    }
    sys::drain_console();
    sys::end(Ending::Kexec).into()
}

/// Hibernates to the disk, or as far as the kernel's test mode `mode` goes; returns 0 when the machine is back.
pub(crate) fn hibernate(mode: &str) -> u32 {
    let attempt = || -> Result<()> {
        if mode == "disk" {
            let disk =
                OpenOptions::new().write(true).open(DISK).with_context(|| format!("cannot open {DISK}"))?;
            make_swap(&disk).context("cannot prepare the disk")?;
            drop(disk);
            sys::swap_on(DISK).context("swapon")?;
            // The less there is to write the better.
            set("image_size", "0")?;
        } else {
            set("pm_test", mode)?;
        }
        set("disk", "shutdown")?;
        sys::drain_console();
        set("state", "disk")
    };
    match attempt() {
        Ok(()) => {
            println!("guest-init: resumed");
            0
        }
        Err(error) => {
            println!("guest-init: hibernation: {error:#}");
            FAILED
        }
    }
}

fn set(file: &str, text: &str) -> Result<()> {
    let path = format!("/sys/power/{file}");
    fs::write(&path, text).with_context(|| format!("cannot write {path}"))
}

/// Writes the header of a swap area over the whole disk (kernel header `linux/swap.h`).
fn make_swap(disk: &File) -> io::Result<()> {
    const SECTORS_PER_PAGE: u64 = 8;
    const MAGIC: &[u8; 10] = b"SWAPSPACE2";
    let text = fs::read_to_string("/sys/class/block/vda/size")?;
    let sectors: u64 = text.trim().parse().map_err(io::Error::other)?;
    let last = u32::try_from(sectors / SECTORS_PER_PAGE - 1).map_err(io::Error::other)?;
    let mut header = [0; PAGE];
    header[1024..1028].copy_from_slice(&1_u32.to_le_bytes());
    header[1028..1032].copy_from_slice(&last.to_le_bytes());
    header[PAGE - MAGIC.len()..].copy_from_slice(MAGIC);
    disk.write_all_at(&header, 0)?;
    disk.sync_all()
}
