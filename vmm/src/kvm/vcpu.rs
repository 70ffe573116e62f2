//! The CPUs: one thread each, running the guest and serving its exits.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use devices::bus::Bus;
use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::Error;
use crate::outcome::{Ending, Outcome};

/// What exits lead to. Shared by all CPUs.
pub(crate) struct Exits {
    /// Memory-mapped I/O.
    pub(crate) mmio: Bus,
    /// Port I/O.
    pub(crate) ports: Bus,
    /// Called with the vector of a level-triggered interrupt whose end the guest signalled.
    pub(crate) end_of_interrupt: Box<dyn Fn(u8) + Send + Sync>,
    /// Where the end of the run is asked for.
    pub(crate) ending: Arc<Ending>,
}

/// Running CPUs.
pub(crate) struct Vcpus {
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

/// Between two attempts to get a CPU out of the guest.
const KICK_INTERVAL: Duration = Duration::from_millis(1);
/// How long a CPU may take to come out. One that writes to a console that nobody reads never does.
const KICK_LIMIT: Duration = Duration::from_secs(2);

impl Vcpus {
    /// Starts a thread for every CPU; `before_first` runs on the first one's thread, right before it enters the
    /// guest.
    ///
    /// # Errors
    /// The host has no signal or no thread to give. CPUs started until then are stopped.
    pub(crate) fn start(
        fds: Vec<VcpuFd>,
        exits: &Arc<Exits>,
        before_first: impl FnOnce() + Send + 'static,
    ) -> Result<Self, Error> {
        let failed = |operation| move |source| Error { operation, source };
        register_signal_handler(SIGRTMIN(), on_kick)
            .map_err(|error| failed("registering the kick signal")(error.into()))?;
        let mut vcpus = Self { threads: Vec::new(), stop: Arc::default() };
        let mut before_first = Some(before_first);
        for (index, mut fd) in fds.into_iter().enumerate() {
            let (exits, stop, before) = (exits.clone(), vcpus.stop.clone(), before_first.take());
            let thread = std::thread::Builder::new().name(format!("vcpu{index}")).spawn(move || {
                if let Some(before) = before {
                    before();
                }
                run(&mut fd, &exits, &stop);
            });
            vcpus.threads.push(thread.map_err(failed("starting a CPU thread"))?);
        }
        Ok(vcpus)
    }
}

impl Drop for Vcpus {
    /// Gets every CPU out of the guest and joins its thread, or leaves a stuck one to the end of the process: it
    /// does not enter the guest again.
    ///
    /// A signal that arrives between a CPU's look at the flag and its entry is lost: so they are repeated.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let start = Instant::now();
        for thread in self.threads.drain(..) {
            while !thread.is_finished() && start.elapsed() < KICK_LIMIT {
                // Fails only for a thread that is gone.
                let _ = thread.kill(SIGRTMIN());
                std::thread::sleep(KICK_INTERVAL);
            }
            if !thread.is_finished() {
                log::warn!("a CPU hangs, perhaps writing to a console that nobody reads");
            } else if thread.join().is_err() {
                log::error!("a CPU thread panicked");
            }
        }
    }
}

/// Interrupting the ioctl is all that the signal is for.
extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

fn run(fd: &mut VcpuFd, exits: &Exits, stop: &AtomicBool) {
    while !stop.load(Ordering::Acquire) {
        match step(fd, exits) {
            Ok(None) => {}
            Ok(Some(outcome)) => return exits.ending.request(outcome),
            Err(error) => return exits.ending.request(Outcome::HostFailure(error.to_string())),
        }
    }
}

/// Runs the guest until its next exit and serves it. The outcome if the run ends by it.
fn step(fd: &mut VcpuFd, exits: &Exits) -> io::Result<Option<Outcome>> {
    let exit = match fd.run() {
        Ok(exit) => exit,
        Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    match exit {
        VcpuExit::MmioRead(address, data) => exits.mmio.read(address, data),
        VcpuExit::MmioWrite(address, data) => exits.mmio.write(address, data),
        VcpuExit::IoOut(port, data) => {
            let data = (data.as_ptr().cast_mut(), data.len());
            for_each_port_access(fd, data, |data| exits.ports.write(port.into(), data));
        }
        VcpuExit::IoIn(port, data) => {
            let data = (data.as_mut_ptr(), data.len());
            for_each_port_access(fd, data, |data| exits.ports.read(port.into(), data));
        }
        VcpuExit::IoapicEoi(vector) => (exits.end_of_interrupt)(vector),
        VcpuExit::Shutdown => return Ok(Some(Outcome::TripleFault)),
        VcpuExit::SystemEvent(event, _) => {
            return Ok(Some(match event {
                KVM_SYSTEM_EVENT_RESET => Outcome::Reset,
                KVM_SYSTEM_EVENT_CRASH => Outcome::Panic,
                _ => Outcome::PowerOff,
            }));
        }
        VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IrqWindowOpen | VcpuExit::SetTpr => {}
        VcpuExit::InternalError => return Err(io::Error::other(internal_error(fd))),
        VcpuExit::FailEntry(reason, cpu) => return Err(io::Error::other(entry_failure(reason, cpu))),
        other => return Err(io::Error::other(format!("CPU stopped: {other:?}"))),
    }
    Ok(None)
}

/// The words for the internal error that the last exit was.
fn internal_error(fd: &mut VcpuFd) -> String {
    // SAFETY: the last exit was an internal error, for which the kernel fills this member of the union; it is plain
    // numbers.
    let internal = unsafe { fd.get_kvm_run().__bindgen_anon_1.internal };
    internal_error_text(internal.suberror, internal.ndata, &internal.data)
}

/// Names of the suberrors of an internal error.
const SUBERRORS: [(u32, &str); 4] = [
    (KVM_INTERNAL_ERROR_EMULATION, "emulation"),
    (KVM_INTERNAL_ERROR_SIMUL_EX, "simultaneous exceptions"),
    (KVM_INTERNAL_ERROR_DELIVERY_EV, "exit while delivering an event"),
    (KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, "unexpected exit reason"),
];

/// The words for an internal error; the first `count` of `data` count. **Pure.**
fn internal_error_text(suberror: u32, count: u32, data: &[u64]) -> String {
    let name = SUBERRORS.iter().find(|row| row.0 == suberror).map_or("unknown", |row| row.1);
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let words: String = data.iter().take(count).map(|word| format!(" {word:#x}")).collect();
    let words = if words.is_empty() { " none".into() } else { words };
    format!("CPU stopped: KVM internal error, suberror {suberror} ({name}), data{words}")
}

/// The words for a CPU that the hardware did not let into the guest. **Pure.**
fn entry_failure(reason: u64, cpu: u32) -> String {
    format!("CPU stopped: guest entry failed, hardware reason {reason:#x}, host CPU {cpu}")
}

/// Calls `access` for every access of a port instruction, in order: a string instruction makes several.
///
/// `data` is the slice that the exit carried; the exit itself holds `fd`, hence the raw form.
fn for_each_port_access(fd: &mut VcpuFd, data: (*mut u8, usize), mut access: impl FnMut(&mut [u8])) {
    // SAFETY: the last exit was a port access, for which the kernel fills this member of the union.
    let size = unsafe { fd.get_kvm_run().__bindgen_anon_1.io.size };
    // SAFETY: pointer and length are those of the slice that the exit lent from `fd`, which nobody else uses while
    // we hold it, and the guest does not run.
    let data = unsafe { std::slice::from_raw_parts_mut(data.0, data.1) };
    data.chunks_mut(usize::from(size).max(1)).for_each(&mut access);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::cpuid::Paging;
    use crate::boot::linux::{Entry, Protocol};
    use crate::boot::regs;
    use crate::cpus::Place;
    use crate::kvm::irq::{IoapicRoutes, KvmMsi};
    use crate::kvm::vm::Vm;
    use crate::layout::{IOAPIC, low};
    use crate::memory::{GuestRam, allocate};
    use devices::bus::{BusDevice, BusRange};
    use devices::ioapic::IoApic;
    use iommu_core::SourceId;
    use parking_lot::Mutex;
    use std::sync::atomic::AtomicU8;
    use vm_memory::{Bytes, GuestAddress};

    /// Answers reads with 0x42 and notes (offset, bytes) of everything; a write to its last byte ends the run.
    struct Notes(Mutex<Vec<(u64, Vec<u8>)>>, Arc<Ending>);
    const LAST: u64 = 7;
    impl BusDevice for Notes {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(0x42);
            self.0.lock().push((offset, data.to_vec()));
        }
        fn write(&self, offset: u64, data: &[u8]) {
            if offset == LAST {
                return self.1.request(Outcome::Status(data[0]));
            }
            self.0.lock().push((offset, data.to_vec()));
        }
    }

    type Seen = Vec<(u64, Vec<u8>)>;

    /// A machine with the device at port 0x100 and at 0xd000_0000, and one CPU.
    struct Machine {
        /// The slots live as long as it.
        vm: Vm,
        ram: Arc<GuestRam>,
        fd: VcpuFd,
        notes: Arc<Notes>,
        ioapic: Option<Arc<IoApic>>,
        end_of_interrupt: Box<dyn Fn(u8) + Send + Sync>,
    }

    impl Machine {
        /// `None`, with a message, where KVM cannot be used.
        fn new() -> Option<Self> {
            let Ok(kvm) = kvm_ioctls::Kvm::new() else {
                eprintln!("skipped: no usable /dev/kvm");
                return None;
            };
            let ram = allocate(2 << 20).unwrap();
            let vm = Vm::new(&kvm, ram.clone()).unwrap();
            let place = Place::ALONE;
            let fd = vm.create_vcpu(place, Paging { five_level: false, gib_pages: true }, None).unwrap();
            let notes = Arc::new(Notes(Mutex::default(), Arc::new(Ending::new().unwrap())));
            Some(Self { vm, ram, fd, notes, ioapic: None, end_of_interrupt: Box::new(|_| ()) })
        }

        fn load_real_mode(&mut self, code: &[u8]) {
            self.ram.write_slice(code, GuestAddress(0x1000)).unwrap();
            let mut sregs = self.fd.get_sregs().unwrap();
            (sregs.cs.base, sregs.cs.selector) = (0, 0);
            self.fd.set_sregs(&sregs).unwrap();
            let regs = kvm_bindings::kvm_regs { rip: 0x1000, rflags: 2, ..Default::default() };
            self.fd.set_regs(&regs).unwrap();
        }

        fn load_long_mode(&mut self, code: &[u8]) {
            self.ram.write_slice(code, GuestAddress(low::END)).unwrap();
            let protocol = Protocol::Linux64;
            regs::write_tables(&self.ram, protocol).unwrap();
            let mut sregs = self.fd.get_sregs().unwrap();
            regs::special(protocol, &mut sregs);
            self.fd.set_sregs(&sregs).unwrap();
            self.fd.set_regs(&regs::general(&Entry { address: low::END, protocol })).unwrap();
        }

        /// Runs until the guest ends it, at most for `time`.
        fn run(self, time: Duration) -> (Option<Outcome>, Seen) {
            let ending = self.notes.1.clone();
            let (mut mmio, mut ports) = (Bus::default(), Bus::default());
            ports.insert(BusRange { start: 0x100, len: 8 }, self.notes.clone()).unwrap();
            mmio.insert(BusRange { start: 0xd000_0000, len: 8 }, self.notes.clone()).unwrap();
            if let Some(ioapic) = self.ioapic {
                mmio.insert(IOAPIC, ioapic).unwrap();
            }
            let end_of_interrupt = self.end_of_interrupt;
            let exits = Exits { mmio, ports, end_of_interrupt, ending: ending.clone() };
            let vcpus = Vcpus::start(vec![self.fd], &Arc::new(exits), || ()).unwrap();
            let start = Instant::now();
            while ending.outcome().is_none() && start.elapsed() < time {
                std::thread::sleep(Duration::from_millis(1));
            }
            drop(vcpus);
            let seen = self.notes.0.lock().clone();
            (ending.outcome().cloned(), seen)
        }
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn port_accesses_reach_the_device_one_by_one() {
        let Some(mut machine) = Machine::new() else { return };
        machine.ram.write_slice(b"string", GuestAddress(0x2000)).unwrap();
        machine.load_real_mode(&[
            0xba, 0x00, 0x01, // mov dx, 0x100
            0xb0, 0x11, 0xee, // mov al, 0x11; out dx, al
            0xb8, 0x33, 0x22, 0xef, // mov ax, 0x2233; out dx, ax
            0x42, 0xec, 0xee, // inc dx; in al, dx; out dx, al
            0xbe, 0x00, 0x20, 0xb9, 0x03, 0x00, 0xf3, 0x6f, // mov si, 0x2000; mov cx, 3; rep outsw
            0xba, 0x07, 0x01, 0xb0, 0x2a, 0xee, // mov dx, 0x107; mov al, 42; out dx, al
            0xeb, 0xfe, // jmp $
        ]);
        let (outcome, seen) = machine.run(LONG);
        assert_eq!(outcome, Some(Outcome::Status(42)));
        let expected: [(u64, &[u8]); 7] = [
            (0, &[0x11]),
            (0, &[0x33, 0x22]),
            (1, &[0x42]),
            (1, &[0x42]),
            (1, b"st"),
            (1, b"ri"),
            (1, b"ng"),
        ];
        assert_eq!(seen, expected.map(|(offset, data)| (offset, data.to_vec())));
    }

    #[test]
    fn a_cpu_that_loops_is_stopped() {
        let Some(mut machine) = Machine::new() else { return };
        machine.load_real_mode(&[0xeb, 0xfe]);
        assert_eq!(machine.run(Duration::from_millis(20)), (None, vec![]));
    }

    #[test]
    fn long_mode_reaches_memory_mapped_io() {
        let Some(mut machine) = Machine::new() else { return };
        machine.load_long_mode(&[
            0xbf, 0x00, 0x00, 0x00, 0xd0, // mov edi, 0xd0000000
            0x48, 0x89, 0x07, // mov [rdi], rax
            0x8b, 0x47, 0x01, // mov eax, [rdi + 1]
            0x0f, 0x01, 0x1e, // lidt [rsi]: zero page, limit 0
            0x0f, 0x0b, // ud2
        ]);
        let (outcome, seen) = machine.run(LONG);
        assert_eq!(outcome, Some(Outcome::TripleFault));
        assert_eq!(seen, [(0, vec![0; 8]), (1, vec![0x42; 4])]);
    }

    #[test]
    fn internal_errors_are_told_with_their_data() {
        let data = [0x1f, 0x8000_0000_0000_0021, 3];
        for (name, suberror, count, expected) in [
            ("two words", 1, 2, "suberror 1 (emulation), data 0x1f 0x8000000000000021"),
            ("no words", 3, 0, "suberror 3 (exit while delivering an event), data none"),
            (
                "more words than there are",
                4,
                u32::MAX,
                "suberror 4 (unexpected exit reason), data 0x1f 0x8000000000000021 0x3",
            ),
            ("a new suberror", 99, 1, "suberror 99 (unknown), data 0x1f"),
        ] {
            let text = internal_error_text(suberror, count, &data);
            assert_eq!(text, format!("CPU stopped: KVM internal error, {expected}"), "{name}");
        }
        let text = entry_failure(0x8000_0021, 5);
        assert_eq!(text, "CPU stopped: guest entry failed, hardware reason 0x80000021, host CPU 5");
    }

    #[test]
    fn code_outside_memory_ends_the_run_with_the_suberror() {
        let Some(mut machine) = Machine::new() else { return };
        // mov edi, 0xe0000000; jmp rdi
        machine.load_long_mode(&[0xbf, 0x00, 0x00, 0x00, 0xe0, 0xff, 0xe7]);
        let (outcome, _) = machine.run(LONG);
        let Some(Outcome::HostFailure(reason)) = &outcome else { panic!("{outcome:?}") };
        assert!(reason.starts_with("CPU stopped: KVM internal error, suberror 1 (emulation)"), "{reason}");
    }

    /// An interrupt gate of a 64-bit descriptor table that leads to `handler`.
    fn gate(handler: u64) -> [u64; 2] {
        let (low, middle) = (handler & 0xffff, handler >> 16 & 0xffff);
        [low | 0x10 << 16 | 0x8e00 << 32 | middle << 48, handler >> 32]
    }

    const VECTOR: u8 = 0x50;
    const PIN: u8 = 16;

    #[test]
    fn a_level_interrupt_comes_again_after_its_end_until_the_line_falls() {
        let Some(mut machine) = Machine::new() else { return };
        let handler = low::END + 0x1000;
        machine.load_long_mode(&[
            0xbb, 0xf0, 0x00, 0xe0, 0xfe, // mov ebx, 0xfee000f0
            0xb8, 0xff, 0x01, 0x00, 0x00, // mov eax, 0x1ff: local APIC on
            0x89, 0x03, // mov [rbx], eax
            0xfb, // sti
            0xbb, 0x00, 0x00, 0xc0, 0xfe, // mov ebx, 0xfec00000
            0xc7, 0x03, 0x30, 0x00, 0x00, 0x00, // mov dword [rbx], 0x30: entry of pin 16
            0xc7, 0x43, 0x10, VECTOR, 0x80, 0x00,
            0x00, // mov dword [rbx + 16], 0x8050: level, not masked
            0xf3, 0x90, 0xeb, 0xfc, // pause; jmp there
        ]);
        let code = [
            0x66, 0xba, 0x00, 0x01, 0xee, // mov dx, 0x100; out dx, al
            0xbb, 0xb0, 0x00, 0xe0, 0xfe, // mov ebx, 0xfee000b0
            0x31, 0xc0, 0x89, 0x03, // xor eax, eax; mov [rbx], eax: end of interrupt
            0x48, 0xcf, // iretq
        ];
        machine.ram.write_slice(&code, GuestAddress(handler)).unwrap();
        let table = 0x3000;
        machine.ram.write_obj(gate(handler), GuestAddress(table + 16 * u64::from(VECTOR))).unwrap();
        let mut sregs = machine.fd.get_sregs().unwrap();
        (sregs.idt.base, sregs.idt.limit) = (table, 0xfff);
        machine.fd.set_sregs(&sregs).unwrap();

        let routes = Arc::new(IoapicRoutes::new(machine.vm.fd().clone(), SourceId(0xff00), None));
        let message = Arc::new(KvmMsi::new(machine.vm.fd().clone()));
        let ioapic = IoApic::new(SourceId(0xff00), message, Some(routes));
        machine.ioapic = Some(ioapic.clone());
        let line = ioapic.line(PIN).unwrap();
        line.set(true);
        let (ending, ends) = (machine.notes.1.clone(), AtomicU8::new(0));
        machine.end_of_interrupt = Box::new(move |vector| {
            assert_eq!(vector, VECTOR);
            // The line falls before the third end.
            match ends.fetch_add(1, Ordering::Relaxed) {
                0 | 1 => ioapic.eoi(vector),
                _ => {
                    line.set(false);
                    ioapic.eoi(vector);
                    ending.request(Outcome::Status(7));
                }
            }
        });
        let (outcome, seen) = machine.run(LONG);
        assert_eq!((outcome, seen.len()), (Some(Outcome::Status(7)), 3));
    }
}
