//! The vendor-neutral half of a virtual IOMMU in which shared virtual memory works.
//!
//! # Architecture
//!
//! A machine has DMA-issuing functions, one or more IOMMU *models* that judge their accesses, and
//! perhaps a host IOMMU behind the models. This crate holds what all three say to each other, and
//! the path that every emulated DMA takes. It knows no vendor, no bus, no hypervisor and no file.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`types`] | identifiers and addresses: [`SourceId`], [`Pasid`], [`DomainId`], [`Iova`], [`Gpa`], ranges |
//! | [`request`] | one DMA request as a model judges it, and the translation that answers it |
//! | [`domain`] | what a (source, PASID) pair is bound to |
//! | [`mappings`] | what a domain maps, for hosts that keep a copy of it |
//! | [`invalidation`] | what an invalidation hits, for IOTLBs, device-TLBs and host page tables |
//! | [`fault`] | unrecoverable faults |
//! | [`page_request`] | recoverable faults: page requests and their responses |
//! | [`vendor`] | typed room for what only one vendor's model understands |
//! | [`caps`] | what an IOMMU, virtual or host, can do |
//! | [`traits`] | the doors: [`Translator`] and [`InterruptRemapper`] in; [`Endpoint`], [`HostIommu`], [`RouteListener`] and [`MsiSink`] out |
//! | [`iotlb`] | the private translation cache of one port |
//! | [`port`] | [`Port`], [`Session`]: DMA as it runs, and its drain |
//! | [`sync`] | the locks of ports and models |
//!
//! # The DMA path
//!
//! A thread that issues DMA owns a [`Port`] per function. [`Port::session`] takes the port's lock,
//! which nobody else wants while no invalidation runs, and yields a view of guest memory
//! (vm-memory's `GuestMemory`). A hit touches only the port's own memory. Slices borrow from the
//! session, so no access outlives it. An invalidation visits every port and takes its lock: that
//! wait *is* the drain of in-flight DMA that an invalidation has to guarantee.
//!
//! # Contracts
//!
//! Every trait can be implemented by anyone: all that its methods take and return can be built with what is public.
//! In full the contracts stand at the traits; side by side, they are:
//!
//! | trait | who calls it | what the caller may hold | what it may do | if it fails |
//! | --- | --- | --- | --- | --- |
//! | [`Translator::translate`] | ports, endpoints; any thread | a port's lock, locks inside an endpoint | read and mark tables; no lock that is held while ports are visited; never block | [`Fault`]: the caller reports it when its session is over |
//! | [`Translator::report`], [`Translator::page_request`] | ports, endpoints; any thread | locks inside an endpoint; no session | take leaf locks, visit ports (`page_request`), send interrupts | nothing can: what the guest gets wrong is a value |
//! | [`Endpoint`] | a model, inside a CPU's register write or a reset | nothing that a [`Translator`] method takes | call [`Translator`]; take its own locks; not wait for a guest, not write registers | a function that is too slow says so ([`DeviceTlbCompletion`]) |
//! | [`HostIommu`] | a model, inside a CPU's register write | nothing that a [`Translator`] method takes | call the host, and wait for it | [`HostError`]: the device is blocked |
//! | [`GuestMappings`] | a host that keeps copies, inside the calls of its own | its own locks | read tables or take leaf locks | the visit ends early and says so |
//! | [`InterruptRemapper`] | functions and I/O APICs; any thread | locks inside an endpoint, no session | read tables; call the sink with a lock of its own held | the guest is told, the interrupt is lost |
//! | [`MsiSink`] | models and functions; any thread | anything, a model's leaf locks too | deliver and return; not block, not call a model or function back | it drops the interrupt |
//! | [`RouteListener`] | a model, inside a CPU's register write or a reset | nothing that [`InterruptRemapper::resolve`] takes | call `resolve`; not write registers | it leaves no old route in use |
//!
//! May it be called again while a call is under way? All may: from other threads at any time, and `Translator` also
//! from within a call that a model makes to an endpoint. That is the one way in which calls nest: model → endpoint →
//! `Translator`. An [`MsiSink`] is the end of every path.
//!
//! # Locks
//!
//! Endpoint-internal → model → port → leaf (fault log, page-request ring) → host objects. A
//! [`Translator`] is called with the port lock held and therefore takes no model lock.
#![forbid(unsafe_code)]

pub mod caps;
pub mod domain;
pub mod durations;
pub mod fault;
pub mod invalidation;
pub mod iotlb;
pub mod mappings;
pub mod page_request;
pub mod port;
pub mod request;
pub mod sync;
#[cfg(feature = "testkit")]
pub mod testkit;
pub mod traits;
pub mod types;
pub mod vendor;

pub use caps::Capabilities;
pub use domain::{Domain, FirstStage, SecondStage, TableFormat};
pub use durations::{Durations, Percentiles};
pub use fault::{Completion, Fault, FaultClass, FaultEvent, FaultReason};
pub use invalidation::{DeviceTlbCompletion, DeviceTlbInvalidation, Invalidation, Scope};
pub use mappings::{GuestMappings, Mapping, Visit};
pub use page_request::{GroupIndex, PageRequest, PageRequestOutcome, PageResponse, ResponseCode};
pub use port::{
    DRAIN_LIMIT, Dma, DmaFault, LookUps, NoTranslation, Port, PortKind, PortSet, SESSION_LIMIT_BYTES, Session,
};
pub use request::{Access, AddressType, Permissions, Request, StageTag, Tag, Translation};
pub use traits::{
    Endpoint, HostError, HostIommu, InterruptRemapper, Msi, MsiSink, RemappedMsi, RouteListener, Translator,
};
pub use types::{DomainId, Gpa, Iova, IovaRange, Pasid, SourceId};
pub use vendor::{VendorData, VendorPayload};
