//! The Intel VT-d model: a remapping hardware unit as a guest's driver sees it, in legacy and
//! scalable mode.
//!
//! # Architecture
//!
//! A [`Unit`] owns registers and queues, reads its tables from guest memory, and is an
//! [`iommu_core::Translator`] for the functions behind it. It knows no hypervisor, no bus, no file and no thread:
//! a VMM hands it guest memory and an interrupt sink, forwards accesses to its register page, and attaches
//! endpoints. Decoding and walking are pure functions of their arguments and of guest memory; effects are the
//! unit's. Translations are cached by the ports ([`iommu_core::Port`]), which the unit visits when it invalidates;
//! entries of tables in caches of the unit's own.
//!
//! # Chapters of the manual
//!
//! Revision 5.10 of the architecture specification.
//!
//! | chapter | module |
//! | --- | --- |
//! | 3 DMA remapping: tables and walk | [`tables`], [`translate`], `walk`, with the limits in [`rules`] |
//! | 4 device-TLBs | [`ats`], [`translate`], `answer` |
//! | 5 interrupt remapping and posting | [`interrupt`] |
//! | 6 caching and invalidation | `cache`, [`invalidation`] (descriptors), [`queue`] (the ring) |
//! | 7 faults and page requests | [`mod@fault`] (the log), [`page_request`] (the queue) |
//! | 8 ACPI | [`dmar`] |
//! | 9 translation structures | [`spec`] |
//! | 11 registers | [`capability`], [`regs`], [`event`], [`spec::registers`] |
//! | all of it put together | [`mod@unit`] |
//! | (none) assigned functions | `host`, [`mappings`] |
//! | (none) taking a unit's state out and putting it in | [`state`] |
//!
//! # Contracts
//!
//! - A guest's mistake is a value of the model: a status bit, a fault record, a response code. Nothing a guest
//!   writes makes a Rust error, a panic, or work without bound.
//! - A register write returns when all that it sets off is done: status bits, descriptors, wait statuses.
//! - When an invalidation is done, no session of any port uses what it dropped.
//! - No register access waits for a guest. A write may wait for functions: for sessions that are open, which are
//!   short, and for a device-TLB to be given up.
//! - [`Unit::save`] yields all that a guest or a function could tell two units apart by; a unit that it is put into
//!   goes on as if nothing had happened, in the middle of a queue and with messages pending.
//! - Lock order: [`mod@unit`].
//!
//! # What a VMM brings
//!
//! `examples/embed.rs` is the whole of it in a toy machine.
//!
//! | what | as | contract |
//! | --- | --- | --- |
//! | guest memory | [`TableMemory`]: every `GuestMemoryBackend` of vm-memory is one | entries are read and updated atomically, `None` where there is no memory; called from any thread with any lock of the unit held, so it takes no lock that is held while the unit is called, and never calls the unit |
//! | interrupt delivery | [`iommu_core::MsiSink`] | takes the unit's own interrupts, which are never remapped; called with the unit's leaf locks held |
//! | the register page | calls of [`Unit::mmio_read`] and [`Unit::mmio_write`] | from CPU threads, which hold no lock of a function and no session; a write comes back when all is done that it sets off, which includes calls of [`iommu_core::Endpoint`] |
//! | functions | [`iommu_core::Dma`] to reach memory by; [`Unit::attach_endpoint`] for those with a device-TLB or page requests | the contracts of [`iommu_core`] |
//! | assigned functions | [`Unit::attach_host`] with an [`iommu_core::HostIommu`], and a profile that fits it ([`Profile::behind`]) | called inside register writes, with nothing held that page requests want; what bounds a hostile guest: `host` |
//! | interrupts of functions and I/O APICs | [`iommu_core::RemappedMsi`], or [`iommu_core::InterruptRemapper::resolve`] for routes in a kernel | the same |
//! | the DMAR table | [`Dmar`] | bytes, checked for what guests reject |
//! | snapshots | [`Unit::save`], [`Unit::restore`], [`Unit::resume`] | CPUs and functions stand still; guest memory comes back before the unit, functions before `resume` |
//!
//! # What it doesn't implement
//!
//! Host permission tables, I/O permissions in second stages,
//! memory types and MTRRs, protected memory regions, performance monitoring, enhanced and virtual commands: none is
//! offered in the capability registers. PASIDs in translated requests are judged, but no profile offers them. The
//! "no snoop" flag of a translation is not told to devices: accesses to memory are always coherent. Completion
//! errors of device-TLBs (ICE) are never raised: there is no link that could lose a completion.
#![forbid(unsafe_code)]

mod answer;
pub mod ats;
mod cache;
pub mod capability;
pub mod dmar;
pub mod event;
pub mod fault;
mod host;
pub mod interrupt;
pub mod invalidation;
mod lookup;
pub mod mappings;
pub mod memory;
pub mod page_request;
pub mod profile;
pub mod queue;
pub mod regs;
pub mod rules;
pub mod spec;
pub mod state;
pub mod tables;
#[cfg(feature = "testkit")]
pub mod testkit;
pub mod translate;
pub mod unit;
mod walk;

pub use capability::Capability;
pub use dmar::Dmar;
pub use mappings::SecondStageMappings;
pub use memory::TableMemory;
pub use profile::{Platform, Profile, ProfileError};
pub use state::{RestoreError, UnitState};
pub use unit::{Unit, UnitConfig, UnitCounts};
