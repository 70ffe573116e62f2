//! The virtual machine in KVM: capabilities, memory slots, the split interrupt controller.

use std::sync::Arc;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_enable_cap, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::Error;
use crate::boot::cpuid::{self, Paging};
use crate::boot::linux::Entry;
use crate::boot::regs;
use crate::cpus::{Cpus, Place};
use crate::layout::{KVM_PRIVATE, gsi};
use crate::memory::GuestRam;

/// `KVM_X2APIC_API_USE_32BIT_IDS`: destinations are 32 bits wide, bits 31:8 in `address_hi`.
const USE_32BIT_IDS: u64 = 1;
/// `KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK`: destination 0xff is the set of CPUs it says, not all of them.
const DISABLE_BROADCAST_QUIRK: u64 = 2;
/// What nothing works without. The TSC deadline timer is the guest's only clock event source.
const NEEDED: [(Cap, &str); 5] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
    (Cap::X2ApicApi, "KVM_CAP_X2APIC_API"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
    (Cap::TscDeadlineTimer, "KVM_CAP_TSC_DEADLINE_TIMER"),
];

/// A virtual machine with memory and local APICs, and no CPU yet.
pub(crate) struct Vm {
    fd: Arc<VmFd>,
    /// The slots point into it.
    _ram: Arc<GuestRam>,
    /// What KVM can show a guest.
    cpuid: CpuId,
}

impl Vm {
    /// Creates the machine around `ram`.
    ///
    /// # Errors
    /// KVM refused, or lacks something that is needed.
    pub(crate) fn new(kvm: &Kvm, ram: Arc<GuestRam>) -> Result<Self, Error> {
        if let Some((_, name)) = NEEDED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            return Err(Error::missing(name));
        }
        let fd = kvm.create_vm().map_err(Error::of("creating the virtual machine"))?;
        let identity_map = KVM_PRIVATE.start;
        fd.set_identity_map_address(identity_map).map_err(Error::of("placing the identity map"))?;
        let task_state = usize::try_from(identity_map + 0x1000).unwrap_or(0);
        fd.set_tss_address(task_state).map_err(Error::of("placing the task state"))?;
        enable(&fd, Cap::SplitIrqchip, u64::from(gsi::PINS), "splitting the interrupt controller")?;
        enable(
            &fd,
            Cap::X2ApicApi,
            USE_32BIT_IDS | DISABLE_BROADCAST_QUIRK,
            "32-bit interrupt destinations",
        )?;
        set_memory(&fd, &ram)?;
        let cpuid =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(Error::of("asking for the CPUID"))?;
        Ok(Self { fd: Arc::new(fd), _ram: ram, cpuid })
    }

    /// The machine's file, for interrupts.
    pub(crate) fn fd(&self) -> &Arc<VmFd> {
        &self.fd
    }

    /// Width of guest-physical addresses in bits.
    pub(crate) fn physical_bits(&self) -> u8 {
        cpuid::physical_bits(self.cpuid.as_slice())
    }

    /// The table formats that this host's CPUs have.
    pub(crate) fn paging(&self) -> Paging {
        cpuid::paging(self.cpuid.as_slice())
    }

    /// Decides whether guests may run guests of their own, which is so at first if KVM nests. Says whether it is as
    /// `wanted`.
    pub(crate) fn set_nested(&mut self, wanted: bool) -> bool {
        if !wanted {
            cpuid::hide_virtualization(self.cpuid.as_mut_slice());
        }
        cpuid::has_virtualization(self.cpuid.as_slice()) == wanted
    }

    /// Creates the CPU at `place`. With `entry` it starts there, otherwise it waits for its start-up interrupt
    /// (any but the first) or starts at the reset vector.
    ///
    /// # Errors
    /// KVM refused.
    pub(crate) fn create_vcpu(
        &self,
        place: Place,
        paging: Paging,
        entry: Option<&Entry>,
    ) -> Result<VcpuFd, Error> {
        let vcpu = self.fd.create_vcpu(u64::from(place.apic_id)).map_err(Error::of("creating a CPU"))?;
        follow_host_clock(&vcpu);
        let entries = cpuid::filter(self.cpuid.as_slice(), paging, place);
        let cpuid = CpuId::from_entries(&entries).map_err(|_| Error::missing("room for the CPUID"))?;
        vcpu.set_cpuid2(&cpuid).map_err(Error::of("setting the CPUID"))?;
        set_msrs(&vcpu)?;
        // All of them: the first CPU's mode tells the guest whether it may use wide ids.
        if place.last_id >= Cpus::FIRST_WIDE_ID {
            wide_id_mode(&vcpu)?;
        }
        if let Some(entry) = entry {
            let mut special = vcpu.get_sregs().map_err(Error::of("reading CPU registers"))?;
            regs::special(entry.protocol, &mut special);
            vcpu.set_sregs(&special).map_err(Error::of("setting CPU registers"))?;
            vcpu.set_regs(&regs::general(entry)).map_err(Error::of("setting CPU registers"))?;
        }
        Ok(vcpu)
    }
}

/// Lets a CPU's time-stamp counter run as the host's does.
///
/// KVM makes CPUs for the frequency that it found when it was loaded. A host that calibrates its counter early and
/// corrects the result later may have loaded KVM in between. Where the hardware cannot scale the counter, KVM then keeps
/// a scaling factor of 0 for the new CPU: the guest's counter runs, but KVM's idea of it stands still, so that each
/// deadline timer is late by the host's uptime, and the guest seems to hang.
fn follow_host_clock(vcpu: &VcpuFd) {
    const HOST: u32 = 0;
    if let Err(error) = vcpu.set_tsc_khz(HOST) {
        log::debug!("the time-stamp counter's frequency stays as KVM made it: {error}");
    }
}

/// Puts a local APIC into x2APIC mode, as firmware does before it hands over a machine in which some id needs it.
fn wide_id_mode(vcpu: &VcpuFd) -> Result<(), Error> {
    /// `IA32_APIC_BASE.EXTD`.
    const EXTD: u64 = 1 << 10;
    let mut special = vcpu.get_sregs().map_err(Error::of("reading CPU registers"))?;
    special.apic_base |= EXTD;
    vcpu.set_sregs(&special).map_err(Error::of("switching a local APIC to x2APIC mode"))
}

fn set_msrs(vcpu: &VcpuFd) -> Result<(), Error> {
    let wanted = regs::model_specific();
    let msrs = Msrs::from_entries(&wanted).map_err(|_| Error::missing("room for CPU registers"))?;
    let set = vcpu.set_msrs(&msrs).map_err(Error::of("setting model-specific registers"))?;
    if let Some(refused) = wanted.get(set) {
        log::debug!("model-specific register {:#x} is not settable here", refused.index);
    }
    Ok(())
}

fn enable(fd: &VmFd, cap: Cap, argument: u64, what: &'static str) -> Result<(), Error> {
    let mut request = kvm_enable_cap { cap: cap as u32, ..Default::default() };
    request.args[0] = argument;
    fd.enable_cap(&request).map_err(Error::of(what))
}

fn set_memory(fd: &VmFd, ram: &GuestRam) -> Result<(), Error> {
    for (slot, region) in (0..).zip(ram.iter()) {
        let host = region
            .get_host_address(MemoryRegionAddress(0))
            .map_err(|_| Error::missing("a host address of guest memory"))?;
        let request = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: host as u64,
        };
        // SAFETY: the range is one mapping of `ram`, which the machine keeps alive as long as itself, and no two
        // regions of it overlap.
        unsafe { fd.set_user_memory_region(request) }.map_err(Error::of("giving memory to the guest"))?;
    }
    Ok(())
}
