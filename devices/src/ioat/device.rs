//! What the register page, the workers and the PCI function share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use super::channel::Channel;
use super::spec::{InterruptControl, config};
use crate::pci::FunctionBase;

/// How the function is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoatConfig {
    /// Number of channels, 1 to [`MAX_CHANNELS`](super::spec::MAX_CHANNELS).
    pub channels: u8,
    /// Logarithm of the longest transfer of one descriptor, in [`TRANSFER_LOG2`](super::spec::TRANSFER_LOG2).
    pub transfer_log2: u8,
}

impl Default for IoatConfig {
    fn default() -> Self {
        Self { channels: 1, transfer_log2: 16 }
    }
}

/// The device without its threads.
pub struct Device {
    /// As built.
    pub config: IoatConfig,
    /// Configuration space and MSI-X.
    pub base: Arc<FunctionBase>,
    /// Channels.
    pub channels: Vec<Channel>,
    /// INTRCTRL, its writable bits.
    control: AtomicU8,
    /// ATTNSTATUS.
    attention: AtomicU32,
}

impl Device {
    /// In its power-on state.
    #[must_use]
    pub fn new(config: IoatConfig, base: Arc<FunctionBase>) -> Self {
        let channels = (0..config.channels).map(|_| Channel::default()).collect();
        Self { config, base, channels, control: AtomicU8::new(0), attention: AtomicU32::new(0) }
    }

    /// INTRCTRL.
    #[must_use]
    pub fn interrupt_control(&self) -> InterruptControl {
        let control = InterruptControl::new_with_raw_value(self.control.load(Ordering::Acquire));
        let status = self.attention.load(Ordering::Acquire) != 0;
        control.with_status(status).with_interrupt(status && control.master_enable())
    }

    /// Writes INTRCTRL.
    pub fn set_interrupt_control(&self, value: u8) {
        self.control.store(value & InterruptControl::WRITABLE, Ordering::Release);
    }

    /// ATTNSTATUS.
    #[must_use]
    pub fn attention(&self) -> u32 {
        self.attention.load(Ordering::Acquire)
    }

    /// Clears bits of ATTNSTATUS: those that were read.
    pub fn acknowledge(&self, bits: u32) {
        self.attention.fetch_and(!bits, Ordering::AcqRel);
    }

    /// Sends a channel's interrupt, if they are on.
    pub fn interrupt(&self, channel: u8) {
        self.attention.fetch_or(1 << (channel % 32), Ordering::AcqRel);
        let control = self.interrupt_control();
        if control.master_enable() || control.msix_vectors() {
            self.base.trigger(channel.into());
        }
    }

    /// Keeps a channel's errors in CHANERR_INT. Takes the lock of configuration space.
    pub fn record_errors(&self, errors: u32) {
        if errors != 0 {
            self.base.set_register_bits(config::CHANERR_INT, errors);
        }
    }

    /// Waits until no access is under way that began before the call.
    pub fn drain(&self) {
        self.channels.iter().for_each(Channel::drain);
    }

    /// Function-level or conventional reset. On return no DMA is under way, and none follows.
    pub fn reset(&self) {
        self.channels.iter().for_each(Channel::reset);
        self.control.store(0, Ordering::Release);
        self.attention.store(0, Ordering::Release);
    }
}
