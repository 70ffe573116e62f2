//! The IOAPIC, in userspace: for a hypervisor that keeps only the local APICs (a *split* interrupt chip).
//!
//! A pin's message goes to a [`MsiSink`] under the IOAPIC's own source id, so interrupt remapping sees it as
//! any other interrupt request. Level interrupts end in one of three ways: the guest writes the EOI register
//! (Linux with remapping), it flips the entry to edge (older guests), or the local APIC broadcasts an EOI
//! and the VMM calls [`IoApic::eoi`] or [`IoApic::eoi_pin`]. A line that is still asserted is sent again. Before that,
//! whoever asked to be told ([`IoApic::on_end`]) lowers its own.

pub mod spec;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use iommu_core::{Msi, MsiSink, SourceId};
use parking_lot::{Mutex, MutexGuard, RwLock};

use crate::bus::BusDevice;
use crate::irq::{EndOfInterrupt, IrqLine};
use spec::{Entry, MessageAddress, MessageData, PINS, Version};

/// What a pin sends, before interrupt remapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinRoute {
    /// The message.
    pub msi: Msi,
    /// The entry says level. Without remapping the local APIC then has to report EOIs of the vector.
    pub level: bool,
    /// The entry is masked: nothing is sent now, but an EOI of what was sent before may still come.
    pub masked: bool,
}

impl PinRoute {
    /// What an entry sends. **Pure.**
    #[must_use]
    pub fn of(entry: Entry) -> Self {
        let address = MessageAddress::DEFAULT
            .with_destination_mode(entry.destination_mode())
            .with_remappable(entry.remappable())
            .with_destination(entry.destination());
        let data = MessageData::DEFAULT
            .with_vector(entry.vector())
            .with_delivery(entry.delivery())
            .with_assert(true)
            .with_level(entry.level());
        let msi = Msi { address: u64::from(address.raw_value()), data: data.raw_value() };
        Self { msi, level: entry.level(), masked: entry.masked() }
    }
}

/// Hears of every change of a redirection table entry, in order; to keep routes and EOI reports in step.
///
/// Called with the IOAPIC's lock held: must not call the IOAPIC and takes only locks that are not held
/// while it is called.
pub trait RouteObserver: Send + Sync {
    /// The guest changed what `pin` sends.
    fn route_changed(&self, pin: u8, route: &PinRoute);
}

struct Pin {
    entry: Entry,
    /// Number of lines into this pin that are asserted.
    asserted: u32,
}

struct State {
    index: u8,
    id: u32,
    pins: [Pin; PINS as usize],
}

/// The IOAPIC. As a [`BusDevice`] it is its register window.
pub struct IoApic {
    source: SourceId,
    sink: Arc<dyn MsiSink>,
    observer: Option<Arc<dyn RouteObserver>>,
    /// Held while messages are sent, so that none leaves after the write that masked it returned.
    state: Mutex<State>,
    /// Who wants to hear of the end of a pin's interrupts.
    listeners: RwLock<Vec<(u8, Weak<dyn EndOfInterrupt>)>>,
}

/// A set of pins, a bit each.
type Pins = u32;

const _: () = assert!(PINS as u32 <= Pins::BITS);

impl State {
    fn new() -> Self {
        Self { index: 0, id: 0, pins: std::array::from_fn(|_| Pin { entry: Entry::RESET, asserted: 0 }) }
    }

    /// The entry that an index of the data register belongs to, and whether it is the high half.
    fn entry_at(index: u8) -> Option<(usize, bool)> {
        let at = index.checked_sub(spec::TABLE)?;
        (at / 2 < PINS).then(|| (usize::from(at / 2), at % 2 != 0))
    }

    fn read(&self) -> u32 {
        match (self.index, Self::entry_at(self.index)) {
            (spec::ID | spec::ARBITRATION, _) => self.id,
            (spec::VERSION, _) => Version::DEFAULT.with_version(0x20).with_last_pin(PINS - 1).raw_value(),
            (_, Some((pin, high))) => {
                let [a, b, c, d, e, f, g, h] = self.pins[pin].entry.raw_value().to_le_bytes();
                u32::from_le_bytes(if high { [e, f, g, h] } else { [a, b, c, d] })
            }
            _ => 0,
        }
    }
}

impl IoApic {
    /// An IOAPIC that sends as `source`, with all pins masked. `source` must be the one that the DMAR table
    /// names, and not 00:00.0: Linux takes id 0 for "not found".
    #[must_use]
    pub fn new(
        source: SourceId,
        sink: Arc<dyn MsiSink>,
        observer: Option<Arc<dyn RouteObserver>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            source,
            sink,
            observer,
            state: Mutex::new(State::new()),
            listeners: RwLock::default(),
        })
    }

    /// A line into `pin`, `None` if there is no such pin. Several lines into one pin are or-ed.
    #[must_use]
    pub fn line(self: &Arc<Self>, pin: u8) -> Option<Arc<dyn IrqLine>> {
        (pin < PINS).then(|| {
            Arc::new(Line { ioapic: self.clone(), pin, asserted: AtomicBool::new(false) }) as Arc<dyn IrqLine>
        })
    }

    /// Has `listener` told when a level-triggered interrupt of `pin` ends, for as long as it lives. It is called before
    /// what is still asserted is sent again.
    pub fn on_end(&self, pin: u8, listener: Weak<dyn EndOfInterrupt>) {
        self.listeners.write().push((pin, listener));
    }

    /// What every pin sends now.
    #[must_use]
    pub fn routes(&self) -> [PinRoute; PINS as usize] {
        let state = self.state.lock();
        std::array::from_fn(|pin| PinRoute::of(state.pins[pin].entry))
    }

    /// A local APIC, or the guest through the EOI register, ended the level interrupt of `vector`.
    pub fn eoi(&self, vector: u8) {
        self.end(|_, entry| entry.vector() == vector);
    }

    /// A local APIC ended the level interrupt of a pin: for those who know the pin, because remapping gave
    /// the interrupt a vector that is not the entry's.
    pub fn eoi_pin(&self, pin: u8) {
        self.end(|number, _| number == pin);
    }

    /// All registers back to their initial state. Lines keep their level.
    pub fn reset(&self) {
        let mut state = self.state.lock();
        let old = std::mem::replace(&mut *state, State::new());
        for ((number, pin), old) in (0u8..).zip(&mut state.pins).zip(old.pins) {
            pin.asserted = old.asserted;
            self.notify(number, pin.entry);
        }
    }

    fn end(&self, is_ended: impl Fn(u8, &Entry) -> bool) {
        let mut state = self.state.lock();
        let mut ended = 0;
        for (number, pin) in (0u8..).zip(&mut state.pins) {
            if is_ended(number, &pin.entry) && pin.entry.level() && pin.entry.remote_irr() {
                pin.entry.set_remote_irr(false);
                ended |= 1 << number;
            }
        }
        self.settle(state, ended);
    }

    /// Tells who wants to hear of it, and sends what is still asserted.
    fn settle<'a>(&'a self, mut state: MutexGuard<'a, State>, ended: Pins) {
        if ended == 0 {
            return;
        }
        let of = |(pin, listener): &(u8, Weak<dyn EndOfInterrupt>)| {
            listener.upgrade().filter(|_| ended & 1 << pin != 0)
        };
        let told: Vec<_> = self.listeners.read().iter().filter_map(of).collect();
        if !told.is_empty() {
            drop(state);
            told.iter().for_each(|listener| listener.ended());
            state = self.state.lock();
        }
        for (number, pin) in (0u8..).zip(&mut state.pins) {
            if ended & 1 << number != 0 {
                self.send_level(pin);
            }
        }
    }

    /// Sends a level interrupt if it is due.
    fn send_level(&self, pin: &mut Pin) {
        let entry = pin.entry;
        if entry.level() && !entry.masked() && !entry.remote_irr() && pin.asserted != 0 {
            pin.entry.set_remote_irr(true);
            self.sink.send(self.source, PinRoute::of(entry).msi);
        }
    }

    /// A pin went from no asserted line to one.
    fn rise(&self, pin: &mut Pin) {
        if pin.entry.level() {
            self.send_level(pin);
        } else if !pin.entry.masked() {
            self.sink.send(self.source, PinRoute::of(pin.entry).msi);
        }
    }

    fn notify(&self, pin: u8, entry: Entry) {
        if let Some(observer) = &self.observer {
            observer.route_changed(pin, &PinRoute::of(entry));
        }
    }

    /// Which pins' interrupts ended by it.
    fn write_data(&self, state: &mut State, value: u32) -> Pins {
        if state.index == spec::ID {
            state.id = value & spec::ID_MASK;
        }
        let Some((number, high)) = State::entry_at(state.index) else { return 0 };
        let pin = &mut state.pins[number];
        let old = pin.entry;
        let (half, shift) = if high { (0xffff_ffff_0000_0000, 32) } else { (0xffff_ffff, 0) };
        let mask: u64 = Entry::WRITABLE & half;
        let raw = old.raw_value() & !mask | u64::from(value) << shift & mask;
        let mut entry = Entry::new_with_raw_value(raw);
        if !entry.level() {
            entry.set_remote_irr(false);
        }
        pin.entry = entry;
        if PinRoute::of(entry) != PinRoute::of(old) {
            self.notify(u8::try_from(number).unwrap_or(0), entry);
        }
        self.send_level(pin);
        if old.remote_irr() && !entry.level() { 1 << number } else { 0 }
    }
}

/// Registers are 32 bits wide, and data is written only as such. What is no register reads as zeros.
impl BusDevice for IoApic {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let value = match offset & !3 {
            spec::INDEX => u32::from(self.state.lock().index),
            spec::DATA => self.state.lock().read(),
            _ => return,
        };
        let lane = usize::from(offset.to_le_bytes()[0] & 3);
        for (slot, byte) in data.iter_mut().zip(&value.to_le_bytes()[lane..]) {
            *slot = *byte;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (spec::INDEX, [index, ..]) => self.state.lock().index = *index,
            (spec::EOI, [vector, ..]) => self.eoi(*vector),
            (spec::DATA, &[a, b, c, d]) => {
                let mut state = self.state.lock();
                let ended = self.write_data(&mut state, u32::from_le_bytes([a, b, c, d]));
                self.settle(state, ended);
            }
            _ => (),
        }
    }
}

struct Line {
    ioapic: Arc<IoApic>,
    pin: u8,
    /// Changed with the IOAPIC's lock held.
    asserted: AtomicBool,
}

impl IrqLine for Line {
    fn set(&self, asserted: bool) {
        if self.asserted.load(Ordering::Acquire) == asserted {
            return;
        }
        let mut state = self.ioapic.state.lock();
        if self.asserted.swap(asserted, Ordering::AcqRel) == asserted {
            return;
        }
        let pin = &mut state.pins[usize::from(self.pin)];
        if !asserted {
            pin.asserted = pin.asserted.saturating_sub(1);
            return;
        }
        pin.asserted += 1;
        if pin.asserted == 1 {
            self.ioapic.rise(pin);
        }
    }
}

#[cfg(test)]
mod tests;
