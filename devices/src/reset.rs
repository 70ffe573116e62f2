//! The ways in which a guest switches itself off, starts over, or reports that it crashed.
//!
//! Each is a tiny [`BusDevice`] that reduces to a [`MachineEvent`]. They may lie at ports or in memory.

use std::sync::Arc;

use arbitrary_int::u3;
use bitbybit::bitfield;
use parking_lot::Mutex;

use crate::bus::BusDevice;

/// The guest asked for something that concerns the machine as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineEvent {
    /// Power off.
    PowerOff,
    /// Reset.
    Reset,
    /// The guest's kernel crashed.
    Panic,
    /// A program in the guest ends the machine with this status.
    Exit(u8),
}

/// Takes events. Called on a vCPU thread, perhaps several times; must not block.
pub type MachineEvents = Arc<dyn Fn(MachineEvent) + Send + Sync>;

/// Sleep control register of hardware-reduced ACPI (ACPI 6.5 §4.8.3.7).
#[bitfield(u8, default = 0, debug, forbid_overlaps)]
pub struct SleepControl {
    /// Sleep type, as the `_Sx` object of the state gives it.
    #[bits(2..=4, rw)]
    sleep_type: u3,
    /// Enter the state. Reads as zero.
    #[bit(5, rw)]
    sleep_enable: bool,
}

/// Sleep control (offset 0) and sleep status (offset 1) registers. The only state is S5.
pub struct SleepRegisters(pub MachineEvents);

impl SleepRegisters {
    /// Number of bytes.
    pub const LEN: u64 = 2;
    /// Offset of the sleep status register from the sleep control register.
    pub const STATUS: u64 = 1;
    /// Sleep type of S5, for the `_S5` object.
    pub const S5_TYPE: u8 = 5;
}

/// Both registers read as zeros: nothing ever wakes up.
impl BusDevice for SleepRegisters {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (0, Some(&byte)) = (offset, data.first()) {
            let control = SleepControl::new_with_raw_value(byte);
            if control.sleep_enable() && control.sleep_type().value() == Self::S5_TYPE {
                (self.0)(MachineEvent::PowerOff);
            }
        }
    }
}

/// The ACPI reset register (ACPI 6.5 §4.8.3.6): one byte.
pub struct ResetRegister(pub MachineEvents);

impl ResetRegister {
    /// The value that resets, for the FADT.
    pub const VALUE: u8 = 1;
}

impl BusDevice for ResetRegister {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset == 0 && data.first() == Some(&Self::VALUE) {
            (self.0)(MachineEvent::Reset);
        }
    }
}

/// The command port of a keyboard controller that can do nothing but reset. One byte.
pub struct KeyboardReset(pub MachineEvents);

impl KeyboardReset {
    /// The port.
    pub const PORT: u64 = 0x64;
    /// "Pulse output line 0", which resets.
    pub const COMMAND: u8 = 0xfe;
}

/// The status reads as zero: ready for a command, so nobody waits before resetting.
impl BusDevice for KeyboardReset {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset == 0 && data.first() == Some(&Self::COMMAND) {
            (self.0)(MachineEvent::Reset);
        }
    }
}

/// Reset control register of PC chipsets, at port 0xCF9.
#[bitfield(u8, default = 0, debug, forbid_overlaps)]
pub struct ResetControlBits {
    /// Hard, not soft.
    #[bit(1, rw)]
    system_reset: bool,
    /// Reset as this goes from 0 to 1.
    #[bit(2, rw)]
    reset_cpu: bool,
}

/// The reset control register at port 0xCF9, one byte. Lies between the PCI configuration ports:
/// see [`ConfigPorts`](crate::pci::ConfigPorts).
pub struct ResetControl {
    events: MachineEvents,
    value: Mutex<ResetControlBits>,
}

impl ResetControl {
    /// The register.
    #[must_use]
    pub fn new(events: MachineEvents) -> Self {
        Self { events, value: Mutex::new(ResetControlBits::DEFAULT) }
    }
}

impl BusDevice for ResetControl {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(byte) = data.first_mut() {
            *byte = self.value.lock().raw_value();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let (0, Some(&byte)) = (offset, data.first()) else { return };
        let written = ResetControlBits::new_with_raw_value(byte);
        let stored = ResetControlBits::DEFAULT.with_system_reset(written.system_reset());
        let stored = stored.with_reset_cpu(written.reset_cpu());
        let before = std::mem::replace(&mut *self.value.lock(), stored);
        if stored.reset_cpu() && !before.reset_cpu() {
            (self.events)(MachineEvent::Reset);
        }
    }
}

/// The port of a pvpanic device, one byte. Reading it tells which events are taken.
pub struct PanicPort(pub MachineEvents);

impl PanicPort {
    /// Where guests expect it.
    pub const PORT: u64 = 0x505;
    /// The event "panicked".
    pub const PANICKED: u8 = 1 << 0;
}

impl BusDevice for PanicPort {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(byte) = data.first_mut() {
            *byte = Self::PANICKED;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset == 0 && data.first().is_some_and(|byte| byte & Self::PANICKED != 0) {
            (self.0)(MachineEvent::Panic);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes to a fresh device; what events came of it.
    fn events<D: BusDevice>(
        make: impl FnOnce(MachineEvents) -> D,
        writes: &[(u64, &[u8])],
    ) -> Vec<MachineEvent> {
        let seen = Arc::<Mutex<Vec<MachineEvent>>>::default();
        let sink = seen.clone();
        let device = make(Arc::new(move |event| sink.lock().push(event)));
        for (offset, data) in writes {
            device.write(*offset, data);
            device.read(*offset, &mut [0; 8][..data.len()]);
        }
        let seen = seen.lock();
        seen.clone()
    }

    #[test]
    fn s5_powers_off_and_nothing_else_does() {
        let rows: [(&str, u64, u8, &[MachineEvent]); 5] = [
            ("S5", 0, 0x34, &[MachineEvent::PowerOff]),
            ("S5 with reserved bits", 0, 0xf7, &[MachineEvent::PowerOff]),
            ("type without enable", 0, 0x14, &[]),
            ("S3", 0, 0x2c, &[]),
            ("status", 1, 0x34, &[]),
        ];
        for (name, offset, byte, expected) in rows {
            assert_eq!(events(SleepRegisters, &[(offset, &[byte])]), expected, "{name}");
        }
    }

    #[test]
    fn resets() {
        assert_eq!(events(ResetRegister, &[(0, &[1])]), [MachineEvent::Reset]);
        assert_eq!(events(ResetRegister, &[(0, &[0]), (0, &[2])]), []);
        assert_eq!(events(KeyboardReset, &[(0, &[0xfe])]), [MachineEvent::Reset]);
        assert_eq!(events(KeyboardReset, &[(0, &[0xaa]), (1, &[0xfe])]), []);
    }

    #[test]
    fn reset_control_acts_on_the_rising_bit() {
        let rows: [(&str, &[u8], usize); 5] = [
            ("Linux: 2 then 6", &[2, 6], 1),
            ("soft", &[0, 4], 1),
            ("bit stays", &[6, 6], 1),
            ("twice", &[6, 2, 6], 2),
            ("other bits", &[0xfb], 0),
        ];
        for (name, bytes, expected) in rows {
            let writes: Vec<_> = bytes.iter().map(|b| (0, std::slice::from_ref(b))).collect();
            assert_eq!(events(ResetControl::new, &writes).len(), expected, "{name}");
        }
        let control = ResetControl::new(Arc::new(|_| ()));
        control.write(0, &[0xff]);
        let mut data = [0];
        control.read(0, &mut data);
        assert_eq!(data, [6]);
    }

    #[test]
    fn panic_port_takes_what_it_announces() {
        assert_eq!(events(PanicPort, &[(0, &[1])]), [MachineEvent::Panic]);
        assert_eq!(events(PanicPort, &[(0, &[2])]), []);
        let mut data = [0];
        PanicPort(Arc::new(|_| ())).read(0, &mut data);
        assert_eq!(data, [1]);
    }
}
