//! The root of the PCI hierarchy: bus 0 with its functions, and the three ways a CPU reaches them.
//!
//! [`Ecam`] and [`ConfigPorts`] lead to configuration space (PCIe §7.2.2, PCI 3.0 §3.2.2.3.2),
//! [`MmioWindow`] to what the guest programmed into BARs. Each is a [`BusDevice`] over the same [`PciRoot`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::RwLock;

use super::function::{BarRange, PciFunction};
use super::spec::{CONFIG_SIZE, ConfigAddress, header};
use crate::bus::{BusDevice, BusRange};

/// Devices on a bus.
pub const DEVICES: u8 = 32;
/// Functions of a device.
pub const FUNCTIONS: u8 = 8;
/// Bytes of ECAM per bus.
pub const ECAM_BUS_LEN: u64 = 1 << 20;

/// A place on bus 0 cannot be filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there can be no (second) PCI function at 00:{device:02x}.{function}")]
pub struct SlotError {
    /// Device number.
    pub device: u8,
    /// Function number.
    pub function: u8,
}

/// A BAR that answers.
struct Decoded {
    range: BarRange,
    devfn: u8,
    bar: u8,
    function: Arc<dyn PciFunction>,
}

/// Bus 0. Filled once, then shared by its three faces.
pub struct PciRoot {
    functions: Vec<Option<Arc<dyn PciFunction>>>,
    /// Sorted by start. Held while functions are asked for their BARs, never while one is accessed.
    decoded: RwLock<Vec<Decoded>>,
}

impl Default for PciRoot {
    fn default() -> Self {
        let slots = usize::from(DEVICES) * usize::from(FUNCTIONS);
        Self { functions: vec![None; slots], decoded: RwLock::default() }
    }
}

impl PciRoot {
    /// Puts a function in. The multi-function bit is the root's business, not the function's.
    ///
    /// # Errors
    /// The place does not exist or is taken.
    pub fn insert(&mut self, device: u8, function: u8, it: Arc<dyn PciFunction>) -> Result<(), SlotError> {
        let error = SlotError { device, function };
        if device >= DEVICES || function >= FUNCTIONS {
            return Err(error);
        }
        let devfn = device << 3 | function;
        match &mut self.functions[usize::from(devfn)] {
            Some(_) => return Err(error),
            slot => *slot = Some(it),
        }
        self.redecode(devfn);
        Ok(())
    }

    /// Resets every function and forgets what their BARs decoded.
    pub fn reset(&self) {
        for devfn in 0..=u8::MAX {
            if let Some(function) = self.function(devfn) {
                function.reset();
                self.redecode(devfn);
            }
        }
    }

    /// Reads configuration space; ones where no function is, or beyond its end.
    fn config_read(&self, devfn: u8, offset: u16, data: &mut [u8]) {
        let function = self.function(devfn).filter(|_| fits(offset, data.len()));
        let Some(function) = function else { return data.fill(0xff) };
        function.config_read(offset, data);
        if self.is_multi_function(devfn)
            && let Some(byte) = usize::from(header::HEADER_TYPE)
                .checked_sub(usize::from(offset))
                .and_then(|at| data.get_mut(at))
        {
            *byte |= header::MULTI_FUNCTION;
        }
    }

    fn config_write(&self, devfn: u8, offset: u16, data: &[u8]) {
        if let Some(function) = self.function(devfn).filter(|_| fits(offset, data.len())) {
            function.config_write(offset, data);
            self.redecode(devfn);
        }
    }

    fn function(&self, devfn: u8) -> Option<&Arc<dyn PciFunction>> {
        self.functions.get(usize::from(devfn))?.as_ref()
    }

    /// Whether `devfn` is a function 0 with siblings.
    fn is_multi_function(&self, devfn: u8) -> bool {
        devfn.is_multiple_of(FUNCTIONS) && (1..FUNCTIONS).any(|f| self.function(devfn | f).is_some())
    }

    /// Asks a function for its BARs. Asking under the lock makes the last writer's answer the one that stays.
    fn redecode(&self, devfn: u8) {
        let Some(function) = self.function(devfn) else { return };
        let mut decoded = self.decoded.write();
        decoded.retain(|d| d.devfn != devfn);
        for (bar, range) in (0u8..).zip(function.bars()) {
            if let Some(range) = range {
                decoded.push(Decoded { range, devfn, bar, function: function.clone() });
            }
        }
        decoded.sort_by_key(|d| (d.range.start, d.devfn, d.bar));
    }

    /// The BAR that holds the whole of an access, and the offset into it.
    fn find(&self, address: u64, len: usize) -> Option<(Arc<dyn PciFunction>, u8, u64)> {
        let decoded = self.decoded.read();
        let below = decoded.partition_point(|d| d.range.start <= address);
        let hit = decoded[..below].last()?;
        let offset = address - hit.range.start;
        let room = hit.range.len.checked_sub(offset)?;
        (len as u64 <= room).then(|| (hit.function.clone(), hit.bar, offset))
    }
}

fn fits(offset: u16, len: usize) -> bool {
    usize::from(offset) + len <= CONFIG_SIZE
}

/// Memory-mapped configuration space: an address's bits 27:20 are the bus, 19:12 device and function.
///
/// Give it [`ECAM_BUS_LEN`] per bus declared to the guest; buses other than 0 read as ones.
pub struct Ecam(pub Arc<PciRoot>);

impl Ecam {
    /// Device/function and register, if on bus 0. **Pure.**
    fn decode(offset: u64) -> Option<(u8, u16)> {
        if offset >= ECAM_BUS_LEN {
            return None;
        }
        let [low, middle, high, ..] = offset.to_le_bytes();
        let devfn = high << 4 | middle >> 4;
        Some((devfn, u16::from_le_bytes([low, middle & 0xf])))
    }
}

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match Self::decode(offset) {
            Some((devfn, register)) => self.0.config_read(devfn, register, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((devfn, register)) = Self::decode(offset) {
            self.0.config_write(devfn, register, data);
        }
    }
}

/// The configuration ports: CONFIG_ADDRESS at 0xCF8 (32-bit accesses only), CONFIG_DATA at 0xCFC.
///
/// Lies at ports 0xCF8 to 0xCFF. Between them, a byte access to 0xCF9 is the reset control register.
pub struct ConfigPorts {
    root: Arc<PciRoot>,
    address: AtomicU32,
    reset_control: Option<Arc<dyn BusDevice>>,
}

impl ConfigPorts {
    /// First port.
    pub const PORT: u64 = 0xcf8;
    /// Number of ports.
    pub const LEN: u64 = 8;

    /// The ports, with what answers byte accesses to 0xCF9 at its offset 0.
    #[must_use]
    pub fn new(root: Arc<PciRoot>, reset_control: Option<Arc<dyn BusDevice>>) -> Self {
        Self { root, address: AtomicU32::new(0), reset_control }
    }

    fn reset_control(&self, offset: u64, len: usize) -> Option<&Arc<dyn BusDevice>> {
        self.reset_control.as_ref().filter(|_| offset == 1 && len == 1)
    }

    /// Device/function and register that an access to CONFIG_DATA goes to.
    fn target(&self, offset: u64) -> Option<(u8, u16)> {
        let lane = u16::try_from(offset.checked_sub(4)?).ok().filter(|lane| *lane < 4)?;
        let address = ConfigAddress::new_with_raw_value(self.address.load(Ordering::Relaxed));
        let devfn = address.device().value() << 3 | address.function().value();
        let register = u16::from(address.register().value()) * 4 + lane;
        (address.enable() && address.bus() == 0).then_some((devfn, register))
    }
}

impl BusDevice for ConfigPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(device) = self.reset_control(offset, data.len()) {
            return device.read(0, data);
        }
        match (offset, &mut *data) {
            (0, [a, b, c, d]) => [*a, *b, *c, *d] = self.address.load(Ordering::Relaxed).to_le_bytes(),
            _ => match self.target(offset) {
                Some((devfn, register)) => self.root.config_read(devfn, register, data),
                None => data.fill(0xff),
            },
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(device) = self.reset_control(offset, data.len()) {
            return device.write(0, data);
        }
        match (offset, data) {
            (0, &[a, b, c, d]) => {
                let address = u32::from_le_bytes([a, b, c, d]) & ConfigAddress::MASK;
                self.address.store(address, Ordering::Relaxed);
            }
            _ => {
                if let Some((devfn, register)) = self.target(offset) {
                    self.root.config_write(devfn, register, data);
                }
            }
        }
    }
}

/// The window of guest-physical addresses that BARs may be placed in. Ones where no BAR answers.
pub struct MmioWindow {
    root: Arc<PciRoot>,
    start: u64,
}

impl MmioWindow {
    /// The window at `range`, which is also where it has to lie on the bus.
    #[must_use]
    pub fn new(root: Arc<PciRoot>, range: BusRange) -> Self {
        Self { root, start: range.start }
    }

    fn find(&self, offset: u64, len: usize) -> Option<(Arc<dyn PciFunction>, u8, u64)> {
        self.root.find(self.start.checked_add(offset)?, len)
    }
}

impl BusDevice for MmioWindow {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.find(offset, data.len()) {
            Some((function, bar, at)) => function.bar_read(bar, at, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((function, bar, at)) = self.find(offset, data.len()) {
            function.bar_write(bar, at, data);
        }
    }
}

#[cfg(test)]
#[path = "root_tests.rs"]
mod tests;
