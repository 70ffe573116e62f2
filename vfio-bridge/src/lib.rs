//! A guest's IOMMU for assigned devices, carried out by the host's iommufd and VFIO.
//!
//! # Architecture
//!
//! A guest programs a virtual IOMMU. Its model (any that speaks [`iommu_core`]) decodes the guest's tables into
//! domains and hands those of assigned devices to [`NestedIommu`], which is an [`iommu_core::HostIommu`]. The host
//! then walks the guest's first-stage tables itself: each is a *nested HWPT* on a *nest parent* that leads
//! guest-physical addresses to memory.
//!
//! ```text
//! guest's PASID entry ──► set_domain ──► nested HWPT ──► attach (device, PASID)
//! guest's invalidations ► invalidate ... sync ─────────► HWPT_INVALIDATE, one array per table
//! host's fault queue ───► deliver_page_requests ───────► Translator::page_request
//! guest's answer ───────► respond ─────────────────────► the fault queue, by cookie
//! ```
//!
//! A host that cannot nest keeps copies of the guest's second-stage tables instead ([`shadow`], [`container`]);
//! [`choose`] finds out what it can.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`choice`] | which way, found out by trying |
//! | [`kernel`] | what is needed of the host's kernel, as traits |
//! | [`sys`] | the real kernel: layouts and system calls |
//! | `testkit` | a kernel that lives in memory (feature `testkit`) |
//! | `object`, [`ioas`], `hwpt`, `device`, [`fault_queue`] | kernel objects as values |
//! | [`spec`], [`caps`] | what a host offers, and why it does not offer more |
//! | `tables`, `invalidate` | nested tables in use, and what is to be flushed in them |
//! | [`advice`] | what a user can do about an error |
//! | `bindings` | what every (device, PASID) is bound to |
//! | [`backend`] | [`NestedIommu`]: all of it together, and the lock order |
//! | [`shadow`] | [`ShadowIommu`]: copies of second-stage tables, over iommufd |
//! | [`container`] | [`ContainerIommu`]: the same over legacy VFIO containers |
//! | [`memory`] | guest memory as the host is told of it, and a device's as the guest is |
//! | [`function`], [`function_file`] | an assigned PCI function, and what it needs of the kernel |
//! | [`meter`] | what the kernel is asked, counted |
//!
//! # When something fails
//!
//! A device never stays on tables that the guest has taken back. Whatever is refused, the pair of device and PASID
//! is detached, and an [`iommu_core::HostError`] names operation, object and reason. Only if the host does not even
//! detach is a binding *stuck*: the error says so ([`still_bound`](iommu_core::HostError::still_bound)), the objects
//! it needs are kept, and the next change tries again.
//!
//! # What it does not do
//!
//! Second stages of the guest's own where the host nests (it has no way to compose them). Unrecoverable DMA faults stay
//! with the host: for VT-d its interface reports none.
#![deny(unsafe_code)]

pub mod advice;
pub mod backend;
mod bindings;
pub mod caps;
pub mod choice;
pub mod container;
mod device;
pub mod fault_queue;
pub mod function;
pub mod function_file;
mod hwpt;
mod invalidate;
pub mod ioas;
pub mod kernel;
pub mod memory;
pub mod meter;
mod object;
pub mod shadow;
pub mod spec;
#[allow(unsafe_code, reason = "system calls: see the module")]
pub mod sys;
mod tables;
#[cfg(feature = "testkit")]
pub mod testkit;

pub use backend::NestedIommu;
pub use choice::{Bridge, choose};
pub use container::ContainerIommu;
pub use shadow::ShadowIommu;
