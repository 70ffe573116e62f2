//! Huge pages, and memory that the machine has given already.

use std::fs;
use std::hint::black_box;

/// Explicit huge pages: the kernel's name of the size, and how many.
const EXPLICIT: [(&str, &str); 2] = [("1048576kB", "1"), ("2048kB", "4")];

/// The kernel leaves huge pages off in small machines: here programs get them that ask for them; with `always` the
/// others as well. Then all memory is written to once, too, so that no test waits for the machine to give it, and
/// explicit huge pages are set aside.
pub(crate) fn prepare(always: bool) {
    let (own, shared) = if always { ("always", "always") } else { ("madvise", "advise") };
    // Shared memory is that of guests in a guest that is a host.
    for (file, value) in [("enabled", own), ("defrag", own), ("shmem_enabled", shared)] {
        let _ = fs::write(format!("/sys/kernel/mm/transparent_hugepage/{file}"), value);
    }
    if always {
        let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        // The kernel needs a little of it while the rest is taken.
        let bytes = available_kib(&info).unwrap_or(0) / 16 * 15 * 1024;
        drop(black_box(vec![1_u8; bytes]));
        for (size, count) in EXPLICIT {
            // A machine without room for them has none; tests that want them say so.
            let _ = fs::write(format!("/sys/kernel/mm/hugepages/hugepages-{size}/nr_hugepages"), count);
        }
    }
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
