//! The extended capabilities that a guest finds: few real ones, and PASID, ATS and PRI as the host offers them.
//!
//! The real PASID, ATS and PRI belong to the host's driver, which has them on before a guest is there. What the guest
//! switches steers only its own model; so these are made up here, and their switches are remembered and nothing else.

use std::ops::Range;

use arbitrary_int::traits::Integer as _;
use arbitrary_int::{u4, u5, u10};
use devices::pci::config::ConfigSpace;
use devices::pci::spec::{
    AtsCapability, AtsControl, CONFIG_SIZE, EXTENDED_START, ExtendedHeader, PasidCapability, PasidControl,
    PriControl, PriStatus, ats, extended, pasid, pri,
};

use super::walk::{self, Bytes, FoundExtended};
use crate::caps::Offer;

/// Ids of real capabilities that a guest may see (PCI Code and ID Assignment 1.11 §3).
const SERIAL_NUMBER: u16 = 0x03;
const VENDOR: u16 = 0x0b;
const DESIGNATED_VENDOR: u16 = 0x23;

/// Where the made-up capabilities are; 0 for those that are not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Services {
    pub(super) pasid: u16,
    pub(super) ats: u16,
    pub(super) pri: u16,
}

/// What is in use of the extended configuration space.
struct Chain<'a> {
    config: &'a mut ConfigSpace,
    /// (id, version, range), in no order.
    members: Vec<(u16, u8, Range<u16>)>,
}

/// The range of a real capability that a guest may see, and whether what follows its header leads to the device.
fn visible(bytes: &Bytes<'_>, id: u16, at: u16) -> Option<(Range<u16>, bool)> {
    // Both vendors' kinds have their length in the upper bits of the word after the header.
    let told = u16::try_from(bytes.u32(at + 4) >> 20).unwrap_or(0);
    let (len, leads) = match id {
        SERIAL_NUMBER => (12, false),
        VENDOR => (told, true),
        DESIGNATED_VENDOR => (told, false),
        _ => return None,
    };
    let end = at.checked_add(len).filter(|end| usize::from(*end) <= CONFIG_SIZE && len >= 8)?;
    Some((at..end, leads))
}

/// Fills in the extended part of `config`, and says which of its bytes lead to the device.
pub(super) fn install(
    config: &mut ConfigSpace,
    bytes: &Bytes<'_>,
    offer: Option<&Offer>,
) -> (Services, Vec<Range<u16>>) {
    let mut chain = Chain { config, members: Vec::new() };
    let mut passed = Vec::new();
    let real = walk::extended(bytes);
    for found in &real {
        let Some((range, leads)) = visible(bytes, found.id, found.at) else { continue };
        if !chain.is_free(&range) {
            continue;
        }
        for at in range.clone() {
            chain.config.set(at, &[bytes.u8(at)]);
        }
        if leads {
            // The length stays what it was found to be.
            passed.push(range.start + 8..range.end);
        }
        chain.members.push((found.id, found.version, range));
    }
    let services = offer.map(|offer| chain.services(bytes, &real, offer)).unwrap_or_default();
    chain.link();
    (services, passed)
}

impl Chain<'_> {
    fn is_free(&self, range: &Range<u16>) -> bool {
        self.members.iter().all(|(_, _, taken)| range.end <= taken.start || taken.end <= range.start)
    }

    /// A place for a new capability, 16-byte-aligned; 0 if there is none left.
    fn push(&mut self, id: u16, len: u16) -> u16 {
        let last = u16::try_from(CONFIG_SIZE).unwrap_or(u16::MAX) - len;
        let places = (EXTENDED_START..=last).step_by(16).map(|at| at..at + len);
        let Some(range) = places.into_iter().find(|range| self.is_free(range)) else { return 0 };
        let at = range.start;
        self.members.push((id, 1, range));
        at
    }

    /// What the host offers, with the figures of the real ones.
    fn services(&mut self, bytes: &Bytes<'_>, real: &[FoundExtended], offer: &Offer) -> Services {
        let place = |id| real.iter().find(|found| found.id == id).map(|found| found.at);
        let capabilities = &offer.capabilities;
        let mut services = Services::default();
        if capabilities.pasid_bits > 0 {
            services.pasid = self.pasid(capabilities.pasid_bits, offer);
        }
        if capabilities.device_tlb {
            services.ats = self.ats(place(extended::ATS).map_or(0, |at| bytes.u16(at + ats::CAPABILITY)));
        }
        if capabilities.page_requests && services.ats != 0 {
            let at = place(extended::PRI);
            let capacity = at.map_or(0, |at| bytes.u32(at + pri::CAPACITY)).max(1);
            let status = PriStatus::new_with_raw_value(at.map_or(0, |at| bytes.u16(at + pri::STATUS)));
            services.pri = self.pri(capacity, status.response_pasid());
        }
        services
    }

    fn pasid(&mut self, width: u32, offer: &Offer) -> u16 {
        let at = self.push(extended::PASID, pasid::LEN);
        if at != 0 {
            let width = u8::try_from(width.min(20)).unwrap_or(0);
            let capability = PasidCapability::DEFAULT
                .with_width(u5::masked_new(width))
                .with_execute(offer.execute)
                .with_privileged(offer.privileged);
            // The other switches are for what was offered only.
            let writable =
                PasidControl::DEFAULT.with_enable(true).raw_value() | capability.raw_value() & 0b110;
            self.config.set(at + pasid::CAPABILITY, &capability.raw_value().to_le_bytes());
            self.config.set_writable(at + pasid::CONTROL, &writable.to_le_bytes());
        }
        at
    }

    /// `real` is the device's own capability word.
    fn ats(&mut self, real: u16) -> u16 {
        let at = self.push(extended::ATS, ats::LEN);
        if at != 0 {
            let capability = AtsCapability::new_with_raw_value(real & 0x7f).with_page_aligned(true);
            let writable = AtsControl::DEFAULT.with_stu(u5::new(31)).with_enable(true);
            self.config.set(at + ats::CAPABILITY, &capability.raw_value().to_le_bytes());
            self.config.set_writable(at + ats::CONTROL, &writable.raw_value().to_le_bytes());
        }
        at
    }

    fn pri(&mut self, capacity: u32, response_pasid: bool) -> u16 {
        let at = self.push(extended::PRI, pri::LEN);
        if at != 0 {
            let status = PriStatus::DEFAULT.with_stopped(true).with_response_pasid(response_pasid);
            let writable = PriControl::DEFAULT.with_enable(true).with_reset(true);
            self.config.set(at + pri::STATUS, &status.raw_value().to_le_bytes());
            self.config.set_writable(at + pri::CONTROL, &writable.raw_value().to_le_bytes());
            self.config.set(at + pri::CAPACITY, &capacity.to_le_bytes());
            self.config.set_writable(at + pri::ALLOCATION, &[0xff; 4]);
        }
        at
    }

    /// Writes the headers. A list whose first member is elsewhere begins with one that means nothing.
    fn link(mut self) {
        self.members.sort_by_key(|(_, _, range)| range.start);
        if self.members.first().is_some_and(|(_, _, range)| range.start != EXTENDED_START) {
            self.members.insert(0, (0, 0, EXTENDED_START..EXTENDED_START + 4));
        }
        let nexts = self.members.iter().skip(1).map(|(_, _, range)| range.start).chain([0]);
        for ((id, version, range), next) in self.members.iter().zip(nexts) {
            let head = ExtendedHeader::DEFAULT
                .with_id(*id)
                .with_version(u4::masked_new(*version))
                .with_next_dword(u10::masked_new(next / 4));
            self.config.set(range.start, &head.raw_value().to_le_bytes());
        }
    }
}

impl Services {
    /// Brings status bits in line after a write: a request interface that is off has stopped.
    pub(super) fn settle(&self, config: &mut ConfigSpace) {
        if self.pri == 0 {
            return;
        }
        let control = PriControl::new_with_raw_value(config.u16(self.pri + pri::CONTROL));
        let status = PriStatus::new_with_raw_value(config.u16(self.pri + pri::STATUS));
        let status = status.with_stopped(!control.enable());
        config.set(self.pri + pri::CONTROL, &control.with_reset(false).raw_value().to_le_bytes());
        config.set(self.pri + pri::STATUS, &status.raw_value().to_le_bytes());
    }
}
