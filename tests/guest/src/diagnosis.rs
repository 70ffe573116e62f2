//! What the kernel's driver of the IOMMU shows when a case fails: enough to tell a lost interrupt from a lost request.

use std::fs;
use std::time::Duration;

use crate::cpus;
use crate::wait::wait_until;

/// The units' registers, where debugfs is mounted and the driver has CONFIG_INTEL_IOMMU_DEBUGFS.
const REGISTERS: &str = "/sys/kernel/debug/iommu/intel/iommu_regset";
/// Invalidation queue, faults, page requests: who waits for whom. A unit's remaining registers do not change.
const TELLING: [&str; 10] = ["GSTS", "FSTS", "FECTL", "IQH", "IQT", "ICS", "PQH", "PQT", "PRS", "PECTL"];

/// How long the kernel may take to a fault.
const SOON: Duration = Duration::from_secs(10);

/// Lines for whoever reads the output. Empty where the kernel shows nothing.
#[must_use]
pub fn lines() -> Vec<String> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let mut lines = registers(&read(REGISTERS));
    lines.extend(interrupts(&read("/proc/interrupts")));
    lines
}

/// Waits until the kernel has said what it is going to say of the faults so far, if it shows the units' registers. It
/// takes a fault in the handler of an interrupt, which may come to another CPU than the one that saw the device's answer;
/// no handler is at work any more on a CPU where this process has run.
pub fn wait_for_faults() {
    let pending = || fs::read_to_string(REGISTERS).is_ok_and(|text| has_faults(&text));
    // A fault that nobody takes is none of this function's business.
    let _ = wait_until(SOON, || !pending());
    let _ = cpus::visit_all();
}

/// What the units' page request queues have taken so far: changes with each request. Empty where the kernel shows nothing.
#[must_use]
pub fn request_queues() -> Vec<String> {
    let text = fs::read_to_string(REGISTERS).unwrap_or_default();
    registers_called("PQT", &text).map(str::to_owned).collect()
}

/// Bytes of page requests that the kernel has not been through with yet, of all units, where it shows their registers.
#[must_use]
pub fn waiting_requests() -> Option<u64> {
    waiting(&fs::read_to_string(REGISTERS).ok()?)
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

/// The values of all units' registers of this name. Pure.
fn registers_called<'a>(name: &'a str, text: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines().filter_map(move |line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(name)).then(|| words.nth(1)).flatten()
    })
}

/// A register's value, as the kernel shows it. Pure.
fn number(digits: &str) -> Option<u64> {
    u64::from_str_radix(digits.trim_start_matches("0x"), 16).ok()
}

/// What lies between head and tail of all page request queues. Pure.
fn waiting(text: &str) -> Option<u64> {
    let values = |name| registers_called(name, text).map(number).collect::<Option<Vec<u64>>>();
    let (heads, tails) = (values("PQH")?, values("PQT")?);
    Some(heads.iter().zip(&tails).map(|(head, tail)| head.abs_diff(*tail)).sum())
}

/// A unit has a fault that the kernel has not taken. Pure.
fn has_faults(text: &str) -> bool {
    // PFO and PPF.
    const FAULTS: u64 = 0b11;
    registers_called("FSTS", text).filter_map(number).any(|status| status & FAULTS != 0)
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
    fn faults_are_seen_in_any_unit() {
        let unit = |status: &str| format!("FSTS            \t0x34\t\t0x{status:0>16}\n");
        let rows = [("", false), ("0", false), ("1", true), ("2", true), ("10302", true), ("40", false)];
        for (status, expected) in rows {
            assert_eq!(has_faults(&format!("{}{}", unit("0"), unit(status))), expected, "{status}");
        }
        assert!(!has_faults(""));
    }

    #[test]
    fn requests_wait_between_head_and_tail_of_any_unit() {
        let unit = |head: u64, tail: u64| {
            format!("PQH             \t0xc0\t\t{head:#018x}\nPQT             \t0xc8\t\t{tail:#018x}\n")
        };
        let rows =
            [((0, 0), (0x20, 0x20), 0), ((0, 0x40), (0x20, 0x20), 0x40), ((0x60, 0x20), (0, 0x20), 0x60)];
        for ((head, tail), (other_head, other_tail), expected) in rows {
            let text = unit(head, tail) + &unit(other_head, other_tail);
            assert_eq!(waiting(&text), Some(expected), "{text}");
        }
        assert_eq!(waiting("PQH\t0xc0\t\tnothing\n"), None);
    }

    #[test]
    fn only_what_tells_is_shown() {
        let text = "IOMMU: dmar0 Register Base Address: fed90000\nName\t\t\tOffset\t\tContents\n\
            VER             \t0x00\t\t0x0000000000000060\nPQH             \t0xc0\t\t0x0000000000000020\n\
            IQH             \t0x80\t\t0x0000000000000000\n\nIOMMU: dmar1 Register Base Address: fed91000\n\
            GSTS            \t0x1c\t\t0x00000000c7000000\n";
        assert_eq!(registers(text), ["dmar0: PQH=20 IQH=0", "dmar1: GSTS=c7000000"]);
        assert_eq!(registers(""), [""; 0]);
        assert_eq!(registers_called("PQH", text).collect::<Vec<_>>(), ["0x0000000000000020"]);
        let text =
            "           CPU0\n 24:  17   DMAR-MSI    0-edge      dmar0\n  9:  0  IO-APIC   9-fasteoi acpi\n";
        assert_eq!(interrupts(text), ["interrupt 24: 17 DMAR-MSI 0-edge dmar0"]);
    }
}
