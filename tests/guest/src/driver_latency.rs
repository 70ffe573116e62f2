//! The VT-d driver's own measure of its invalidations (CONFIG_DMAR_PERF and debugfs): beside the device's figures it
//! tells which share of the time is the unit's.

use std::fs;

const FILE: &str = "/sys/kernel/debug/iommu/intel/dmar_perf_latency";
/// What is written to measure invalidations of IOTLBs, device-TLBs and the interrupt entry cache; one each.
const KINDS: [&str; 3] = ["1", "2", "3"];
/// Columns of counts by decade, before those of extremes and the average.
const DECADES: usize = 7;

/// What is written to measure nothing any more.
const NOTHING: &str = "0";

/// While it lives, the driver measures. Afterwards it must not: it would ask the clock also while a resume puts the
/// units back, before the clock runs again, and the kernel warns of that.
#[derive(Debug)]
pub struct DriverLatency(());

impl DriverLatency {
    /// Measures from now on. None where the driver cannot.
    #[must_use]
    pub fn start() -> Option<Self> {
        // Before the first kind: what fails half way stops what has begun.
        let measured = Self(());
        KINDS.iter().all(|kind| fs::write(FILE, kind).is_ok()).then_some(measured)
    }

    /// One line for each kind of invalidation of each unit that happened so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        parse(&fs::read_to_string(FILE).unwrap_or_default())
    }
}

impl Drop for DriverLatency {
    fn drop(&mut self) {
        let _ = fs::write(FILE, NOTHING);
    }
}

/// Pure.
fn parse(text: &str) -> Vec<String> {
    let mut unit = "";
    let mut lines = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        if first == "IOMMU:" {
            unit = words.next().unwrap_or_default();
            continue;
        }
        let numbers: Option<Vec<u64>> = words.map(|word| word.parse().ok()).collect();
        let Some([decades @ .., shortest, longest, average]) = numbers.as_deref() else { continue };
        let samples: u64 = decades.iter().sum();
        if decades.len() == DECADES && samples > 0 {
            let times = format!("average {average} us, {shortest} to {longest} us");
            lines.push(format!("driver of {unit}: {samples} {first}, {times}"));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_that_happened_are_told() {
        let text = "IOMMU: dmar0 Register Base Address: fed90000\n                  <0.1us   0.1us-1us    1us-10us  \
            10us-100us   100us-1ms    1ms-10ms      >=10ms     min(us)     max(us) average(us)\n   inv_iotlb  0  0  5  \
            2  1  0  0  4  212  31\n  inv_devtlb  0  0  0  0  0  0  0  0  0  0\n";
        assert_eq!(parse(text), ["driver of dmar0: 8 inv_iotlb, average 31 us, 4 to 212 us"]);
        assert_eq!(parse(""), [""; 0]);
    }
}
