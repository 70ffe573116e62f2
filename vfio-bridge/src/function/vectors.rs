//! Vectors of one kind, MSI or MSI-X: which are open, and where each of the device's events leads.
//!
//! The table of vectors is [`Msix`], as emulated functions have it. A vector that is open and that interrupt remapping
//! turns into a plain message is led past this process. Every other one signals an event that is read here: then it is
//! pending, or goes through the sink, where remapping blocks it and tells the guest why, or posts it.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use devices::pci::spec::MsixControl;
use devices::pci::{Msix, MsixSpec};
use iommu_core::sync::Mutex;
use iommu_core::{InterruptRemapper, Msi, MsiSink, SourceId};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::events::{Events, Token};
use super::warnings::Warnings;
use super::ways::{InterruptShortcuts, Shortcut};
use crate::function_file::{FunctionFile, Irqs};

/// Bytes of an entry, and where its parts are.
const ENTRY: u64 = 16;
const DATA: u64 = 8;
const CONTROL: u64 = 12;

/// The ways of interrupts out of a function.
#[derive(Clone)]
pub(super) struct Ways {
    pub(super) source: SourceId,
    /// The slow way: remapped, blocked, posted.
    pub(super) sink: Arc<dyn MsiSink>,
    pub(super) remapper: Option<Arc<dyn InterruptRemapper>>,
    pub(super) shortcuts: Arc<dyn InterruptShortcuts>,
}

/// A vector that the device may signal.
struct Vector {
    event: EventFd,
    shortcut: Option<Box<dyn Shortcut>>,
    led: Option<Msi>,
}

#[derive(Default)]
struct State {
    /// The guest has them on.
    enabled: bool,
    /// The host has them on.
    on: bool,
    /// The host refused once: it is not asked again, nor the log filled, until they are switched on anew.
    refused: bool,
    vectors: Vec<Option<Vector>>,
}

/// All vectors of one kind.
pub(super) struct Vectors {
    /// Number of the kind with VFIO, and of the table in [`Token`].
    kind: u32,
    table_number: u16,
    irqs: Irqs,
    count: u16,
    ways: Ways,
    /// Table at offset 0, pending bits right after it.
    table: Msix,
    state: Mutex<State>,
    warnings: Warnings,
}

impl Vectors {
    /// `count` vectors of a kind, off.
    pub(super) fn new(kind: u32, irqs: Irqs, count: u16, ways: &Ways) -> Self {
        let spec = MsixSpec { vectors: count, bar: 0, table_offset: 0, pba_offset: u32::from(count) * 16 };
        Self {
            kind,
            table_number: u16::try_from(kind).unwrap_or(u16::MAX),
            irqs,
            count,
            ways: ways.clone(),
            table: Msix::new(spec, ways.source, ways.sink.clone()),
            state: Mutex::default(),
            warnings: Warnings::new(ways.source),
        }
    }

    pub(super) fn table_number(&self) -> u16 {
        self.table_number
    }

    /// Bytes of the table.
    pub(super) fn table_len(&self) -> u64 {
        u64::from(self.count) * ENTRY
    }

    /// Reads the table.
    pub(super) fn read_table(&self, offset: u64, data: &mut [u8]) {
        self.table.read(offset, data);
    }

    /// Reads the pending bits.
    pub(super) fn read_pending(&self, offset: u64, data: &mut [u8]) {
        self.table.read(self.table_len() + offset, data);
    }

    /// Writes the table.
    pub(super) fn write_table(&self, offset: u64, data: &[u8], host: &Host<'_>) {
        self.table.write(offset, data);
        let number = |offset: u64| u16::try_from(offset / ENTRY).unwrap_or(self.count).min(self.count);
        let end = offset.saturating_add(data.len() as u64 + ENTRY - 1);
        self.refresh_some(number(offset)..number(end), host);
    }

    /// Sets one entry as a whole.
    pub(super) fn set_entry(&self, vector: u16, msi: Msi, masked: bool) {
        let at = u64::from(vector) * ENTRY;
        let mut old = [0; 16];
        self.table.read(at, &mut old);
        let mut new = [0; 16];
        new[..8].copy_from_slice(&msi.address.to_le_bytes());
        new[8..12].copy_from_slice(&msi.data.to_le_bytes());
        new[12] = masked.into();
        if old != new {
            // Masked meanwhile: half a message is none.
            self.table.write(at + CONTROL, &[1]);
            self.table.write(at, &new[..8]);
            self.table.write(at + DATA, &new[8..12]);
            self.table.write(at + CONTROL, &new[12..]);
        }
    }

    /// Switches them on or off, or masks all. `first` says how many the host is to switch on if it cannot add any
    /// later.
    pub(super) fn control(&self, enabled: bool, masked: bool, first: u16, host: &Host<'_>) {
        self.table.set_control(MsixControl::DEFAULT.with_enable(enabled).with_function_mask(masked));
        let mut state = self.state.lock();
        state.enabled = enabled;
        if !enabled {
            self.switch_off(&mut state, host);
        } else if !state.on {
            self.switch_on(&mut state, first, host);
        }
        drop(state);
        self.refresh(host);
    }

    pub(super) fn set_bus_master(&self, on: bool, host: &Host<'_>) {
        self.table.set_bus_master(on);
        self.refresh(host);
    }

    /// Back to the state after a reset.
    pub(super) fn reset(&self, host: &Host<'_>) {
        let mut state = self.state.lock();
        state.enabled = false;
        self.switch_off(&mut state, host);
        self.table.reset();
    }

    /// Leads every vector to where it belongs now.
    pub(super) fn refresh(&self, host: &Host<'_>) {
        self.refresh_some(0..self.count, host);
    }

    fn refresh_some(&self, vectors: Range<u16>, host: &Host<'_>) {
        let mut state = self.state.lock();
        if !state.on {
            return;
        }
        for vector in vectors {
            let message = self.table.message(vector);
            if message.is_some() {
                self.add(&mut state, vector, host);
            }
            if let Some(Some(it)) = state.vectors.get_mut(usize::from(vector)) {
                it.lead(message.and_then(|msi| self.resolve(msi)));
            }
        }
    }

    fn resolve(&self, msi: Msi) -> Option<Msi> {
        match &self.ways.remapper {
            Some(remapper) => remapper.resolve(self.ways.source, msi),
            None => Some(msi),
        }
    }

    /// An event was signalled and is read here.
    pub(super) fn signalled(&self, vector: u16) {
        let state = self.state.lock();
        let Some(Some(it)) = state.vectors.get(usize::from(vector)) else { return };
        let count = it.event.read();
        drop(state);
        // Without a count somebody else took it.
        if count.is_ok() {
            self.table.trigger(vector);
        }
    }

    fn switch_on(&self, state: &mut State, first: u16, host: &Host<'_>) {
        state.refused = false;
        state.vectors = std::iter::repeat_with(|| None).take(usize::from(self.count)).collect();
        let first = if self.irqs.dynamic { 1 } else { first.clamp(1, self.count) };
        for (number, slot) in (0..first).zip(&mut state.vectors) {
            *slot = self.vector(number, host);
        }
        let events: Vec<_> =
            state.vectors[..usize::from(first)].iter().map(|it| it.as_ref().map(|it| &it.event)).collect();
        match host.file.set_irqs(self.kind, 0, &events) {
            Ok(()) => state.on = true,
            Err(errno) => {
                _ = self.warnings.say(format_args!("the host gives no interrupts: {errno}"));
                state.vectors.clear();
            }
        }
    }

    fn switch_off(&self, state: &mut State, host: &Host<'_>) {
        if !std::mem::take(&mut state.on) {
            return;
        }
        state.vectors.clear();
        if let Err(errno) = host.file.disable_irqs(self.kind) {
            _ = self.warnings.say(format_args!("the host does not switch interrupts off: {errno}"));
        }
    }

    /// Lets the device signal one more vector.
    fn add(&self, state: &mut State, vector: u16, host: &Host<'_>) {
        let known = state.vectors.get(usize::from(vector)).is_some_and(Option::is_some);
        if known || state.refused || !self.irqs.dynamic {
            return;
        }
        let Some(it) = self.vector(vector, host) else { return };
        match host.file.set_irqs(self.kind, vector.into(), &[Some(&it.event)]) {
            Ok(()) => {
                if let Some(slot) = state.vectors.get_mut(usize::from(vector)) {
                    *slot = Some(it);
                }
            }
            Err(errno) => {
                state.refused = true;
                _ = self.warnings.say(format_args!("no interrupt for vector {vector}: {errno}"));
            }
        }
    }

    fn vector(&self, vector: u16, host: &Host<'_>) -> Option<Vector> {
        let make = || -> io::Result<Vector> {
            let event = EventFd::new(EFD_NONBLOCK)?;
            host.events.add(&event, Token::Vector(self.table_number, vector))?;
            // Without, it is slower, and works as well.
            let shortcut = self.ways.shortcuts.shortcut(&event);
            let shortcut =
                shortcut.inspect_err(|error| log::debug!("no short way for a vector: {error}")).ok();
            Ok(Vector { event, shortcut, led: None })
        };
        make().inspect_err(|error| _ = self.warnings.say(format_args!("no event for a vector: {error}"))).ok()
    }
}

impl Vector {
    fn lead(&mut self, msi: Option<Msi>) {
        let Some(shortcut) = self.shortcut.as_ref().filter(|_| self.led != msi) else { return };
        match shortcut.lead(msi) {
            Ok(()) => self.led = msi,
            Err(error) => {
                log::debug!("a vector takes the long way: {error}");
                self.led = None;
            }
        }
    }
}

/// The host's side of vectors, while it is there.
pub(super) struct Host<'a> {
    pub(super) file: &'a dyn FunctionFile,
    pub(super) events: &'a Events,
}
