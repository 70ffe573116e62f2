//! How long the start took and what it cost, for the log.

use std::time::Instant;

/// Logs the time since `start` and the memory of this process that is not the guest's.
pub(crate) fn log(start: Instant) {
    if !log::log_enabled!(log::Level::Info) {
        return;
    }
    let time = start.elapsed();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    log::info!(
        "first KVM_RUN after {:.1} ms, RSS {} KiB beyond guest memory",
        time.as_secs_f64() * 1000.0,
        own_memory_kib(&status)
    );
}

/// Resident memory that is not shared memory (as guest RAM is), from `/proc/PID/status`. **Pure.**
fn own_memory_kib(status: &str) -> u64 {
    let field = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    field("RssAnon:") + field("RssFile:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_is_not_counted() {
        let status = "VmRSS:\t 900 kB\nRssAnon:\t 100 kB\nRssFile:\t  23 kB\nRssShmem:\t 777 kB\n";
        assert_eq!(own_memory_kib(status), 123);
    }
}
