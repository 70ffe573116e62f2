//! The machine: the one place where all parts meet. It only constructs.

use std::io::Write;
use std::sync::{Arc, Weak};

use devices::bus::{Bus, BusError, BusRange};
use devices::dma_engine::{self, DmaEngine};
use devices::exit::ExitPort;
use devices::ioapic::IoApic;
use devices::ioat::IoatFunction;
use devices::irq::NoIrq;
use devices::pci::{ConfigPorts, Ecam, HostBridge, MmioWindow, PciRoot};
use devices::reset::{
    KeyboardReset, MachineEvent, MachineEvents, PanicPort, ResetControl, ResetRegister, SleepRegisters,
};
use devices::serial::Serial;
use devices::svm::SvmFunction;
use devices::virtio::blk::{Blk, FileDisk};
use devices::virtio::{Interrupts, VirtioFunction};
use iommu_core::SourceId;
use kvm_ioctls::VcpuFd;
use vfio_bridge::meter::Metered;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::acpi;
use crate::boot::linux::{self, Entry};
use crate::boot::{params, regs};
use crate::config::{
    Complaint, Config, DiskFile, IoatSpec, Placement, SerialTarget, StatsTarget, SvmSpec, reasons,
};
use crate::cpus::Cpus;
use crate::event_loop::{self, Keyboard};
use crate::kvm::irq::{IoapicRoutes, KvmMsi};
use crate::kvm::routing::Routing;
use crate::kvm::slots::KvmSlots;
use crate::kvm::vcpu::{Exits, Vcpus};
use crate::kvm::vfio::KvmVfio;
use crate::kvm::vm::Vm;
use crate::layout::{
    DMA_ENGINES, ECAM, HIGH_RAM_START, IOAPIC, LOW_RAM_LIMIT, PCI_MMIO32, gsi, port, requester, slot,
};
use crate::memory::{self, GuestRam};
use crate::outcome::{Ending, Outcome};
use crate::start_report::{StartReport, Step};
use crate::stats::Stats;
use crate::terminal::RawTerminal;
use crate::units::{Surroundings, Units};
use crate::vfio::connect::Connector;
use crate::vfio::open::{Devices, Opener};
use crate::vfio::served::Served;

/// A machine that is ready to run.
pub(crate) struct Machine {
    cpus: Vec<VcpuFd>,
    exits: Arc<Exits>,
    ending: Arc<Ending>,
    keyboard: Option<Keyboard>,
    /// What the event loop does for assigned devices.
    served: Vec<Served>,
    stats: Option<(Stats, StatsTarget)>,
    report: Arc<StartReport>,
    /// Declared last: it goes after everything that lives in it.
    _vm: Vm,
}

impl Machine {
    /// Puts a machine together, and tells `report` how far it is.
    ///
    /// # Errors
    /// What the user asked for cannot be had here.
    pub(crate) fn build(mut config: Config, report: Arc<StartReport>) -> Result<Self, Complaint> {
        let kvm = crate::kvm::open()?;
        let ram = memory::allocate(config.memory_bytes).map_err(|error| {
            Complaint::new("guest memory", reasons(&error), "lower --memory-mib, or free memory")
        })?;
        let mut vm = Vm::new(&kvm, ram.clone()).map_err(|error| kvm_refused(&error))?;
        if !vm.set_nested(config.nested) {
            return Err(no_nesting());
        }
        check_width(config.memory_bytes, vm.physical_bits())?;
        check_ids(config.cpus, kvm.get_max_vcpu_id())?;
        let ending = Ending::new().map_err(|error| host_refused("an event", &error))?;
        let ending = Arc::new(ending);
        report.done(Step::MemoryMapped);
        let devices = open_devices(&mut config, &vm, &ram, &report)?;
        let around = Surroundings {
            ram: ram.clone(),
            memory_bytes: config.memory_bytes,
            physical_bits: vm.physical_bits(),
            paging: vm.paging(),
            direct: Arc::new(KvmMsi::new(vm.fd().clone())),
            hosts: (0..config.units.len()).map(|unit| devices.capabilities(unit)).collect(),
        };
        let units = Units::new(std::mem::take(&mut config.units), around);
        let mut wiring = Wiring::new(&vm, units?, ending.clone());
        let keyboard = wiring.add_serial(std::mem::replace(&mut config.serial, SerialTarget::Null))?;
        wiring.add_platform(config.exit_port)?;
        let mut root = wiring.pci_root(&config.svm)?;
        wiring.add_ioat(&mut root, config.svm.len(), &config.ioat)?;
        let meter = devices.meter.clone();
        let served = wiring.add_devices(&mut root, devices, &vm)?;
        wiring.add_disks(&mut root, std::mem::take(&mut config.disks))?;
        wiring.add_pci(root)?;
        wiring.add_dma_engines(&config.namespace)?;
        wiring.units.insert_into(&mut wiring.mmio)?;
        report.done(Step::DevicesWired);
        let entry = load(&ram, &mut config, &wiring.units)?;
        report.done(Step::KernelLoaded);
        let paging = wiring.units.paging(vm.paging());
        let stats = config.stats.take().map(|target| (wiring.stats(meter, report.clone()), target));
        let exits = wiring.finish();
        let cpus = (config.cpus.ids())
            .map(|apic_id| {
                vm.create_vcpu(config.cpus.place(apic_id), paging, (apic_id == 0).then_some(&entry))
            })
            .collect::<Result<_, _>>()
            .map_err(|error| kvm_refused(&error))?;
        report.done(Step::CpusMade);
        Ok(Self { cpus, exits, ending, keyboard, served, stats, report, _vm: vm })
    }

    /// Runs it until it ends.
    ///
    /// # Errors
    /// The host has no threads or events to give; no guest code has run then, or not for long.
    pub(crate) fn run(self) -> Result<Outcome, Complaint> {
        let _terminal = self.keyboard.is_some().then(RawTerminal::enter);
        let vcpus = Vcpus::start(self.cpus, &self.exits, move || self.report.finish())
            .map_err(|error| kvm_refused(&error))?;
        let outcome = event_loop::run(&self.ending, self.keyboard, self.served);
        let outcome = outcome.map_err(|error| host_refused("events", &error));
        drop(vcpus);
        if let Some((stats, target)) = self.stats {
            stats.tell(target);
        }
        outcome
    }
}

/// The assigned devices, bound and blocked.
fn open_devices(
    config: &mut Config,
    vm: &Vm,
    ram: &GuestRam,
    report: &StartReport,
) -> Result<Devices, Complaint> {
    let specs = std::mem::take(&mut config.vfio);
    if specs.is_empty() {
        return Ok(Devices::default());
    }
    let kvm = KvmVfio::new(vm.fd());
    let opener = Opener {
        iommufd: config.iommufd.as_ref(),
        endpoints: config.svm.len() + config.ioat.len(),
        ram,
        kvm: &kvm,
        report,
    };
    Devices::open(&specs, &opener)
}

fn kvm_refused(error: &crate::kvm::Error) -> Complaint {
    Complaint::new(crate::kvm::DEVICE, reasons(error), "see `svmm doctor`; a newer host kernel may help")
}

fn no_nesting() -> Complaint {
    let remedy = "load kvm_amd or kvm_intel with nested=1, on a CPU that virtualizes";
    Complaint::new("--nested", "KVM on this host lets guests run no guests", remedy)
}

fn host_refused(what: &str, error: &dyn std::error::Error) -> Complaint {
    Complaint::new("host", format_args!("does not give {what} ({})", reasons(error)), "raise its limits")
}

/// Whether KVM has CPUs with such ids; `limit` is exclusive.
fn check_ids(cpus: Cpus, limit: usize) -> Result<(), Complaint> {
    let limit = u32::try_from(limit).unwrap_or(u32::MAX);
    if cpus.last_id() < limit {
        return Ok(());
    }
    let most = limit.saturating_sub(1) / (cpus.count - 1).max(1);
    Err(Complaint::new(
        format_args!("--apic-id-step {}", cpus.id_step),
        format_args!("this host's KVM has APIC ids below {limit}"),
        format_args!("give at most {most}"),
    ))
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
fn load(ram: &GuestRam, config: &mut Config, units: &Units) -> Result<Entry, Complaint> {
    let too_small = |what: &str| {
        let thing = format_args!("--memory-mib {}", config.memory_bytes >> 20).to_string();
        Complaint::new(thing, format_args!("too small for {what}"), "raise it")
    };
    let reserved = units.reserved();
    let low_end = reserved.start;
    let kernel = linux::load_kernel(ram, &mut config.kernel, low_end)?;
    let initrd =
        config.initrd.as_mut().map(|initrd| linux::load_initrd(ram, initrd, &kernel, low_end)).transpose()?;
    let dmar = units.dmar().map_err(|error| impossible(&error))?;
    let machine = acpi::Machine {
        cpus: config.cpus,
        dmar: dmar.as_deref(),
        affinity: units.have_affinity().then_some(config.memory_bytes),
        dma_engines: config.namespace.len(),
    };
    let rsdp = acpi::write(ram, &machine).map_err(|_| too_small("the ACPI tables"))?;
    let memory = params::Memory { bytes: config.memory_bytes, reserved };
    let told = params::Told { memory, cmdline: &config.cmdline, initrd, rsdp };
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
    routing: Arc<Routing>,
    units: Units,
    /// The SVM endpoints, for what they count.
    endpoints: Vec<(SourceId, Arc<SvmFunction<GuestRam>>)>,
    events: MachineEvents,
    ending: Arc<Ending>,
}

impl Wiring {
    fn new(vm: &Vm, units: Units, ending: Arc<Ending>) -> Self {
        let (remapper, message) = units.for_ioapic();
        let routing = Routing::new(vm.fd().clone());
        let routes = IoapicRoutes::new(routing.clone(), requester::IOAPIC, remapper.clone());
        let routes = Arc::new(routes);
        if let Some(remapper) = remapper {
            let listener: Weak<IoapicRoutes> = Arc::downgrade(&routes);
            remapper.add_listener(listener);
        }
        let ioapic = IoApic::new(requester::IOAPIC, message, Some(routes.clone()));
        let asked = ending.clone();
        let events: MachineEvents = Arc::new(move |event| asked.request(outcome_of(event)));
        let (mmio, ports, endpoints) = Default::default();
        Self { mmio, ports, ioapic, routes, routing, units, endpoints, events, ending }
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

    /// The PCI root with its bridge and the SVM endpoints.
    fn pci_root(&mut self, endpoints: &[SvmSpec]) -> Result<PciRoot, Complaint> {
        let mut root = PciRoot::default();
        let bridge = HostBridge::new().map_err(|error| impossible(&error))?;
        root.insert(0, 0, Arc::new(bridge)).map_err(|error| impossible(&error))?;
        for (device, SvmSpec { config, placement }) in (slot::FIRST_SVM..).zip(endpoints) {
            let behind = self.units.place(SourceId::from_bdf(0, device, 0), placement);
            let svm = SvmFunction::new(*config, &behind.dma, behind.interrupts.clone());
            let svm = svm.map_err(|error| impossible(&error))?;
            let endpoint: Weak<SvmFunction<GuestRam>> = Arc::downgrade(&svm);
            behind.attach(endpoint);
            self.endpoints.push((SourceId::from_bdf(0, device, 0), svm.clone()));
            root.insert(device, 0, svm).map_err(|error| impossible(&error))?;
        }
        Ok(root)
    }

    /// The DMA engines for the guest's kernel, behind `endpoints` endpoints.
    fn add_ioat(
        &mut self,
        root: &mut PciRoot,
        endpoints: usize,
        engines: &[IoatSpec],
    ) -> Result<(), Complaint> {
        for (device, IoatSpec { config, placement }) in (slot::FIRST_SVM..).skip(endpoints).zip(engines) {
            let behind = self.units.place(SourceId::from_bdf(0, device, 0), placement);
            let engine = IoatFunction::new(*config, &behind.dma, behind.interrupts);
            let engine = engine.map_err(|error| impossible(&error))?;
            root.insert(device, 0, Arc::new(engine)).map_err(|error| impossible(&error))?;
        }
        Ok(())
    }

    /// The assigned devices.
    fn add_devices(
        &mut self,
        root: &mut PciRoot,
        devices: Devices,
        vm: &Vm,
    ) -> Result<Vec<Served>, Complaint> {
        let slots = KvmSlots::new(vm.fd().clone(), PCI_MMIO32);
        let ioapic = self.ioapic.clone();
        let connector = Connector::new(slots, self.routing.clone(), vm.fd().clone(), ioapic);
        connector.connect(devices, &mut self.units, root)
    }

    /// The disks.
    fn add_disks(&mut self, root: &mut PciRoot, disks: Vec<DiskFile>) -> Result<(), Complaint> {
        for (device, disk) in (slot::FIRST_DISK..).zip(disks) {
            let blk = Blk::new(Box::new(FileDisk::new(disk.file, disk.len)), &disk.id, disk.read_only);
            let behind = self.units.place(SourceId::from_bdf(0, device, 0), &disk.placement);
            let line = self.ioapic.line(gsi::of_inta(device));
            let interrupts = Interrupts { messages: behind.interrupts, line };
            let function = VirtioFunction::new(blk.description(), blk, &behind.dma, interrupts);
            let function = function.map_err(|error| impossible(&error))?;
            root.insert(device, 0, function).map_err(|error| impossible(&error))?;
        }
        Ok(())
    }

    /// The DMA engines outside PCI.
    fn add_dma_engines(&mut self, placements: &[Placement]) -> Result<(), BusError> {
        for (number, placement) in (0u8..).zip(placements) {
            let source = requester::dma_engine(number);
            let behind = self.units.place_named(source, acpi::dma_engine_path(number), placement);
            let start = DMA_ENGINES.start + dma_engine::LEN * u64::from(number);
            let engine = DmaEngine::new(&behind.dma);
            self.mmio.insert(BusRange { start, len: dma_engine::LEN }, Arc::new(engine))?;
        }
        Ok(())
    }

    /// The three ways to what is on the bus.
    fn add_pci(&mut self, root: PciRoot) -> Result<(), Complaint> {
        let root = Arc::new(root);
        self.mmio.insert(ECAM, Arc::new(Ecam(root.clone())))?;
        self.mmio.insert(PCI_MMIO32, Arc::new(MmioWindow::new(root.clone(), PCI_MMIO32)))?;
        let reset = Arc::new(ResetControl::new(self.events.clone()));
        self.ports.insert(port::PCI_CONFIG, Arc::new(ConfigPorts::new(root, Some(reset))))?;
        Ok(())
    }

    /// What counts.
    fn stats(&self, meter: Option<Metered>, report: Arc<StartReport>) -> Stats {
        let mut stats = Stats::default();
        stats.add("machine", "start_us".to_owned(), move || report.numbers());
        self.units.count_into(&mut stats);
        for (source, svm) in &self.endpoints {
            let svm = svm.clone();
            let numbers = move || serde_json::to_value(svm.counted()).unwrap_or_default();
            stats.add("endpoints", source.to_string(), numbers);
        }
        if let Some(meter) = meter {
            let numbers = move || serde_json::to_value(meter.read()).unwrap_or_default();
            stats.add("hosts", "iommufd".to_owned(), numbers);
        }
        stats
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

#[cfg(test)]
mod tests {
    use super::*;

    /// (name, CPUs, step, KVM's limit, complaint)
    #[test]
    fn ids_beyond_what_kvm_has_are_refused() {
        let rows = [
            ("consecutive", 64, 1, 64, None),
            ("the last id", 4, 1365, 4096, None),
            ("one more", 4, 1366, 4096, Some("give at most 1365")),
            ("one CPU", 1, 32767, 1, None),
        ];
        for (name, count, id_step, limit, expected) in rows {
            let complaint = check_ids(Cpus { count, id_step }, limit).err();
            assert_eq!(complaint.map(|complaint| complaint.remedy).as_deref(), expected, "{name}");
        }
    }
}
