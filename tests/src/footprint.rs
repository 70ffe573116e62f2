//! How much memory a program has while it runs.

use std::fs;
use std::time::Duration;

/// How often to look.
const PERIOD: Duration = Duration::from_secs(1);

/// Memory of a process at one moment, in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Since the process was started.
    pub at: Duration,
    /// Its heap and stacks.
    pub own: u64,
    /// Shared memory; svmm's is the guest's memory as far as it was touched.
    pub shared: u64,
}

/// Memory of a process, looked at again and again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    samples: Vec<Sample>,
}

impl Footprint {
    /// Looks at the process if it is time to.
    pub(crate) fn look(&mut self, process: u32, at: Duration) {
        if self.samples.last().is_some_and(|last| at < last.at + PERIOD) {
            return;
        }
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        // One that has ended and was not waited for yet has none.
        self.samples.extend(parse(&status, at));
    }

    /// The most it had in the middle third of its run, and in the last; `None` if it was too short to tell.
    #[must_use]
    pub fn middle_and_last(&self) -> Option<(Sample, Sample)> {
        let third = self.samples.len() / 3;
        let most =
            |samples: &[Sample]| samples.iter().copied().max_by_key(|sample| (sample.own, sample.shared));
        Some((most(self.samples.get(third..2 * third)?)?, most(self.samples.get(2 * third..)?)?))
    }
}

/// What `/proc/PID/status` says. Pure.
fn parse(status: &str, at: Duration) -> Option<Sample> {
    let figure = |name: &str| {
        let rest = status.lines().find_map(|line| line.strip_prefix(name))?;
        rest.trim().trim_end_matches("kB").trim().parse().ok()
    };
    Some(Sample { at, own: figure("RssAnon:")?, shared: figure("RssShmem:")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_shows_of_a_process() {
        let text = "Name:\tsvmm\nVmRSS:\t   99 kB\nRssAnon:\t    1234 kB\nRssShmem:\t  56789 kB\n";
        let at = Duration::from_secs(3);
        assert_eq!(parse(text, at), Some(Sample { at, own: 1234, shared: 56789 }));
        assert_eq!(parse("Name:\tsvmm\nState:\tZ (zombie)\n", at), None);
    }

    #[test]
    fn thirds_of_a_run() {
        let run = |own: &[u64]| {
            let sample = |(second, own): (usize, &u64)| Sample {
                at: Duration::from_secs(second as u64),
                own: *own,
                shared: 0,
            };
            Footprint { samples: own.iter().enumerate().map(sample).collect() }
        };
        type Row = (&'static str, &'static [u64], Option<(u64, u64)>);
        let rows: [Row; 4] = [
            ("too short", &[1, 2], None),
            ("one each", &[1, 2, 3], Some((2, 3))),
            ("the start does not count", &[9, 9, 3, 4, 2, 5], Some((4, 5))),
            ("the last third is the longest", &[1, 2, 3, 4, 8], Some((2, 8))),
        ];
        for (name, own, expected) in rows {
            let found = run(own).middle_and_last().map(|(middle, last)| (middle.own, last.own));
            assert_eq!(found, expected, "{name}");
        }
    }

    #[test]
    fn a_process_is_not_looked_at_all_the_time() {
        let mut footprint = Footprint::default();
        for milliseconds in [0, 20, 990, 1000, 1500, 2100] {
            footprint.look(std::process::id(), Duration::from_millis(milliseconds));
        }
        let times: Vec<u128> = footprint.samples.iter().map(|sample| sample.at.as_millis()).collect();
        assert_eq!(times, [0, 1000, 2100]);
        assert!(footprint.samples.iter().all(|sample| sample.own > 0));
    }
}
