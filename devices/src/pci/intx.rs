//! The interrupt line of an emulated function, PCI Local Bus 3.0 §2.2.6 and PCIe §7.5.1.1: asserted as long as there is a
//! reason, and neither the command register nor MSI-X keeps it down.

use std::sync::Arc;

use crate::irq::IrqLine;

/// INTA.
pub(super) const PIN: u8 = 1;

/// What keeps the line up or down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct State {
    /// The function has a reason to interrupt: the status register's bit.
    pending: bool,
    /// By the command register.
    disabled: bool,
    /// Messages take its place.
    messages: bool,
}

impl State {
    fn is_asserted(self) -> bool {
        self.pending && !self.disabled && !self.messages
    }
}

/// The line.
pub(super) struct Intx {
    line: Arc<dyn IrqLine>,
    state: State,
}

impl Intx {
    /// Not asserted.
    pub(super) fn new(line: Arc<dyn IrqLine>) -> Self {
        Self { line, state: State::default() }
    }

    /// The function has a reason to interrupt, or none any more.
    pub(super) fn set_pending(&mut self, pending: bool) {
        self.change(State { pending, ..self.state });
    }

    /// Whether the status register has the bit.
    pub(super) fn is_pending(&self) -> bool {
        self.state.pending && !self.state.messages
    }

    /// The switches in configuration space.
    pub(super) fn set_switches(&mut self, disabled: bool, messages: bool) {
        self.change(State { disabled, messages, ..self.state });
    }

    /// As at power-on.
    pub(super) fn reset(&mut self) {
        self.change(State::default());
    }

    /// The line is told of changes only: a device with messages comes by with every one of them.
    fn change(&mut self, state: State) {
        let before = std::mem::replace(&mut self.state, state).is_asserted();
        if before != state.is_asserted() {
            self.line.set(!before);
        }
    }
}
