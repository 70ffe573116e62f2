//! The machine: the one place where all parts meet. It only constructs.

use std::sync::Arc;
use std::time::Instant;

use devices::bus::{Bus, BusDevice, BusError, BusRange};
use devices::ioapic::IoApic;
use devices::pci::{ConfigPorts, Ecam, HostBridge, MmioWindow, PciRoot};
use iommu_core::{MsiSink, SourceId};
use kvm_ioctls::VcpuFd;

use crate::acpi;
use crate::boot::cpuid::{self, Paging, Place};
use crate::boot::linux::{self, Entry};
use crate::boot::{params, regs};
use crate::config::{Complaint, Config, SerialTarget, reasons};
use crate::event_loop::{self, Keyboard};
use crate::kvm::irq::{IoapicRoutes, KvmMsi, LevelRoutes};
use crate::kvm::vcpu::{Exits, Vcpus};
use crate::kvm::vm::Vm;
use crate::layout::{ECAM, HIGH_RAM_START, IOAPIC, LOW_RAM_LIMIT, PCI_MMIO32, gsi, port};
use crate::memory::{self, GuestRam};
use crate::outcome::{Ending, Outcome};
use crate::report;
use crate::terminal::RawTerminal;

/// The IOAPIC's requester id, in the DMAR table and in its messages: no bus has it.
const IOAPIC_SOURCE: SourceId = SourceId::from_bdf(0xff, 0, 0);

/// A machine that is ready to run.
pub(crate) struct Machine {
    /// Declared first: nothing of the machine may go before it.
    vm: Vm,
    cpus: Vec<VcpuFd>,
    exits: Arc<Exits>,
    ending: Arc<Ending>,
    keyboard: Option<Keyboard>,
}

impl Machine {
    /// Puts a machine together.
    ///
    /// # Errors
    /// What the user asked for cannot be had here.
    pub(crate) fn build(mut config: Config) -> Result<Self, Complaint> {
        let kvm = crate::kvm::open()?;
        let ram = memory::allocate(config.memory_bytes).map_err(|error| {
            Complaint::new("guest memory", reasons(&error), "lower --memory-mib, or free memory")
        })?;
        let vm = Vm::new(&kvm, ram.clone()).map_err(no_kvm)?;
        let ending = Arc::new(Ending::new().map_err(|error| no_host("event fd", &error))?);
        check_width(&vm, config.memory_bytes)?;
        let entry = load(&ram, &mut config)?;
        let (exits, keyboard) = devices(&vm, &ram, config, &ending)?;
        todo_paging(&vm);
        let cpus = Vec::new();
        let _ = entry;
        Ok(Self { vm, cpus, exits, ending, keyboard })
    }
}
fn todo_paging(_: &Vm) {}
