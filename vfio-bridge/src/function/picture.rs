//! Configuration space as the guest finds it after a reset, and where things are in it. **Pure.**

use std::ops::Range;

use arbitrary_int::{u2, u3, u4};
use devices::pci::config::ConfigSpace;
use devices::pci::spec::{
    CONFIG_SIZE, DeviceCapabilities, DeviceCapabilities2, DeviceControl, EXTENDED_START, ExpressCapabilities,
    MsixControl, capability, express, header, msix, power,
};

use super::bars::Bar;
use super::extended::{self, Services};
use super::msi::MsiPlace;
use super::walk::{self, Bytes, Found};
use crate::caps::Offer;

/// What was found out about a device.
pub(super) struct Hardware<'a> {
    /// Configuration space as VFIO shows it, 256 or 4096 bytes.
    pub(super) bytes: Bytes<'a>,
    pub(super) bars: &'a [Option<Bar>; 6],
    pub(super) can_reset: bool,
    /// How many interrupts of each kind the host gives.
    pub(super) msi: u32,
    pub(super) msix: u32,
    /// It has an interrupt line, and there is one for it to the guest.
    pub(super) line: bool,
    pub(super) offer: &'a Offer,
}

/// MSI-X as the device has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MsixPlace {
    /// The capability.
    pub(super) at: u16,
    pub(super) vectors: u16,
    /// BAR and offset into it.
    pub(super) table: (u8, u64),
    pub(super) pending: (u8, u64),
}

impl MsixPlace {
    /// Bytes of the table.
    fn table_len(&self) -> u64 {
        u64::from(self.vectors) * msix::ENTRY_LEN as u64
    }

    /// Bytes of the pending bits: whole 64-bit words.
    fn pending_len(&self) -> u64 {
        u64::from(self.vectors.div_ceil(64)) * 8
    }

    /// Where both are: BAR and range.
    pub(super) fn ranges(&self) -> [(u8, Range<u64>); 2] {
        let range = |(bar, start): (u8, u64), len| (bar, start..start + len);
        [range(self.table, self.table_len()), range(self.pending, self.pending_len())]
    }

    /// The offset into the table, if an access begins there.
    pub(super) fn in_table(&self, bar: u8, offset: u64) -> Option<u64> {
        within(self.table, self.table_len(), bar, offset)
    }

    /// The offset into the pending bits, if an access begins there.
    pub(super) fn in_pending(&self, bar: u8, offset: u64) -> Option<u64> {
        within(self.pending, self.pending_len(), bar, offset)
    }
}

fn within((of, start): (u8, u64), len: u64, bar: u8, offset: u64) -> Option<u64> {
    offset.checked_sub(start).filter(|at| of == bar && *at < len)
}

/// Where things are; 0 or none for what is not there.
#[derive(Clone, Debug, Default)]
pub(super) struct Places {
    pub(super) express: u16,
    pub(super) msi: Option<MsiPlace>,
    pub(super) msix: Option<MsixPlace>,
    pub(super) services: Services,
}

/// A guest's view.
pub(super) struct Picture {
    /// After a reset.
    pub(super) config: ConfigSpace,
    pub(super) places: Places,
    /// Bytes that lead to the device, ascending and apart.
    pub(super) passed: Vec<Range<u16>>,
}

/// Capabilities below 0x100 that a guest may see although there is no code for them (PCI Code and ID Assignment §2).
const VITAL_PRODUCT_DATA: u8 = 0x03;
const SUBSYSTEM: u8 = 0x0d;
const SATA: u8 = 0x12;

impl Picture {
    /// The view of a device.
    pub(super) fn new(hardware: &Hardware<'_>) -> Self {
        let mut picture =
            Self { config: ConfigSpace::default(), places: Places::default(), passed: Vec::new() };
        picture.header(hardware);
        picture.conventional(hardware);
        // The services need PCI Express.
        let offer = Some(hardware.offer).filter(|_| picture.places.express != 0);
        let (services, passed) = extended::install(&mut picture.config, &hardware.bytes, offer);
        picture.places.services = services;
        picture.passed.extend(passed);
        picture.passed.retain(|range| !range.is_empty());
        picture.passed.sort_by_key(|range| range.start);
        picture
    }

    /// The parts of an access that lead to the device, as offsets of configuration space.
    pub(super) fn passed_parts(&self, offset: u16, len: usize) -> impl Iterator<Item = Range<u16>> {
        let end = offset.saturating_add(u16::try_from(len).unwrap_or(u16::MAX));
        let cut = move |range: &Range<u16>| range.start.max(offset)..range.end.min(end);
        self.passed.iter().map(cut).filter(|range| range.start < range.end)
    }

    fn header(&mut self, hardware: &Hardware<'_>) {
        let config = &mut self.config;
        for range in [0..4, header::REVISION..header::CACHE_LINE, header::SUBSYSTEM_VENDOR_ID..0x30] {
            for at in range {
                config.set(at, &[hardware.bytes.u8(at)]);
            }
        }
        config.open_header();
        if hardware.line {
            // Whatever the device's own is: in the guest it is alone in its slot.
            config.set(header::INTERRUPT_PIN, &[1]);
        }
        for bar in hardware.bars.iter().flatten() {
            bar.install(config);
        }
    }

    /// The capabilities below 0x100. What belongs to none of them leads to the device; what belongs to one that the
    /// guest does not see, does not.
    fn conventional(&mut self, hardware: &Hardware<'_>) {
        let mut all = walk::conventional(&hardware.bytes);
        all.sort_by_key(|found| found.at);
        let mut link = header::CAPABILITIES;
        let mut free = header::END;
        for (number, found) in all.iter().enumerate() {
            let limit = all.get(number + 1).map_or(EXTENDED_START, |next| next.at);
            self.passed.push(free..found.at);
            free = match self.capability(hardware, *found, limit) {
                Some(len) => {
                    let status = header::STATUS_CAPABILITIES.to_le_bytes();
                    self.config.set(header::STATUS, &status);
                    self.config.set(link, &[found.at.to_le_bytes()[0]]);
                    self.config.set(found.at, &[found.id, 0]);
                    link = found.at + 1;
                    (found.at + len).min(limit)
                }
                None => limit,
            };
        }
        self.passed.push(free..EXTENDED_START);
    }

    /// Makes one of them visible. Its length; `None` if the guest does not see it.
    fn capability(&mut self, hardware: &Hardware<'_>, found: Found, limit: u16) -> Option<u16> {
        let (bytes, at) = (&hardware.bytes, found.at);
        let room = limit - at;
        let len = match found.id {
            capability::POWER_MANAGEMENT if room >= power::LEN => self.power(bytes, at),
            capability::PCI_EXPRESS => return self.express(hardware, at, room),
            MsiPlace::ID if hardware.msi > 0 => {
                let place = MsiPlace::new(at, bytes.u16(at + 2), hardware.msi);
                if place.len() > room {
                    return None;
                }
                place.install(&mut self.config);
                let len = place.len();
                self.places.msi = Some(place);
                len
            }
            capability::MSIX if room >= msix::LEN => self.msix(hardware, at)?,
            capability::VENDOR => self.shown(bytes, at..at + u16::from(bytes.u8(at + 2)).min(room), true)?,
            VITAL_PRODUCT_DATA if room >= 8 => self.shown(bytes, at..at + 8, true)?,
            SUBSYSTEM | SATA if room >= 8 => self.shown(bytes, at..at + 8, false)?,
            _ => return None,
        };
        Some(len)
    }

    /// A capability as the device has it; whether what follows its first word leads there.
    fn shown(&mut self, bytes: &Bytes<'_>, range: Range<u16>, leads: bool) -> Option<u16> {
        let len = u16::try_from(range.len()).ok().filter(|len| *len > 2)?;
        if leads {
            // The length of a vendor's capability leads there too: it cannot be written.
            self.passed.push(range.start + 2..range.end);
        }
        for at in range {
            self.config.set(at, &[bytes.u8(at)]);
        }
        Some(len)
    }

    /// Power states are remembered, without effect: the host keeps the device in D0.
    fn power(&mut self, bytes: &Bytes<'_>, at: u16) -> u16 {
        let version = bytes.u16(at + power::CAPABILITIES) & 7;
        self.config.set(at + power::CAPABILITIES, &version.to_le_bytes());
        self.config.set(at + power::CONTROL, &power::NO_SOFT_RESET.to_le_bytes());
        self.config.set_writable(at + power::CONTROL, &power::STATE.to_le_bytes());
        power::LEN
    }

    /// On the guest's root bus there are integrated endpoints only; they have no link.
    fn express(&mut self, hardware: &Hardware<'_>, at: u16, room: u16) -> Option<u16> {
        /// What fits of a first version: device registers and no more.
        const FIRST_LEN: u16 = 0x0c;
        let bytes = &hardware.bytes;
        let flags = ExpressCapabilities::new_with_raw_value(bytes.u16(at + express::CAPABILITIES));
        let version = flags.version().value();
        let second = version >= 2 && room >= express::LEN;
        if room < FIRST_LEN {
            return None;
        }
        let flags = ExpressCapabilities::DEFAULT
            .with_version(u4::new(if second { 2 } else { 1 }))
            .with_port_type(u4::new(express::TYPE_INTEGRATED_ENDPOINT));
        let real = DeviceCapabilities::new_with_raw_value(bytes.u32(at + express::DEVICE_CAPABILITIES));
        let resets = real.function_reset() && hardware.can_reset;
        let device = DeviceCapabilities::DEFAULT
            .with_max_payload(real.max_payload())
            .with_role_based_errors(real.role_based_errors())
            .with_function_reset(resets);
        let control = DeviceControl::new_with_raw_value(bytes.u16(at + express::DEVICE_CONTROL))
            .with_error_reporting(u4::new(0))
            .with_function_reset(false);
        let writable = DeviceControl::DEFAULT
            .with_error_reporting(u4::new(0xf))
            .with_relaxed_ordering(true)
            .with_max_payload(u3::new(7))
            .with_no_snoop(true)
            .with_max_read_request(u3::new(7))
            .with_function_reset(resets);
        let config = &mut self.config;
        config.set(at + express::CAPABILITIES, &flags.raw_value().to_le_bytes());
        config.set(at + express::DEVICE_CAPABILITIES, &device.raw_value().to_le_bytes());
        config.set(at + express::DEVICE_CONTROL, &control.raw_value().to_le_bytes());
        config.set_writable(at + express::DEVICE_CONTROL, &writable.raw_value().to_le_bytes());
        if second {
            let prefix = hardware.offer.capabilities.pasid_bits > 0;
            let device_2 = DeviceCapabilities2::DEFAULT
                .with_end_end_prefix(prefix)
                .with_max_end_end_prefixes(u2::new(u8::from(prefix)));
            config.set(at + express::DEVICE_CAPABILITIES_2, &device_2.raw_value().to_le_bytes());
        }
        self.places.express = at;
        // All of a first version is the guest's, as far as it goes: nothing of it leads to the device.
        Some(if second { express::LEN } else { room.min(0x14) })
    }

    fn msix(&mut self, hardware: &Hardware<'_>, at: u16) -> Option<u16> {
        let bytes = &hardware.bytes;
        let size = MsixControl::new_with_raw_value(bytes.u16(at + msix::CONTROL)).table_size();
        let vectors = size.value() + 1;
        let located = |register: u16| {
            let raw = bytes.u32(at + register);
            (raw.to_le_bytes()[0] & 7, u64::from(raw & !7))
        };
        let (table, pending) = (located(msix::TABLE), located(msix::PBA));
        let place = MsixPlace { at, vectors, table, pending };
        let fits = |(bar, range): &(u8, Range<u64>)| {
            let bar = hardware.bars.get(usize::from(*bar)).and_then(Option::as_ref);
            bar.is_some_and(|bar| range.end <= bar.len)
        };
        if hardware.msix < u32::from(vectors) || !place.ranges().iter().all(fits) {
            return None;
        }
        let control = MsixControl::DEFAULT.with_table_size(size);
        let writable = MsixControl::DEFAULT.with_function_mask(true).with_enable(true);
        self.config.set(at + msix::CONTROL, &control.raw_value().to_le_bytes());
        self.config.set_writable(at + msix::CONTROL, &writable.raw_value().to_le_bytes());
        self.config.set(at + msix::TABLE, &bytes.u32(at + msix::TABLE).to_le_bytes());
        self.config.set(at + msix::PBA, &bytes.u32(at + msix::PBA).to_le_bytes());
        self.places.msix = Some(place);
        Some(msix::LEN)
    }
}

const _: () = assert!(CONFIG_SIZE == 4096);
