//! TEMPORARY
use crate::outcome::{Ending, Outcome};
use devices::bus::BusDevice;
use devices::irq::IrqLine;
use parking_lot::Mutex;
use std::io::Write;
use std::sync::Arc;

pub(crate) struct Trig(pub Arc<dyn IrqLine>);
impl vm_superio::Trigger for Trig {
    type E = std::io::Error;
    fn trigger(&self) -> Result<(), Self::E> {
        self.0.set(true);
        self.0.set(false);
        Ok(())
    }
}
pub(crate) struct Ser(pub Mutex<vm_superio::Serial<Trig, vm_superio::serial::NoEvents, Box<dyn Write + Send>>>);
impl BusDevice for Ser {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data[0] = self.0.lock().read(offset as u8);
    }
    fn write(&self, offset: u64, data: &[u8]) {
        let _ = self.0.lock().write(offset as u8, data[0]);
    }
}
pub(crate) struct Port(pub Arc<Ending>, pub fn(u8) -> Option<Outcome>);
impl BusDevice for Port {
    fn read(&self, _: u64, _: &mut [u8]) {}
    fn write(&self, offset: u64, data: &[u8]) {
        if offset == 0
            && let Some(o) = (self.1)(data[0])
        {
            self.0.request(o);
        }
    }
}
