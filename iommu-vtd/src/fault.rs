//! Chapter 7: the fault log (FSTS and the fault recording registers) and its event.
//!
//! Works on the register file alone. There is no compression: with eight registers and a guest that drains
//! them, a record per fault tells more.

use arbitrary_int::{u2, u4, u20, u52};
use iommu_core::{Access, AddressType, Fault, Msi};

use crate::capability::{Capability, FAULT_RECORDS};
use crate::event;
use crate::regs::{FSTS, IQERCD, RegisterFile, fault_record};
use crate::spec::registers::{FaultRecordHigh, FaultRecordLow, FaultStatus};

/// What a fault record says of the request that a fault does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A memory request or a translation request.
    Request,
    /// A page request.
    PageRequest,
    /// An interrupt, with the index that its record names.
    Interrupt(u16),
}

/// Which fault recording register comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultLog {
    next: u16,
}

impl FaultLog {
    /// A log that goes on at record `next`; `None` if there is none of that number.
    #[must_use]
    pub fn at(next: u16) -> Option<Self> {
        (next < FAULT_RECORDS).then_some(Self { next })
    }

    /// The record that comes next.
    #[must_use]
    pub fn next(&self) -> u16 {
        self.next
    }

    /// Records a fault, if there is room. Yields the fault event's message, if one is due.
    #[must_use]
    pub fn record(
        &mut self,
        file: &mut RegisterFile,
        capability: &Capability,
        origin: Origin,
        fault: &Fault,
    ) -> Option<Msi> {
        let status = file.get(FSTS);
        if status.pfo() {
            return None;
        }
        let (low, high) = fault_record(self.next);
        if file.get(high).f() {
            return signal(file, FaultStatus::DEFAULT.with_pfo(true));
        }
        let (record_low, record_high) = layout(capability, origin, fault);
        file.set(low, record_low);
        file.set(high, record_high);
        let index = self.next;
        self.next = (self.next + 1) % FAULT_RECORDS;
        if status.ppf() {
            return None;
        }
        let index = u8::try_from(index).unwrap_or(u8::MAX);
        file.set(FSTS, status.with_fri(index));
        signal(file, FaultStatus::DEFAULT.with_ppf(true))
    }
}

/// The record of a fault.
fn layout(capability: &Capability, origin: Origin, fault: &Fault) -> (FaultRecordLow, FaultRecordHigh) {
    let request = &fault.request;
    // Of the largest AGAW, not of MGAW, which may be wider where pass-through reaches further.
    let address_mask = u64::MAX.checked_shr(64 - capability.largest_table_width()).unwrap_or_default();
    let (address_type, reads) = match request.address_type {
        AddressType::Untranslated => (0, false),
        // A read on the bus, whatever it asks for.
        AddressType::Translation { .. } => (1, true),
        AddressType::Translated => (2, false),
    };
    let address_type = if capability.dt() { address_type } else { 0 };
    let (t1, t2) = match (origin, request.access) {
        (Origin::Interrupt(_), _) => (false, false),
        (Origin::PageRequest, _) => (false, true),
        (Origin::Request, _) if reads => (true, false),
        (Origin::Request, Access::Read | Access::ZeroLengthRead) => (true, false),
        (Origin::Request, Access::Write) => (false, false),
        (Origin::Request, Access::Atomic) => (true, true),
    };
    let present = request.pasid.is_some();
    let information = match origin {
        Origin::Interrupt(index) => u64::from(index) << 48,
        Origin::Request | Origin::PageRequest => request.address.0 & address_mask,
    };
    let low = FaultRecordLow::DEFAULT.with_fi(u52::new(information >> 12));
    let high = FaultRecordHigh::builder()
        .with_f(true)
        .with_t1(t1)
        .with_at(u2::new(address_type))
        .with_pv(u20::new(request.pasid.map_or(0, iommu_core::Pasid::get)))
        .with_fr(u8::try_from(fault.reason.code).unwrap_or(u8::MAX))
        .with_pp(present)
        .with_exe(present && request.execute)
        .with_priv_(present && request.privileged)
        .with_t2(t2)
        .with_sid(request.source.0)
        .build();
    (low, high)
}

/// Sets status bits, and raises the event if none was set before. Yields the message to send, if any.
#[must_use]
pub fn signal(file: &mut RegisterFile, set: FaultStatus) -> Option<Msi> {
    let status = file.get(FSTS);
    file.set(FSTS, FaultStatus::new_with_raw_value(status.raw_value() | set.raw_value()));
    if pending(status) { None } else { event::FAULT.raise(file) }
}

/// Software wrote FSTS, a record or an event register: what follows from it.
#[must_use]
pub fn settle(file: &mut RegisterFile) -> Option<Msi> {
    let any = (0..FAULT_RECORDS).any(|index| file.get(fault_record(index).1).f());
    let status = file.get(FSTS).with_ppf(any);
    file.set(FSTS, status);
    // Each code of IQERCD is valid while its status bit is set.
    let mut record = file.get(IQERCD);
    if !status.iqe() {
        record = record.with_iqei(u4::new(0));
    }
    if !status.ite() {
        record = record.with_itesid(0);
    }
    file.set(IQERCD, record);
    event::FAULT.settle(file, pending(status))
}

/// Whether a status bit that raises the event is set.
fn pending(status: FaultStatus) -> bool {
    status.ppf() || status.pfo() || status.iqe() || status.ice() || status.ite()
}

#[cfg(test)]
mod tests {
    use iommu_core::{Completion, FaultClass, FaultReason, Iova, Pasid, Request, SourceId};

    use super::*;
    use crate::capability::Profile;

    const MESSAGE: Msi = Msi { address: 0xfee0_1000, data: 0x41 };

    struct Bench {
        capability: Capability,
        file: RegisterFile,
        log: FaultLog,
    }

    impl Bench {
        fn new() -> Self {
            let capability = Capability::new(&Profile::svm(46)).unwrap();
            let mut file = RegisterFile::new(&capability);
            file.write(0x3c, &0x41u32.to_le_bytes());
            file.write(0x40, &0xfee0_1000u32.to_le_bytes());
            file.write(0x38, &[0; 4]);
            Self { capability, file, log: FaultLog::default() }
        }

        fn record(&mut self, origin: Origin, request: Request) -> Option<Msi> {
            let fault = Fault {
                request,
                reason: FaultReason { class: FaultClass::NotPresent, code: 0x71 },
                completion: Completion::UnsupportedRequest,
                log: true,
            };
            self.log.record(&mut self.file, &self.capability, origin, &fault)
        }

        fn write(&mut self, offset: u64, value: u32) -> Option<Msi> {
            self.file.write(offset, &value.to_le_bytes());
            settle(&mut self.file)
        }

        fn read(&self, offset: u64) -> u64 {
            let mut data = [0; 8];
            self.file.read(offset, &mut data);
            u64::from_le_bytes(data)
        }

        fn status(&self) -> u64 {
            self.read(0x34) & 0xffff_ffff
        }
    }

    /// (name, what is offered, the topmost bit of a recorded address)
    #[test]
    fn addresses_are_as_wide_as_the_widest_table() {
        let rows = [
            ("MGAW is HAW", Profile::svm(52), 47),
            ("MGAW is the table's", Profile::svm(46), 47),
            ("39 bits", Profile { address_width: 39, ..Profile::legacy(46) }, 38),
            ("57 bits", Profile::full(46).with_address_width(57), 56),
        ];
        for (name, profile, top) in rows {
            let capability = Capability::new(&profile).unwrap();
            let mut bench = Bench { capability, file: RegisterFile::new(&capability), ..Bench::new() };
            let _ = bench.record(Origin::Request, write_to(u64::MAX >> 12));
            assert_eq!(bench.read(0x220), (2 << top) - 4096, "{name}");
        }
    }

    fn write_to(page: u64) -> Request {
        Request::untranslated(SourceId(0x0108), None, Iova(page << 12), Access::Write)
    }

    /// Name, origin, request, bits 63:0, bits 127:64.
    type Row = (&'static str, Origin, Request, u64, u64);

    fn record_rows() -> Vec<Row> {
        let pasid = Pasid::new(0xf_0001);
        let source = SourceId(0x0108);
        let request = |pasid, address, access| Request::untranslated(source, pasid, Iova(address), access);
        vec![
            ("write", Origin::Request, request(None, 0x5123, Access::Write), 0x5000, 0x8000_0071_0000_0108),
            ("read", Origin::Request, request(None, 0x5000, Access::Read), 0x5000, 0xc000_0071_0000_0108),
            ("atomic", Origin::Request, request(None, 0x5000, Access::Atomic), 0x5000, 0xc000_0071_1000_0108),
            (
                "pasid has 20 bits",
                Origin::Request,
                request(pasid, 0x5000, Access::Write),
                0x5000,
                0x8f00_0171_8000_0108,
            ),
            (
                "above the widest address",
                Origin::Request,
                request(pasid, 0xffff_8000_0000_0000, Access::Write),
                0x8000_0000_0000,
                0x8f00_0171_8000_0108,
            ),
            (
                "translation",
                Origin::Request,
                Request::translation(source, pasid, Iova(0x5000), false),
                0x5000,
                0xdf00_0171_8000_0108,
            ),
            (
                "translated",
                Origin::Request,
                Request { address_type: AddressType::Translated, ..request(None, 0x5000, Access::Write) },
                0x5000,
                0xa000_0071_0000_0108,
            ),
            (
                "page request",
                Origin::PageRequest,
                request(pasid, 0x5000, Access::Read),
                0x5000,
                0x8f00_0171_9000_0108,
            ),
            (
                "privileged execute",
                Origin::Request,
                Request { privileged: true, execute: true, ..request(pasid, 0x5000, Access::Read) },
                0x5000,
                0xcf00_0171_e000_0108,
            ),
            (
                "privileged without pasid",
                Origin::Request,
                Request { privileged: true, execute: true, ..request(None, 0x5000, Access::Read) },
                0x5000,
                0xc000_0071_0000_0108,
            ),
        ]
    }

    #[test]
    fn records_say_what_was_asked() {
        for (name, origin, request, low, high) in record_rows() {
            let mut bench = Bench::new();
            assert_eq!(bench.record(origin, request), Some(MESSAGE), "{name}");
            assert_eq!((bench.read(0x220), bench.read(0x228)), (low, high), "{name}");
        }
    }

    #[test]
    fn one_message_until_all_is_drained() {
        let mut bench = Bench::new();
        assert_eq!(bench.record(Origin::Request, write_to(1)), Some(MESSAGE));
        assert_eq!(bench.record(Origin::Request, write_to(2)), None);
        assert_eq!(bench.status(), 2);
        assert_eq!(bench.write(0x22c, 0x8000_0000), None);
        assert_eq!(bench.status(), 2, "the second is pending");
        assert_eq!(bench.write(0x23c, 0x8000_0000), None);
        assert_eq!(bench.status(), 0);
        assert_eq!(bench.record(Origin::Request, write_to(3)), Some(MESSAGE));
        assert_eq!(bench.status(), 2 << 8 | 2, "FRI is the first pending record");
        assert_eq!(bench.read(0x240), 0x3000);
    }

    #[test]
    fn overflow_drops_until_it_is_cleared() {
        let mut bench = Bench::new();
        for page in 0..u64::from(FAULT_RECORDS) {
            let _ = bench.record(Origin::Request, write_to(page));
        }
        assert_eq!(bench.status(), 2);
        assert_eq!(bench.record(Origin::Request, write_to(0x100)), None);
        assert_eq!(bench.status(), 3);
        // Linux: clear the records, then write 83h to the status.
        for index in 0..u64::from(FAULT_RECORDS) {
            let _ = bench.write(0x22c + 16 * index, 0x8000_0000);
        }
        assert_eq!(bench.status(), 1);
        assert_eq!(bench.record(Origin::Request, write_to(0x100)), None, "PFO still mutes");
        assert_eq!(bench.write(0x34, 0x83), None);
        assert_eq!(bench.status(), 0);
        assert_eq!(bench.record(Origin::Request, write_to(0x200)), Some(MESSAGE));
    }

    #[test]
    fn a_masked_event_is_sent_when_unmasked() {
        let mut bench = Bench::new();
        assert_eq!(bench.write(0x38, 0x8000_0000), None);
        assert_eq!(bench.record(Origin::Request, write_to(1)), None);
        assert_eq!(bench.read(0x38) & 0xffff_ffff, 0xc000_0000);
        assert_eq!(bench.write(0x38, 0), Some(MESSAGE));
        assert_eq!(bench.read(0x38) & 0xffff_ffff, 0);
    }
}
