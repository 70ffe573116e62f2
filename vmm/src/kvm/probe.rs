//! What kind of KVM this host has, found out by running code.
//!
//! Some hosts offer a `/dev/kvm` that emulates every instruction. It passes every question about capabilities,
//! and no Linux ever boots on it; so the probe measures how fast a loop in a 64-bit guest runs.

use std::arch::x86_64::__cpuid;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use devices::bus::{Bus, BusDevice, BusRange};
use kvm_ioctls::Kvm;
use vm_memory::{Bytes, GuestAddress};

use super::vcpu::{Exits, Vcpus};
use super::vm::Vm;
use super::{DEVICE, Error};
use crate::boot::cpuid::Paging;
use crate::boot::linux::{Entry, Protocol};
use crate::boot::regs;
use crate::cpus::Place;
use crate::layout::low;
use crate::memory::allocate;
use crate::outcome::{Ending, Outcome};

/// What this host's KVM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Runs guests on the hardware.
    Native,
    /// Runs guests on what a hypervisor gives it, at a useful speed.
    Nested,
    /// Emulates instructions: too slow for an operating system.
    Emulating,
    /// There is none.
    Absent,
    /// There is one, but not for us.
    Refused,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Nested => "nested",
            Self::Emulating => "emulating",
            Self::Absent => "absent",
            Self::Refused => "refused",
        })
    }
}

/// The answer of [`kvm`].
pub(crate) struct Finding {
    /// What it is.
    pub(crate) kind: Kind,
    /// How it was found out, one line.
    pub(crate) details: String,
}

/// Longest time the probe's guest runs.
const TIME_LIMIT: Duration = Duration::from_secs(1);
/// Turns of the guest's loop between two exits.
const TURNS: u64 = 100_000;
/// Exits after which the rate is known well enough.
const ENOUGH_EXITS: u64 = 200;
/// Turns per second that tell execution from emulation: emulators reach a few million, CPUs and binary
/// translators hundreds of millions.
const EXECUTING: u64 = 20_000_000;
/// Port on which the guest's loop reports.
const PORT: u64 = 0x80;

/// Finds out what `/dev/kvm` is worth. Takes about a second at worst.
pub(crate) fn kvm() -> Finding {
    let finding = |kind, details: String| Finding { kind, details };
    if !Path::new(DEVICE).exists() {
        return finding(Kind::Absent, format!("no {DEVICE}"));
    }
    let kvm = match super::open() {
        Ok(kvm) => kvm,
        Err(complaint) => return finding(Kind::Refused, complaint.reason),
    };
    match measure(&kvm) {
        Ok((exits, time)) => {
            let per_second = u128::from(exits * TURNS) * 1_000_000 / time.as_micros().max(1);
            let per_second = u64::try_from(per_second).unwrap_or(u64::MAX);
            let details =
                format!("{} million loop turns per second in a 64-bit guest", per_second / 1_000_000);
            let kind = match (per_second >= EXECUTING, under_hypervisor()) {
                (false, _) => Kind::Emulating,
                (true, true) => Kind::Nested,
                (true, false) => Kind::Native,
            };
            finding(kind, details)
        }
        Err(error) => finding(Kind::Refused, crate::config::reasons(&error)),
    }
}

/// Whether this machine itself is virtual: CPUID leaf 1, ECX bit 31.
fn under_hypervisor() -> bool {
    __cpuid(1).ecx >> 31 != 0
}

/// Counts the exits of the loop.
struct Counter {
    exits: AtomicU64,
    ending: Arc<Ending>,
}

impl BusDevice for Counter {
    fn read(&self, _: u64, _: &mut [u8]) {}

    fn write(&self, _: u64, _: &[u8]) {
        if self.exits.fetch_add(1, Ordering::Relaxed) + 1 >= ENOUGH_EXITS {
            self.ending.request(Outcome::PowerOff);
        }
    }
}

/// Runs the loop; the exits it made, and in what time.
fn measure(kvm: &Kvm) -> Result<(u64, Duration), Error> {
    let ending = Arc::new(Ending::new().map_err(|source| Error { operation: "an event", source })?);
    let counter = Arc::new(Counter { exits: AtomicU64::new(0), ending: ending.clone() });
    let mut ports = Bus::default();
    ports.insert(BusRange { start: PORT, len: 1 }, counter.clone()).map_err(|_| Error::missing("a port"))?;
    let exits =
        Exits { mmio: Bus::default(), ports, end_of_interrupt: Box::new(|_| ()), ending: ending.clone() };
    let (_vm, vcpu) = guest(kvm)?;
    let start = Instant::now();
    let vcpus = Vcpus::start(vec![vcpu], &Arc::new(exits), || ())?;
    while ending.outcome().is_none() && start.elapsed() < TIME_LIMIT {
        std::thread::sleep(Duration::from_millis(1));
    }
    let time = start.elapsed();
    let exits = counter.exits.load(Ordering::Relaxed);
    drop(vcpus);
    match ending.outcome() {
        Some(Outcome::PowerOff) | None => Ok((exits, time)),
        Some(other) => Err(Error {
            operation: "running a loop in a 64-bit guest",
            source: std::io::Error::other(other.to_string()),
        }),
    }
}

/// A guest in 64-bit mode that counts down and reports, for ever. Its memory lives as long as the machine.
fn guest(kvm: &Kvm) -> Result<(Vm, kvm_ioctls::VcpuFd), Error> {
    let no_memory = |_| Error::missing("guest memory");
    let ram = allocate(2 << 20).map_err(|_| Error::missing("guest memory"))?;
    let [t0, t1, t2, t3] = u32::try_from(TURNS).unwrap_or(u32::MAX).to_le_bytes();
    #[rustfmt::skip]
    let code = [
        0xb9, t0, t1, t2, t3, // start: mov ecx, TURNS
        0xff, 0xc9,           // again: dec ecx
        0x75, 0xfc,           //        jnz again
        0xe6, 0x80,           //        out PORT, al
        0xeb, 0xf3,           //        jmp start
    ];
    ram.write_slice(&code, GuestAddress(low::END)).map_err(no_memory)?;
    let protocol = Protocol::Linux64;
    regs::write_tables(&ram, protocol).map_err(no_memory)?;
    let vm = Vm::new(kvm, ram)?;
    let place = Place::ALONE;
    let paging = Paging { five_level: false, gib_pages: true };
    let vcpu = vm.create_vcpu(place, paging, Some(&Entry { address: low::END, protocol }))?;
    Ok((vm, vcpu))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_comes_to_an_end_and_agrees_with_the_device_file() {
        let start = Instant::now();
        let finding = kvm();
        // It has one; how much more than that depends on what else this machine does.
        assert!(start.elapsed() < TIME_LIMIT * 60);
        assert_eq!(finding.kind == Kind::Absent, !Path::new(DEVICE).exists());
        assert!(!finding.details.is_empty() && !finding.details.contains('\n'));
    }
}
