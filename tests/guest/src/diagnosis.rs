//! What the kernel's driver of the IOMMU shows when a case fails: enough to tell a lost interrupt from a lost request.

use std::fs;

/// The units' registers, where debugfs is mounted and the driver has CONFIG_INTEL_IOMMU_DEBUGFS.
const REGISTERS: &str = "/sys/kernel/debug/iommu/intel/iommu_regset";
/// Invalidation queue, faults, page requests: who waits for whom. A unit's remaining registers do not change.
const TELLING: [&str; 10] = ["GSTS", "FSTS", "FECTL", "IQH", "IQT", "ICS", "PQH", "PQT", "PRS", "PECTL"];

/// Lines for whoever reads the output. Empty where the kernel shows nothing.
#[must_use]
pub fn lines() -> Vec<String> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let mut lines = registers(&read(REGISTERS));
    lines.extend(interrupts(&read("/proc/interrupts")));
    lines
}

/// What the threads of a process wait for in the kernel, one line each.
#[must_use]
pub fn waits(process: u32) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let read = |thread: &fs::DirEntry, name| fs::read_to_string(thread.path().join(name)).unwrap_or_default();
    let line = |thread: fs::DirEntry| {
        let [name, place, call] = ["comm", "wchan", "syscall"].map(|name| read(&thread, name));
        let call = call.split_whitespace().next().unwrap_or("?").to_owned();
        format!("thread {}: in {}, system call {call}", name.trim(), place.trim())
    };
    threads.map(line).collect()
}

/// One line for each unit. Pure.
fn registers(text: &str) -> Vec<String> {
    let mut units: Vec<String> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some("IOMMU:"), Some(name), _) => units.push(format!("{name}:")),
            (Some(name), Some(_), Some(value)) if TELLING.contains(&name) => {
                let digits = value.trim_start_matches("0x").trim_start_matches('0');
                if let Some(unit) = units.last_mut() {
                    unit.push_str(&format!(" {name}={}", if digits.is_empty() { "0" } else { digits }));
                }
            }
            _ => {}
        }
    }
    units
}

/// The interrupts of units and of the endpoint, with the counts of all CPUs. Pure.
fn interrupts(text: &str) -> Vec<String> {
    let wanted = |line: &&str| ["dmar", "DMAR", "uio"].iter().any(|name| line.contains(name));
    let squeezed = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    text.lines().filter(wanted).map(|line| format!("interrupt {}", squeezed(line))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_tells_is_shown() {
        let text = "IOMMU: dmar0 Register Base Address: fed90000\nName\t\t\tOffset\t\tContents\n\
            VER             \t0x00\t\t0x0000000000000060\nPQH             \t0xc0\t\t0x0000000000000020\n\
            IQH             \t0x80\t\t0x0000000000000000\n\nIOMMU: dmar1 Register Base Address: fed91000\n\
            GSTS            \t0x1c\t\t0x00000000c7000000\n";
        assert_eq!(registers(text), ["dmar0: PQH=20 IQH=0", "dmar1: GSTS=c7000000"]);
        assert_eq!(registers(""), [""; 0]);
        let text =
            "           CPU0\n 24:  17   DMAR-MSI    0-edge      dmar0\n  9:  0  IO-APIC   9-fasteoi acpi\n";
        assert_eq!(interrupts(text), ["interrupt 24: 17 DMAR-MSI 0-edge dmar0"]);
    }
}
