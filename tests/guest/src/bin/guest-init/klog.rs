//! The kernel log, whole or the part that judges the IOMMU.

use std::fmt::Write as _;

/// Lines that follow a warning and say where it comes from.
const TRACE_LINES: usize = 24;
const WANTED: [&str; 11] = [
    "dmar",
    "iommu",
    "pasid",
    "svm-selftest:",
    "bridge-test:",
    "svm-misbehaviour:",
    "uio",
    "ioat",
    "dmatest:",
    "pci 0000:",
    " pm: ",
];
const ALARMS: [&str; 8] = [
    "WARNING:",
    "BUG:",
    "Oops",
    "INFO: task",
    "INFO: rcu",
    "soft lockup",
    "general protection",
    "use-after-free",
];

/// What the driver adds to each fault: ten lines that tell nothing more.
const UNWANTED: [&str; 6] = [
    "DMAR: Dump",
    "table entry[",
    "root entry:",
    "context entry:",
    "dir entry:",
    "page table is not present",
];

/// The lines about IOMMU, PASID and the selftest, and every alarm with its trace. Pure.
pub(crate) fn relevant(log: &str) -> String {
    let mut text = String::new();
    let mut trace = 0_usize;
    for line in log.lines() {
        let lower = line.to_ascii_lowercase();
        if ALARMS.iter().any(|alarm| line.contains(alarm)) {
            trace = TRACE_LINES;
        }
        let wanted = WANTED.iter().any(|word| lower.contains(word));
        let unwanted = UNWANTED.iter().any(|word| line.contains(word));
        if trace > 0 || (wanted && !unwanted) {
            let _ = writeln!(text, "{line}");
        }
        trace = trace.saturating_sub(1);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alarms_bring_their_trace_and_the_rest_is_left_out() {
        let mut log = String::from("<6>[ 1.0] DMAR: up\n<6>[ 1.1] unrelated\n<4>[ 1.2] WARNING: at x\n");
        for line in 0..TRACE_LINES + 5 {
            let _ = writeln!(log, "<4>[ 1.3] frame {line}");
        }
        let text = relevant(&log);
        assert!(text.starts_with("<6>[ 1.0] DMAR: up\n<4>[ 1.2] WARNING: at x\n<4>[ 1.3] frame 0\n"));
        assert_eq!(text.lines().count(), 1 + TRACE_LINES);
    }
}
