//! The VT-d unit as this machine has it: what it offers, where it lies, what the guest is told about it.

use std::sync::Arc;

use devices::bus::BusDevice;
use iommu_core::{Dma, InterruptRemapper, MsiSink, RemappedMsi, SourceId};
use iommu_vtd::dmar::{DeviceScope, Dmar, DmarError, Drhd, ScopeKind};
use iommu_vtd::{Capability, Profile, ProfileError, Unit, UnitConfig};

use crate::boot::cpuid::Paging;
use crate::layout::{IOAPIC_ID, VTD};
use crate::memory::GuestRam;

/// The IOAPIC's requester id, in the DMAR table and in its messages: no function has it.
pub(crate) const IOAPIC_SOURCE: SourceId = SourceId::from_bdf(0xff, 0, 0);
/// The name of the unit's own interrupts, for the log: they are not remapped.
const UNIT_SOURCE: SourceId = SourceId::from_bdf(0xff, 0x1f, 7);

/// The unit at its place in the machine.
#[derive(Clone)]
pub(crate) struct Iommu {
    unit: Arc<Unit<GuestRam>>,
    ram: Arc<GuestRam>,
}

impl Iommu {
    /// A unit for CPUs with addresses of `physical_bits` bits, that walks five levels if they do. Its own
    /// interrupts go to `direct`, past any remapping.
    ///
    /// # Errors
    /// No unit has such widths.
    pub(crate) fn new(
        ram: &Arc<GuestRam>,
        physical_bits: u8,
        cpus: Paging,
        direct: Arc<dyn MsiSink>,
    ) -> Result<Self, ProfileError> {
        let bits = if cpus.five_level { 57 } else { 48 };
        let profile = Profile::full(physical_bits.into()).with_address_width(bits);
        let config = UnitConfig { capability: Capability::new(&profile)?, source: UNIT_SOURCE };
        Ok(Self { unit: Arc::new(Unit::new(&config, GuestRam::clone(ram), direct)), ram: ram.clone() })
    }

    /// The table formats that guests may use: they give them to the unit, too.
    pub(crate) fn paging(&self) -> Paging {
        let capability = self.unit.capability();
        Paging { five_level: capability.fs5lp(), gib_pages: capability.fs1gp() }
    }

    /// The DMAR table after its ACPI header.
    ///
    /// # Errors
    /// None that a user could bring about.
    pub(crate) fn dmar(&self) -> Result<Vec<u8>, DmarError> {
        let ioapic = DeviceScope::new(ScopeKind::IoApic(IOAPIC_ID), IOAPIC_SOURCE);
        let unit = Drhd::for_all(self.unit.capability(), VTD.start, vec![ioapic]);
        Dmar { units: vec![unit], ..Dmar::default() }.body()
    }

    /// The unit as a remapper of interrupts, if it is one.
    pub(crate) fn remapper(&self) -> Option<Arc<dyn InterruptRemapper>> {
        self.unit.capability().ecap().ir().then(|| self.unit.clone() as Arc<dyn InterruptRemapper>)
    }

    /// Where functions behind the unit send their interrupts, so that they reach `direct` in the end.
    pub(crate) fn interrupts(&self, direct: Arc<dyn MsiSink>) -> Arc<dyn MsiSink> {
        match self.remapper() {
            Some(remapper) => Arc::new(RemappedMsi::new(remapper, direct)),
            None => direct,
        }
    }

    /// Memory behind the unit, for the function `source`.
    pub(crate) fn dma(&self, source: SourceId) -> Dma<GuestRam> {
        Dma::new(source, GuestRam::clone(&self.ram), self.unit.clone(), self.unit.ports())
    }

    /// The unit itself, to attach endpoints to.
    pub(crate) fn unit(&self) -> &Unit<GuestRam> {
        &self.unit
    }
}

/// As a bus device: the register page.
impl BusDevice for Iommu {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.unit.mmio_read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.unit.mmio_write(offset, data);
    }
}
