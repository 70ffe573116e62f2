//! The machine: the one place where all parts meet. It only constructs.

use std::io::Write;
use std::sync::{Arc, Weak};
use std::time::Instant;

use devices::bus::{Bus, BusError};
use devices::exit::ExitPort;
use devices::ioapic::IoApic;
use devices::irq::NoIrq;
use devices::pci::{ConfigPorts, Ecam, HostBridge, MmioWindow, PciRoot};
use devices::reset::{
    KeyboardReset, MachineEvent, MachineEvents, PanicPort, ResetControl, ResetRegister, SleepRegisters,
};
use devices::serial::Serial;
use devices::svm::{SvmConfig, SvmFunction};
use iommu_core::{MsiSink, SourceId};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::boot::linux::{self, Entry};
use crate::boot::{params, regs};
use crate::config::{Complaint, Config, SerialTarget, reasons};
use crate::event_loop::{self, Keyboard};
use crate::iommu::{IOAPIC_SOURCE, Iommu};
use crate::kvm::irq::{IoapicRoutes, KvmMsi};
use crate::kvm::vcpu::{Exits, Vcpus};
use crate::kvm::vm::Vm;
use crate::layout::{ECAM, HIGH_RAM_START, IOAPIC, LOW_RAM_LIMIT, PCI_MMIO32, VTD, gsi, port};
use crate::memory::{self, GuestRam};
use crate::outcome::{Ending, Outcome};
use crate::terminal::RawTerminal;
use crate::{acpi, start_report};

/// Where the SVM endpoint sits: an integrated endpoint on the root bus.
const SVM_DEVICE: u8 = 1;

/// A machine that is ready to run.
pub(crate) struct Machine {
    cpus: Vec<VcpuFd>,
    exits: Arc<Exits>,
    ending: Arc<Ending>,
    keyboard: Option<Keyboard>,
    /// Declared last: it goes after everything that lives in it.
    _vm: Vm,
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
        let vm = Vm::new(&kvm, ram.clone()).map_err(|error| kvm_refused(&error))?;
        check_width(config.memory_bytes, vm.physical_bits())?;
        let ending = Ending::new().map_err(|error| host_refused("an event", &error))?;
        let ending = Arc::new(ending);
        let message: Arc<dyn MsiSink> = Arc::new(KvmMsi::new(vm.fd().clone()));
        let iommu = match config.iommu {
            true => Some(Iommu::new(&ram, vm.physical_bits(), vm.paging(), message.clone())),
            false => None,
        };
        let iommu = iommu.transpose().map_err(|error| impossible(&error))?;
        let entry = load(&ram, &mut config, iommu.as_ref())?;
        let mut wiring = Wiring::new(&vm, message, iommu.as_ref(), ending.clone());
        let keyboard = wiring.add_serial(config.serial)?;
        wiring.add_platform(config.exit_port)?;
        wiring.add_pci(config.svm, iommu.as_ref())?;
        let paging = iommu.as_ref().map_or(vm.paging(), Iommu::paging);
        if let Some(iommu) = iommu {
            wiring.mmio.insert(VTD, Arc::new(iommu))?;
        }
        let exits = wiring.finish();
        let cpus = (config.cpus.ids())
            .map(|apic_id| {
                vm.create_vcpu(config.cpus.place(apic_id), paging, (apic_id == 0).then_some(&entry))
            })
            .collect::<Result<_, _>>()
            .map_err(|error| kvm_refused(&error))?;
        Ok(Self { cpus, exits, ending, keyboard, _vm: vm })
    }

    /// Runs it until it ends. `start` is when this process started, for the log.
    ///
    /// # Errors
    /// The host has no threads or events to give; no guest code has run then, or not for long.
    pub(crate) fn run(self, start: Instant) -> Result<Outcome, Complaint> {
        let _terminal = self.keyboard.is_some().then(RawTerminal::enter);
        let vcpus = Vcpus::start(self.cpus, &self.exits, move || start_report::log(start))
            .map_err(|error| kvm_refused(&error))?;
        let outcome =
            event_loop::run(&self.ending, self.keyboard).map_err(|error| host_refused("events", &error));
        drop(vcpus);
        outcome
    }
}

fn kvm_refused(error: &crate::kvm::Error) -> Complaint {
    Complaint::new(crate::kvm::DEVICE, reasons(error), "see `svmm doctor`; a newer host kernel may help")
}

fn host_refused(what: &str, error: &dyn std::error::Error) -> Complaint {
    Complaint::new("host", format_args!("does not give {what} ({})", reasons(error)), "raise its limits")
}

/// Whether guest-physical addresses of `bits` bits reach all of the memory.
fn check_width(memory_bytes: u64, bits: u8) -> Result<(), Complaint> {
    let end = memory_bytes.checked_sub(LOW_RAM_LIMIT).map_or(memory_bytes, |high| HIGH_RAM_START + high);
    let limit = 1u64.checked_shl(bits.into()).unwrap_or(u64::MAX);
    if end <= limit {
        return Ok(());
    }
    let most = limit.saturating_sub(HIGH_RAM_START - LOW_RAM_LIMIT) >> 20;
    Err(Complaint::new(
        format_args!("--memory-mib {}", memory_bytes >> 20),
        format_args!("too large for this host's {bits}-bit guest addresses"),
        format_args!("give at most {most}"),
    ))
}

/// Puts everything into memory that the guest finds there.
fn load(ram: &GuestRam, config: &mut Config, iommu: Option<&Iommu>) -> Result<Entry, Complaint> {
    let too_small = |what: &str| {
        let thing = format_args!("--memory-mib {}", config.memory_bytes >> 20).to_string();
        Complaint::new(thing, format_args!("too small for {what}"), "raise it")
    };
    let low_end = config.memory_bytes.min(LOW_RAM_LIMIT);
    let kernel = linux::load_kernel(ram, &mut config.kernel, low_end)?;
    let initrd =
        config.initrd.as_mut().map(|initrd| linux::load_initrd(ram, initrd, &kernel, low_end)).transpose()?;
    let dmar = iommu.map(Iommu::dmar).transpose().map_err(|error| impossible(&error))?;
    let machine = acpi::Machine { cpus: config.cpus, dmar: dmar.as_deref() };
    let rsdp = acpi::write(ram, &machine).map_err(|_| too_small("the ACPI tables"))?;
    let told = params::Told { memory_bytes: config.memory_bytes, cmdline: &config.cmdline, initrd, rsdp };
    params::write(ram, &kernel, &told).map_err(|_| too_small("boot parameters"))?;
    regs::write_tables(ram, kernel.entry.protocol).map_err(|_| too_small("page tables"))?;
    Ok(kernel.entry)
}

/// A machine's buses while they are filled.
struct Wiring {
    mmio: Bus,
    ports: Bus,
    ioapic: Arc<IoApic>,
    routes: Arc<IoapicRoutes>,
    /// Where the interrupts of devices go.
    message: Arc<dyn MsiSink>,
    events: MachineEvents,
    ending: Arc<Ending>,
}

impl Wiring {
    fn new(vm: &Vm, direct: Arc<dyn MsiSink>, iommu: Option<&Iommu>, ending: Arc<Ending>) -> Self {
        let remapper = iommu.and_then(Iommu::remapper);
        let routes = Arc::new(IoapicRoutes::new(vm.fd().clone(), IOAPIC_SOURCE, remapper.clone()));
        if let Some(remapper) = remapper {
            let listener: Weak<IoapicRoutes> = Arc::downgrade(&routes);
            remapper.add_listener(listener);
        }
        let message = iommu.map_or(direct.clone(), |iommu| iommu.interrupts(direct));
        let ioapic = IoApic::new(IOAPIC_SOURCE, message.clone(), Some(routes.clone()));
        let asked = ending.clone();
        let events: MachineEvents = Arc::new(move |event| asked.request(outcome_of(event)));
        Self { mmio: Bus::default(), ports: Bus::default(), ioapic, routes, message, events, ending }
    }

    /// The serial port; where to put what the user types, if it is to go there.
    fn add_serial(&mut self, target: SerialTarget) -> Result<Option<Keyboard>, Complaint> {
        let line = self.ioapic.line(gsi::SERIAL).unwrap_or_else(|| Arc::new(NoIrq));
        let room = EventFd::new(EFD_NONBLOCK).map_err(|error| host_refused("an event", &error))?;
        let room = Arc::new(room);
        let (output, interactive): (Box<dyn Write + Send>, bool) = match target {
            SerialTarget::Stdio => (Box::new(std::io::stdout()), true),
            SerialTarget::Null => (Box::new(std::io::sink()), false),
            SerialTarget::File(file) => (Box::new(file), false),
        };
        let signal = room.clone();
        // A full counter means that the signal is there already.
        let on_room = move || drop(signal.write(1));
        let serial = Arc::new(Serial::new(line, output, Box::new(on_room)));
        self.ports.insert(port::SERIAL, serial.clone())?;
        let enqueue = Box::new(move |typed: &[u8]| serial.enqueue(typed));
        Ok(interactive.then(|| Keyboard { enqueue, room }))
    }

    /// The IOAPIC, and everything by which the guest ends the run.
    fn add_platform(&mut self, exit_port: bool) -> Result<(), BusError> {
        self.mmio.insert(IOAPIC, self.ioapic.clone())?;
        let events = self.events.clone();
        self.ports.insert(port::SLEEP, Arc::new(SleepRegisters(events.clone())))?;
        self.ports.insert(port::RESET, Arc::new(ResetRegister(events.clone())))?;
        self.ports.insert(port::KEYBOARD_RESET, Arc::new(KeyboardReset(events.clone())))?;
        self.ports.insert(port::PANIC, Arc::new(PanicPort(events.clone())))?;
        if exit_port {
            self.ports.insert(port::EXIT, Arc::new(ExitPort(events)))?;
        }
        Ok(())
    }

    /// The PCI root with its functions.
    fn add_pci(&mut self, svm: Option<SvmConfig>, iommu: Option<&Iommu>) -> Result<(), Complaint> {
        let mut root = PciRoot::default();
        let bridge = HostBridge::new().map_err(|error| impossible(&error))?;
        root.insert(0, 0, Arc::new(bridge)).map_err(|error| impossible(&error))?;
        if let (Some(config), Some(iommu)) = (svm, iommu) {
            let source = SourceId::from_bdf(0, SVM_DEVICE, 0);
            let svm = SvmFunction::new(config, &iommu.dma(source), self.message.clone());
            let svm = svm.map_err(|error| impossible(&error))?;
            let endpoint: Weak<SvmFunction<GuestRam>> = Arc::downgrade(&svm);
            iommu.unit().attach_endpoint(source, endpoint);
            root.insert(SVM_DEVICE, 0, svm).map_err(|error| impossible(&error))?;
        }
        let root = Arc::new(root);
        self.mmio.insert(ECAM, Arc::new(Ecam(root.clone())))?;
        self.mmio.insert(PCI_MMIO32, Arc::new(MmioWindow::new(root.clone(), PCI_MMIO32)))?;
        let reset = Arc::new(ResetControl::new(self.events.clone()));
        self.ports.insert(port::PCI_CONFIG, Arc::new(ConfigPorts::new(root, Some(reset))))?;
        Ok(())
    }

    fn finish(self) -> Arc<Exits> {
        let (ioapic, routes) = (self.ioapic, self.routes);
        Arc::new(Exits {
            mmio: self.mmio,
            ports: self.ports,
            end_of_interrupt: Box::new(move |vector| {
                for pin in routes.pins_of(vector) {
                    ioapic.eoi_pin(pin);
                }
            }),
            ending: self.ending,
        })
    }
}

/// How a guest's wish ends the run.
fn outcome_of(event: MachineEvent) -> Outcome {
    match event {
        MachineEvent::PowerOff => Outcome::PowerOff,
        MachineEvent::Reset => Outcome::Reset,
        MachineEvent::Panic => Outcome::Panic,
        MachineEvent::Exit(status) => Outcome::Status(status),
    }
}

/// A construction that only a mistake of ours can make fail.
fn impossible(error: &dyn std::error::Error) -> Complaint {
    Complaint::new("machine", reasons(error), "please report it")
}

impl From<BusError> for Complaint {
    fn from(error: BusError) -> Self {
        impossible(&error)
    }
}
