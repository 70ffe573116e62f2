//! The host bridge: the function at 00:00.0 that tells the guest there is a bus.

use std::sync::Arc;

use iommu_core::{Msi, MsiSink, SourceId};

use super::base::FunctionBase;
use super::capability::{FunctionSpec, Identity, SpecError};
use super::function::{DecodedBars, PciFunction};

/// Class code of a host bridge.
const CLASS: u32 = 0x06_0000;

/// A host bridge without registers of its own. It issues no DMA and no interrupt.
pub struct HostBridge(FunctionBase);

struct NoMsi;

impl MsiSink for NoMsi {
    fn send(&self, _: SourceId, _: Msi) {}
}

impl HostBridge {
    /// The bridge, in its power-on state. Intel's id of a virtual host bridge, for which no guest has a quirk.
    ///
    /// # Errors
    /// None in practice: the specification is constant.
    pub fn new() -> Result<Self, SpecError> {
        let identity = Identity { vendor: 0x8086, device: 0x0d57, class: CLASS, ..Identity::default() };
        let spec = FunctionSpec { identity, ..FunctionSpec::default() };
        FunctionBase::new(spec, SourceId::from_bdf(0, 0, 0), Arc::new(NoMsi)).map(Self)
    }
}

impl PciFunction for HostBridge {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.0.config_read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        self.0.config_write(offset, data, |_| ());
    }

    fn bars(&self) -> DecodedBars {
        self.0.bars()
    }

    fn bar_read(&self, _: u8, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn bar_write(&self, _: u8, _: u64, _: &[u8]) {}

    fn reset(&self) {
        self.0.reset(|_| ());
    }
}
