//! The exit port: a program in the guest ends the machine with a status of its own.

use crate::bus::BusDevice;
use crate::reset::{MachineEvent, MachineEvents};

/// A 32-bit port. What is written is the status; above 255 it counts as 255, so that no failure turns into
/// a success. Reads as zeros.
pub struct ExitPort(pub MachineEvents);

impl ExitPort {
    /// Where it lies.
    pub const PORT: u64 = 0xf4;
    /// Number of bytes.
    pub const LEN: u64 = 4;
}

impl BusDevice for ExitPort {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (0, [status, high @ ..]) = (offset, data) {
            let fits = high.iter().all(|byte| *byte == 0);
            (self.0)(MachineEvent::Exit(if fits { *status } else { u8::MAX }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::sync::Arc;

    #[test]
    fn statuses() {
        let rows: [(&str, u64, &[u8], Option<u8>); 6] = [
            ("success", 0, &[0, 0, 0, 0], Some(0)),
            ("failure", 0, &[3, 0, 0, 0], Some(3)),
            ("one byte", 0, &[7], Some(7)),
            ("256 is no success", 0, &[0, 1, 0, 0], Some(255)),
            ("-1", 0, &[255; 4], Some(255)),
            ("not the port", 1, &[1], None),
        ];
        for (name, offset, data, expected) in rows {
            let seen = Arc::<Mutex<Option<MachineEvent>>>::default();
            let sink = seen.clone();
            ExitPort(Arc::new(move |event| *sink.lock() = Some(event))).write(offset, data);
            assert_eq!(*seen.lock(), expected.map(MachineEvent::Exit), "{name}");
        }
    }
}
