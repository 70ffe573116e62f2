//! A VT-d unit as this machine has it: what it offers, and the ways through it.

use std::sync::Arc;

use devices::bus::BusDevice;
use iommu_core::{Dma, GuestMappings, InterruptRemapper, MsiSink, RemappedMsi, SourceId};
use iommu_vtd::{Capability, SecondStageMappings, Unit, UnitConfig};

use crate::layout::requester;
use crate::memory::GuestRam;

/// A unit.
#[derive(Clone)]
pub(crate) struct Iommu {
    unit: Arc<Unit<GuestRam>>,
    ram: Arc<GuestRam>,
}

impl Iommu {
    /// A unit that offers `capability`. Its own interrupts go to `direct`, past any remapping.
    pub(crate) fn new(capability: Capability, ram: &Arc<GuestRam>, direct: Arc<dyn MsiSink>) -> Self {
        let config = UnitConfig { capability, source: requester::UNITS };
        Self { unit: Arc::new(Unit::new(&config, GuestRam::clone(ram), direct)), ram: ram.clone() }
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

    /// Tells what the guest's second-stage tables map.
    pub(crate) fn mappings(&self) -> Arc<dyn GuestMappings> {
        Arc::new(SecondStageMappings::new(GuestRam::clone(&self.ram), self.unit.capability()))
    }

    /// The unit itself.
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
