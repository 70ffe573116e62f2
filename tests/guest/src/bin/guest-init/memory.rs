//! Huge pages, and memory that the machine has given already.

use std::fs::{self, File};
use std::hint::black_box;

use anyhow::Result;
use guest::sys::{Mapping, Protection, Sharing};
use rustix::fs::{MemfdFlags, memfd_create};

/// Explicit huge pages of 2 MiB.
const EXPLICIT: (&str, &str) = ("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "4");
const GIGANTIC_BYTES: u64 = 1 << 30;

/// The kernel leaves huge pages off in small machines: here programs get them that ask for them; with `always` the
/// others as well. Then all memory is written to once, too, so that no test waits for the machine to give it, and
/// explicit huge pages of 2 MiB are set aside.
pub(crate) fn prepare(always: bool) {
    let (own, shared) = if always { ("always", "always") } else { ("madvise", "advise") };
    // Shared memory is that of guests in a guest that is a host.
    for (file, value) in [("enabled", own), ("defrag", own), ("shmem_enabled", shared)] {
        let _ = fs::write(format!("/sys/kernel/mm/transparent_hugepage/{file}"), value);
    }
    if always {
        let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        // The kernel needs a little of it while the rest is taken.
        let bytes = available_kib(&info).unwrap_or(0) / 8 * 7 * 1024;
        drop(black_box(vec![1_u8; bytes]));
        // A machine without them has none; tests that want them say so.
        let _ = fs::write(EXPLICIT.0, EXPLICIT.1);
        let _ = touch_gigantic();
    }
}

/// The same for the page of 1 GiB that the command line set aside, if it did.
fn touch_gigantic() -> Result<()> {
    let file = File::from(memfd_create("touch", MemfdFlags::HUGETLB | MemfdFlags::HUGE_1GB)?);
    file.set_len(GIGANTIC_BYTES)?;
    let length = usize::try_from(GIGANTIC_BYTES)?;
    Mapping::file(&file, length, Protection::ReadWrite, Sharing::Shared)?.store(0, 1);
    Ok(())
}

/// What programs can get, of the text of `/proc/meminfo`. Pure.
fn available_kib(info: &str) -> Option<usize> {
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_found() {
        assert_eq!(available_kib("MemTotal: 9 kB\nMemAvailable:    1234 kB\n"), Some(1234));
        assert_eq!(available_kib("MemTotal: 9 kB\n"), None);
    }
}
