//! How long the start took, step by step, and what it cost: for the log, and for `--stats`.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Map, Value};

/// A step of the start, named by what is done at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The command line is understood, and the files on it are open.
    ArgumentsRead,
    /// KVM has given a machine, and the guest's memory has addresses.
    MemoryMapped,
    /// Assigned devices are open and bound, or their way is found.
    DevicesOpened,
    /// The host holds the guest's memory for assigned devices.
    MemoryPinned,
    /// All devices are on their buses; assigned ones are behind their units.
    DevicesWired,
    /// Kernel, initial file system and tables are in the guest's memory.
    KernelLoaded,
    /// KVM has made the CPUs.
    CpusMade,
    /// The first CPU is about to enter the guest.
    FirstRun,
}

impl Step {
    /// As logs and `--stats` have it.
    fn name(self) -> &'static str {
        match self {
            Self::ArgumentsRead => "arguments_read",
            Self::MemoryMapped => "memory_mapped",
            Self::DevicesOpened => "devices_opened",
            Self::MemoryPinned => "memory_pinned",
            Self::DevicesWired => "devices_wired",
            Self::KernelLoaded => "kernel_loaded",
            Self::CpusMade => "cpus_made",
            Self::FirstRun => "first_run",
        }
    }
}

/// When each step was done.
pub(crate) struct StartReport {
    start: Instant,
    /// With the time since the start. A step that is done once for each unit stands there as often.
    steps: Mutex<Vec<(Step, Duration)>>,
}

impl StartReport {
    /// `start` is when this process started.
    pub(crate) fn new(start: Instant) -> Self {
        Self { start, steps: Mutex::default() }
    }

    /// A step is done.
    pub(crate) fn done(&self, step: Step) {
        let time = self.start.elapsed();
        self.steps.lock().push((step, time));
        log::debug!("start: {} after {:.1} ms", step.name(), milliseconds(time));
    }

    /// The last step is done. Logs its time, and the memory of this process that is not the guest's.
    pub(crate) fn finish(&self) {
        self.done(Step::FirstRun);
        if !log::log_enabled!(log::Level::Info) {
            return;
        }
        let time = self.start.elapsed();
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        log::info!(
            "first KVM_RUN after {:.1} ms, RSS {} KiB beyond guest memory",
            milliseconds(time),
            own_memory_kib(&status)
        );
    }

    /// Microseconds from the start to each step; to its last time, if it was done more than once.
    pub(crate) fn numbers(&self) -> Value {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let steps = self.steps.lock();
        let numbers = steps.iter().map(|(step, time)| (step.name().to_owned(), micros(*time).into()));
        Value::Object(numbers.collect::<Map<_, _>>())
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
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

    #[test]
    fn steps_are_told_in_microseconds_since_the_start() {
        let before = Instant::now().checked_sub(Duration::from_secs(5)).unwrap();
        let report = StartReport::new(before);
        [Step::ArgumentsRead, Step::FirstRun].into_iter().for_each(|step| report.done(step));
        let numbers = report.numbers();
        let time = |name: &str| numbers[name].as_u64().unwrap();
        assert!(time("arguments_read") >= 5_000_000, "{numbers}");
        assert!(time("first_run") >= time("arguments_read"), "{numbers}");
        assert_eq!(numbers.as_object().unwrap().len(), 2);
    }
}
