//! The events of chapters 6 and 7 (fault, invalidation completion, page request): one logic, used three times.
//!
//! An event's message goes straight to interrupt delivery: it is never subject to interrupt remapping.

use iommu_core::Msi;

use crate::regs::{
    FEADDR, FECTL, FEDATA, FEUADDR, IEADDR, IECTL, IEDATA, IEUADDR, PEADDR, PECTL, PEDATA, PEUADDR, Register,
    RegisterFile,
};
use crate::spec::registers::EventControl;

/// The four registers of an event.
#[derive(Clone, Copy)]
pub struct Event {
    control: Register<EventControl>,
    data: Register<u32>,
    address: Register<u32>,
    upper_address: Register<u32>,
}

/// The event of FSTS.
pub const FAULT: Event = Event { control: FECTL, data: FEDATA, address: FEADDR, upper_address: FEUADDR };
/// The event of ICS.
pub const COMPLETION: Event = Event { control: IECTL, data: IEDATA, address: IEADDR, upper_address: IEUADDR };
/// The event of PRS.
pub const PAGE_REQUEST: Event =
    Event { control: PECTL, data: PEDATA, address: PEADDR, upper_address: PEUADDR };

impl Event {
    /// A condition arose while no status bit of the event was set. Yields the message to send now, if any.
    #[must_use]
    pub fn raise(&self, file: &mut RegisterFile) -> Option<Msi> {
        let control = file.get(self.control);
        file.set(self.control, control.with_ip(true));
        self.deliver(file)
    }

    /// Software wrote a register of the event or of its status. `status` tells whether a status bit is still
    /// set: if none is, a pending message is forgotten; if the mask is gone, it is sent.
    #[must_use]
    pub fn settle(&self, file: &mut RegisterFile, status: bool) -> Option<Msi> {
        if !status {
            let control = file.get(self.control);
            file.set(self.control, control.with_ip(false));
        }
        self.deliver(file)
    }

    fn deliver(&self, file: &mut RegisterFile) -> Option<Msi> {
        let control = file.get(self.control);
        if control.im() || !control.ip() {
            return None;
        }
        file.set(self.control, control.with_ip(false));
        let upper = u64::from(file.get(self.upper_address));
        Some(Msi { address: upper << 32 | u64::from(file.get(self.address)), data: file.get(self.data) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capability::{Capability, Profile};

    const MESSAGE: Msi = Msi { address: 0x0001_0000_fee0_100c, data: 0x31 };

    fn file(masked: bool) -> RegisterFile {
        let mut file = RegisterFile::new(&Capability::new(&Profile::svm(46)).unwrap());
        // Data, address, upper address, then the mask: as Linux does. The destination is logical.
        file.write(0x0e4, &0x31u32.to_le_bytes());
        file.write(0x0e8, &0xfee0_100cu32.to_le_bytes());
        file.write(0x0ec, &0x0001_0000u32.to_le_bytes());
        if !masked {
            file.write(0x0e0, &[0; 4]);
        }
        file
    }

    #[test]
    fn unmasked_events_are_sent_whole() {
        let mut file = file(false);
        assert_eq!(PAGE_REQUEST.raise(&mut file), Some(MESSAGE));
        assert!(!file.get(PECTL).ip());
        assert_eq!(PAGE_REQUEST.settle(&mut file, true), None, "not twice");
    }

    #[test]
    fn masked_events_wait_for_the_mask_to_go() {
        let mut file = file(true);
        assert_eq!(PAGE_REQUEST.raise(&mut file), None);
        assert!(file.get(PECTL).ip());
        assert_eq!(PAGE_REQUEST.settle(&mut file, true), None);
        file.write(0x0e0, &[0; 4]);
        assert!(file.get(PECTL).ip(), "software does not write IP");
        assert_eq!(PAGE_REQUEST.settle(&mut file, true), Some(MESSAGE));
        assert!(!file.get(PECTL).ip());
    }

    #[test]
    fn an_event_whose_causes_are_gone_is_forgotten() {
        let mut file = file(true);
        assert_eq!(PAGE_REQUEST.raise(&mut file), None);
        file.write(0x0e0, &[0; 4]);
        assert_eq!(PAGE_REQUEST.settle(&mut file, false), None);
        assert!(!file.get(PECTL).ip());
    }
}
