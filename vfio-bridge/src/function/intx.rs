//! The interrupt line of a device that has one, PCI Local Bus 3.0 §2.2.6.
//!
//! The device asserts its line until its driver has served it. The host takes notice once and masks the line; here it is
//! asserted for the guest, until the guest says at its interrupt controller that it is done. Then it is lowered, and
//! the host unmasks: if the device still asserts, all begins anew.

use std::io;
use std::sync::Arc;

use devices::irq::IrqLine;
use iommu_core::sync::Mutex;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::events::{Events, Token};
use super::warnings::Warnings;
use crate::function_file::{FunctionFile, irq};

#[derive(Default)]
struct State {
    /// The host has it on.
    on: bool,
    /// The host refused once: it is not asked again until the guest wants none in between.
    refused: bool,
    /// The guest has switched it off in the command register.
    disabled: bool,
}

/// The line.
pub(super) struct Intx {
    event: EventFd,
    line: Arc<dyn IrqLine>,
    state: Mutex<State>,
}

impl Intx {
    /// Off.
    pub(super) fn new(line: Arc<dyn IrqLine>, events: &Events) -> io::Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK)?;
        events.add(&event, Token::Line)?;
        Ok(Self { event, line, state: Mutex::default() })
    }

    /// Whether the device may assert it.
    pub(super) fn is_on(&self) -> bool {
        self.state.lock().on
    }

    /// Switches it on, masked by the device's command register. Whether that changed anything.
    pub(super) fn switch_on(&self, file: &dyn FunctionFile, warnings: &Warnings) -> bool {
        let mut state = self.state.lock();
        if state.on || state.refused {
            return false;
        }
        // What came before is of the past.
        let _ = self.event.read();
        match file.set_irqs(irq::INTX, 0, &[Some(&self.event)]) {
            Ok(()) => state.on = true,
            Err(errno) => {
                state.refused = true;
                _ = warnings.say(format_args!("the host gives no interrupt line: {errno}"));
            }
        }
        state.on
    }

    /// Switches it off; the guest finds it lowered. Whether that changed anything.
    pub(super) fn switch_off(&self, file: &dyn FunctionFile, warnings: &Warnings) -> bool {
        let mut state = self.state.lock();
        state.refused = false;
        let was_on = std::mem::take(&mut state.on);
        if was_on {
            if let Err(errno) = file.disable_irqs(irq::INTX) {
                _ = warnings.say(format_args!("the host does not switch the interrupt line off: {errno}"));
            }
            self.line.set(false);
        }
        was_on
    }

    /// Follows the guest's switch in the command register, which the device has been told of already.
    pub(super) fn set_disabled(&self, disabled: bool) {
        let mut state = self.state.lock();
        state.disabled = disabled;
        if disabled {
            self.line.set(false);
        }
    }

    /// The event was signalled.
    pub(super) fn signalled(&self) {
        let state = self.state.lock();
        // Without a count somebody else took it.
        if self.event.read().is_ok() && state.on && !state.disabled {
            self.line.set(true);
        }
    }

    /// The guest is done with an interrupt of this line, perhaps with another device's.
    pub(super) fn ended(&self, file: &dyn FunctionFile) {
        let state = self.state.lock();
        if !state.on {
            return;
        }
        self.line.set(false);
        if let Err(errno) = file.unmask_irqs(irq::INTX) {
            log::debug!("the interrupt line stays masked: {errno}");
        }
    }
}
