//! Address decoding: which device answers an access to memory-mapped or port I/O.

use std::collections::BTreeMap;
use std::sync::Arc;

/// A device that answers accesses. Called from any vCPU thread, several at once.
///
/// `offset` counts from the start of the device's range; `data` lies wholly inside the range and holds 1 to 8
/// bytes, of any alignment. Neither method may panic, whatever the guest sends.
pub trait BusDevice: Send + Sync {
    /// Fills `data`, little-endian. What is not implemented reads as zeros.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Takes `data`, little-endian.
    fn write(&self, offset: u64, data: &[u8]);
}

/// A range of a bus, start inclusive, `len` in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusRange {
    /// First address.
    pub start: u64,
    /// Length in bytes, not 0.
    pub len: u64,
}

/// Two ranges overlap, or one is empty or wraps.
#[derive(Debug, thiserror::Error)]
#[error("bus range {:#x}+{:#x} is empty, wraps or overlaps another", .0.start, .0.len)]
pub struct BusError(pub BusRange);

/// An address space with devices in it. Filled once, then shared.
#[derive(Default)]
pub struct Bus {
    devices: BTreeMap<u64, (u64, Arc<dyn BusDevice>)>,
}

impl Bus {
    /// Puts a device in.
    ///
    /// # Errors
    /// The range is empty, wraps, or overlaps one that is there already.
    pub fn insert(&mut self, range: BusRange, device: Arc<dyn BusDevice>) -> Result<(), BusError> {
        let last =
            range.len.checked_sub(1).and_then(|n| range.start.checked_add(n)).ok_or(BusError(range))?;
        let below = self.devices.range(..=last).next_back();
        if below.is_some_and(|(start, (len, _))| start + (len - 1) >= range.start) {
            return Err(BusError(range));
        }
        self.devices.insert(range.start, (range.len, device));
        Ok(())
    }

    /// The device at `address`, the offset into its range, and the bytes from there to the range's end.
    fn find(&self, address: u64) -> Option<(&dyn BusDevice, u64, u64)> {
        let (start, (len, device)) = self.devices.range(..=address).next_back()?;
        let offset = address - start;
        (offset < *len).then(|| (device.as_ref(), offset, len - offset))
    }

    /// Reads. Where no device answers, or the access leaves its range, all bits are ones.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((device, offset, room)) if data.len() as u64 <= room => {
                data.fill(0);
                device.read(offset, data);
            }
            _ => data.fill(0xff),
        }
    }

    /// Writes. Dropped where no device answers or the access leaves its range.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset, room)) = self.find(address)
            && data.len() as u64 <= room
        {
            device.write(offset, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    #[derive(Default)]
    struct Notes(Mutex<Vec<(u64, usize)>>);
    impl BusDevice for Notes {
        fn read(&self, offset: u64, data: &mut [u8]) {
            self.0.lock().push((offset, data.len()));
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().push((offset, data.len()));
        }
    }

    #[test]
    fn accesses_reach_the_device_that_holds_them_whole() {
        let mut bus = Bus::default();
        let device = Arc::new(Notes::default());
        bus.insert(BusRange { start: 0x100, len: 0x10 }, device.clone()).unwrap();
        let mut data = [0xaa; 4];
        bus.read(0x104, &mut data);
        assert_eq!(data, [0; 4]);
        bus.read(0x10e, &mut data);
        assert_eq!(data, [0xff; 4], "leaves the range");
        bus.write(0x110, &data);
        bus.write(0xff, &data);
        assert_eq!(*device.0.lock(), [(4, 4)]);
    }

    #[test]
    fn overlap_wrap_and_empty_are_refused() {
        let mut bus = Bus::default();
        let device = Arc::new(Notes::default());
        bus.insert(BusRange { start: 0x100, len: 0x10 }, device.clone()).unwrap();
        for (start, len) in [(0x10f, 1), (0xf0, 0x11), (0x0, u64::MAX), (0x200, 0), (u64::MAX, 2)] {
            assert!(bus.insert(BusRange { start, len }, device.clone()).is_err(), "{start:#x}+{len:#x}");
        }
        assert!(bus.insert(BusRange { start: 0x110, len: 1 }, device.clone()).is_ok());
        assert!(bus.insert(BusRange { start: u64::MAX, len: 1 }, device).is_ok());
    }
}
