//! The serial port: a 16550 at eight I/O ports.
//!
//! vm-superio holds the registers, the receive FIFO and the output. The interrupt is worked out here, because
//! a level-triggered line has to say at any time whether one of the two sources is pending, and because the
//! identification register names one source at a time, received data first.

use std::convert::Infallible;
use std::io::Write;
use std::sync::Arc;

use parking_lot::Mutex;
use vm_superio::Trigger;

use crate::bus::BusDevice;
use crate::irq::IrqLine;

/// Number of I/O ports.
pub const LEN: u64 = 8;
/// Where PCs have the first serial port.
pub const COM1_PORT: u64 = 0x3f8;
/// The pin of the first serial port.
pub const COM1_IRQ: u8 = 4;

// Registers and bits, as in the 16550 data sheet.
const DATA: u8 = 0;
const INTERRUPT_ENABLE: u8 = 1;
const INTERRUPT_ID: u8 = 2;
const LINE_CONTROL: u8 = 3;
const MODEM_CONTROL: u8 = 4;
const LINE_STATUS: u8 = 5;

const ENABLE_RECEIVED: u8 = 1 << 0;
const ENABLE_TRANSMIT: u8 = 1 << 1;
const ENABLE_BITS: u8 = 0xf;
const ID_NONE: u8 = 1;
const ID_TRANSMIT: u8 = 2;
const ID_RECEIVED: u8 = 4;
const ID_FIFOS: u8 = 0xc0;
const DIVISOR_LATCH: u8 = 1 << 7;
const LOOPBACK: u8 = 1 << 4;
const DATA_READY: u8 = 1 << 0;

/// vm-superio's own idea of the interrupt is not used.
struct NoTrigger;

impl Trigger for NoTrigger {
    type E = Infallible;
    fn trigger(&self) -> Result<(), Infallible> {
        Ok(())
    }
}

type Uart = vm_superio::Serial<NoTrigger, vm_superio::serial::NoEvents, Box<dyn Write + Send>>;

struct State {
    uart: Uart,
    enabled: u8,
    /// The transmitter ran empty since this was last reported.
    transmit_pending: bool,
    /// Input was refused for lack of room, and its owner waits to hear of some.
    starved: bool,
    /// The output failed once, and the log says so.
    output_failed: bool,
}

/// A serial port. Output is written, byte by byte, by the vCPU that sends it: a writer that blocks, blocks the guest.
pub struct Serial {
    line: Arc<dyn IrqLine>,
    room: Box<dyn Fn() + Send + Sync>,
    state: Mutex<State>,
}

impl Serial {
    /// A port that raises `line`, writes to `output`, and calls `room` when input that [`Self::enqueue`]
    /// refused can be offered again. `room` is called on a vCPU thread, without locks, and must not block.
    #[must_use]
    pub fn new(
        line: Arc<dyn IrqLine>,
        output: Box<dyn Write + Send>,
        room: Box<dyn Fn() + Send + Sync>,
    ) -> Self {
        let state = State {
            uart: Uart::new(NoTrigger, output),
            enabled: 0,
            transmit_pending: false,
            starved: false,
            output_failed: false,
        };
        Self { line, room, state: Mutex::new(state) }
    }

    /// Puts input into the receive FIFO, as far as there is room, and says how many bytes were taken.
    /// If not all were, `room` is called once later.
    pub fn enqueue(&self, input: &[u8]) -> usize {
        let mut state = self.state.lock();
        let taken = state.uart.enqueue_raw_bytes(input).unwrap_or(0);
        state.starved |= taken < input.len();
        self.line.set(state.interrupt());
        taken
    }

    fn access<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock();
        let result = act(&mut state);
        self.line.set(state.interrupt());
        let relieved = state.relieve();
        drop(state);
        if relieved {
            (self.room)();
        }
        result
    }
}

impl State {
    fn register(&mut self, register: u8) -> u8 {
        self.uart.read(register)
    }

    fn divisor_latch(&mut self) -> bool {
        self.register(LINE_CONTROL) & DIVISOR_LATCH != 0
    }

    fn received_pending(&mut self) -> bool {
        self.enabled & ENABLE_RECEIVED != 0 && self.register(LINE_STATUS) & DATA_READY != 0
    }

    fn interrupt(&mut self) -> bool {
        self.received_pending() || self.enabled & ENABLE_TRANSMIT != 0 && self.transmit_pending
    }

    /// Whether the owner of refused input is to be told that there is room.
    fn relieve(&mut self) -> bool {
        let relieved = self.starved
            && self.register(LINE_STATUS) & DATA_READY == 0
            && self.register(MODEM_CONTROL) & LOOPBACK == 0;
        self.starved &= !relieved;
        relieved
    }

    fn read(&mut self, register: u8) -> u8 {
        if register != INTERRUPT_ID {
            return self.register(register);
        }
        let source = if self.received_pending() {
            ID_RECEIVED
        } else if self.enabled & ENABLE_TRANSMIT != 0 && self.transmit_pending {
            self.transmit_pending = false;
            ID_TRANSMIT
        } else {
            ID_NONE
        };
        ID_FIFOS | source
    }

    fn write(&mut self, register: u8, value: u8) {
        let latched = self.divisor_latch();
        match register {
            DATA if !latched => self.transmit_pending = true,
            INTERRUPT_ENABLE if !latched => {
                self.transmit_pending |= value & !self.enabled & ENABLE_TRANSMIT != 0;
                self.enabled = value & ENABLE_BITS;
            }
            _ => (),
        }
        if let Err(error) = self.uart.write(register, value)
            && !std::mem::replace(&mut self.output_failed, true)
        {
            log::warn!("serial port: output is lost: {error}");
        }
    }
}

/// The registers are one byte wide: a wider access is several.
impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (slot, at) in data.iter_mut().zip(offset..) {
            *slot = match u8::try_from(at) {
                Ok(register) if at < LEN => self.access(|state| state.read(register)),
                _ => 0,
            };
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        for (&byte, at) in data.iter().zip(offset..LEN) {
            if let Ok(register) = u8::try_from(at) {
                self.access(|state| state.write(register, byte));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>);
    impl Write for Output {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.0.lock().extend(data);
            Ok(data.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Broken;
    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[derive(Default)]
    struct Level(AtomicBool);
    impl IrqLine for Level {
        fn set(&self, asserted: bool) {
            self.0.store(asserted, Ordering::SeqCst);
        }
    }

    struct Fixture {
        serial: Serial,
        output: Output,
        level: Arc<Level>,
        rooms: Arc<AtomicUsize>,
    }

    fn fixture() -> Fixture {
        let (output, level, rooms) =
            (Output::default(), Arc::<Level>::default(), Arc::<AtomicUsize>::default());
        let count = rooms.clone();
        let room = Box::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
        });
        let serial = Serial::new(level.clone(), Box::new(output.clone()), room);
        Fixture { serial, output, level, rooms }
    }

    impl Fixture {
        fn read(&self, register: u8) -> u8 {
            let mut data = [0];
            self.serial.read(register.into(), &mut data);
            data[0]
        }
        fn write(&self, register: u8, value: u8) {
            self.serial.write(register.into(), &[value]);
        }
        fn raised(&self) -> bool {
            self.level.0.load(Ordering::SeqCst)
        }
    }

    #[test]
    fn output_arrives_and_a_broken_output_does_no_harm() {
        let f = fixture();
        for byte in b"hello" {
            f.write(DATA, *byte);
        }
        assert_eq!(*f.output.0.lock(), b"hello");
        let broken = Serial::new(Arc::new(crate::irq::NoIrq), Box::new(Broken), Box::new(|| ()));
        broken.write(0, &[1]);
        let mut status = [0];
        broken.read(LINE_STATUS.into(), &mut status);
        assert_eq!(status[0] & 0x20, 0x20, "transmitter is empty again");
    }

    #[test]
    fn received_data_holds_the_line_until_read() {
        let f = fixture();
        assert_eq!(f.serial.enqueue(b"ab"), 2);
        assert!(!f.raised(), "not enabled");
        f.write(INTERRUPT_ENABLE, ENABLE_RECEIVED);
        assert!(f.raised());
        assert_eq!((f.read(INTERRUPT_ID), f.read(INTERRUPT_ID)), (0xc4, 0xc4), "does not clear");
        assert_eq!((f.read(DATA), f.raised()), (b'a', true));
        assert_eq!((f.read(DATA), f.raised()), (b'b', false));
        assert_eq!(f.read(INTERRUPT_ID), 0xc1);
    }

    #[test]
    fn empty_transmitter_is_reported_once() {
        let f = fixture();
        f.write(INTERRUPT_ENABLE, ENABLE_TRANSMIT);
        assert!(f.raised(), "enabling reports an empty transmitter");
        assert_eq!((f.read(INTERRUPT_ID), f.raised()), (0xc2, false));
        f.write(INTERRUPT_ENABLE, ENABLE_TRANSMIT);
        assert!(!f.raised(), "enabled already");
        f.write(DATA, b'x');
        assert_eq!((f.raised(), f.read(INTERRUPT_ID), f.raised()), (true, 0xc2, false));
        f.write(DATA, b'x');
        f.write(INTERRUPT_ENABLE, 0);
        assert_eq!((f.raised(), f.read(INTERRUPT_ID)), (false, 0xc1));
    }

    #[test]
    fn received_data_comes_before_an_empty_transmitter() {
        let f = fixture();
        f.write(INTERRUPT_ENABLE, ENABLE_RECEIVED | ENABLE_TRANSMIT);
        f.serial.enqueue(b"a");
        assert_eq!(f.read(INTERRUPT_ID), 0xc4);
        f.read(DATA);
        assert_eq!((f.raised(), f.read(INTERRUPT_ID), f.raised()), (true, 0xc2, false));
    }

    #[test]
    fn divisor_latch_hides_data_and_enables() {
        let f = fixture();
        f.write(LINE_CONTROL, DIVISOR_LATCH);
        f.write(DATA, 0x42);
        f.write(INTERRUPT_ENABLE, 0x0f);
        assert_eq!((f.read(0), f.read(1)), (0x42, 0x0f));
        f.write(LINE_CONTROL, 3);
        assert_eq!((f.read(INTERRUPT_ENABLE), f.raised()), (0, false));
        assert!(f.output.0.lock().is_empty());
    }

    #[test]
    fn refused_input_is_asked_for_once_there_is_room() {
        let f = fixture();
        let input = [7; 200];
        let taken = f.serial.enqueue(&input);
        assert!(taken > 0 && taken < input.len());
        assert_eq!(f.serial.enqueue(&input[taken..]), 0);
        for read in 1..=taken {
            assert_eq!(f.rooms.load(Ordering::SeqCst), 0, "after {read} bytes");
            f.read(DATA);
        }
        assert_eq!(f.rooms.load(Ordering::SeqCst), 1);
        f.serial.enqueue(b"fits");
        f.read(DATA);
        assert_eq!(f.rooms.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn loopback_refuses_input_until_it_ends() {
        let f = fixture();
        f.write(MODEM_CONTROL, LOOPBACK);
        assert_eq!(f.serial.enqueue(b"a"), 0);
        f.write(DATA, b'x');
        assert_eq!((f.read(DATA), f.rooms.load(Ordering::SeqCst)), (b'x', 0));
        f.write(MODEM_CONTROL, 0);
        assert_eq!(f.rooms.load(Ordering::SeqCst), 1);
    }

    proptest! {
        /// No panic; and the line always says what the identification register would.
        #[test]
        fn hostile_accesses(steps in prop::collection::vec(
            (0u8..3, prop_oneof![0u64..9, any::<u64>()], prop::collection::vec(any::<u8>(), 1..9)), 0..80)) {
            let f = fixture();
            for (kind, offset, mut data) in steps {
                match kind {
                    0 => f.serial.read(offset, &mut data),
                    1 => f.serial.write(offset, &data),
                    _ => drop(f.serial.enqueue(&data)),
                }
                let raised = f.raised();
                prop_assert_eq!(f.read(INTERRUPT_ID) & 1 == 0, raised);
            }
        }
    }
}
