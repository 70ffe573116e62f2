//! PCI: configuration space, capabilities, BARs, MSI-X, functions, the root of bus 0.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`spec`] | register layouts, capability ids and constants |
//! | [`config`] | 4 KiB of configuration space with write masks |
//! | [`bar`] | memory BARs: description, sizing, decoding |
//! | [`capability`] | what a function declares, and the capability chain made of it |
//! | `intx` | the interrupt line of a function that has one |
//! | `live` | ATS, PRI and PASID as a function's own threads see them |
//! | [`msix`] | the MSI-X table, its masks and pending bits |
//! | [`function`] | [`PciFunction`], the root's view of a function |
//! | [`base`] | [`FunctionBase`], the part every emulated function shares |
//! | [`host_bridge`] | the function at 00:00.0 |
//! | [`root`] | bus 0: ECAM, configuration ports, MMIO window |
//!
//! Not implemented: bridges and buses other than 0, 64-bit and I/O BARs, expansion ROMs, MSI, AER.

pub mod bar;
pub mod base;
pub mod capability;
pub mod config;
pub mod function;
pub mod host_bridge;
mod intx;
mod live;
pub mod msix;
pub mod root;
pub mod spec;

pub use bar::BarSpec;
pub use base::FunctionBase;
pub use capability::{
    AtsSpec, ConfigRegister, ExpressSpec, FunctionSpec, Identity, MsixSpec, PasidSpec, PriSpec, SpecError,
    VendorSpec,
};
pub use function::{AtsState, BarRange, DecodedBars, FunctionEvent, PasidState, PciFunction, PriState};
pub use host_bridge::HostBridge;
pub use msix::Msix;
pub use root::{ConfigPorts, ECAM_BUS_LEN, Ecam, MmioWindow, PciRoot, SlotError};
