//! The state of a unit as plain data: what a snapshot keeps and a migration carries.
//!
//! [`Unit::save`](crate::Unit::save) makes it, [`Unit::restore`](crate::Unit::restore) takes it. It is versioned,
//! it holds numbers only, and a state that is read is as hostile as a guest: what no unit can be in is refused, by
//! name, before anything is changed.
//!
//! Caches are no part of it, and neither is guest memory.

use std::collections::BTreeMap;

use iommu_core::Gpa;
use serde::{Deserialize, Serialize};

use crate::capability::{Capability, FAULT_RECORDS};
use crate::fault::FaultLog;
use crate::interrupt::remap::Latch;
use crate::lookup::RootLatch;
use crate::queue::Ring;
pub use crate::regs::BadRegister;
use crate::regs::{FECTL, FSTS, GSTS, IECTL, IQERCD, IQH, PECTL, RegisterFile, fault_record};
use crate::spec::interrupt::TableAddress;
use crate::spec::registers::{Cap, Ecap, QueueAddress, RootTableAddress};

/// The version of [`UnitState`] that this crate writes, and the only one that it reads.
pub const VERSION: u32 = 1;

/// The state of a unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnitState {
    /// Of this structure: [`VERSION`].
    pub version: u32,
    /// What the unit offers. Only a unit that offers the same takes the state.
    pub profile: ProfileState,
    /// Registers by the manual's names, as hardware holds them: also bits that read as 0. Among them are the heads
    /// and tails of both queues, the queue's error (FSTS, IQERCD), the page request status with its overflow (PRS),
    /// and the events with a message that waits for its mask (IP). VER, CAP and ECAP are in
    /// [`profile`](Self::profile), fault records in [`fault_records`](Self::fault_records).
    pub registers: BTreeMap<String, u64>,
    /// The fault recording registers, by number: bits 63:0 and 127:64.
    pub fault_records: Vec<[u64; 2]>,
    /// Number of the fault recording register that is written next.
    pub next_fault_record: u16,
    /// What the last "set root table pointer" latched. RTADDR may hold something else since.
    pub root: RootState,
    /// How interrupts are treated.
    pub interrupts: InterruptState,
    /// What enabling the invalidation queue latched; `None` while it is off. IQA may hold something else since.
    pub queue: Option<QueueState>,
}

/// What a unit offers, as its guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProfileState {
    /// Physical address width in bits.
    pub host_address_width: u32,
    /// VER.
    pub version: u8,
    /// CAP.
    pub cap: u64,
    /// ECAP.
    pub ecap: u64,
}

/// The root table in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootState {
    /// Guest-physical address, a multiple of 4096.
    pub table: u64,
    /// Translation table mode (TTM): 0 to 3.
    pub mode: u8,
    /// Whether requests are translated (TES).
    pub enabled: bool,
}

/// Interrupt remapping as commands have set it. IRTA may hold something else since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InterruptState {
    /// Guest-physical address of the table, a multiple of 4096.
    pub table: u64,
    /// Its size: `2^(size + 1)` entries, 0 to 15.
    pub size: u8,
    /// Destinations have 32 bits (EIME).
    pub extended: bool,
    /// Interrupts are remapped (IRES).
    pub enabled: bool,
    /// Messages in compatibility format pass (CFIS).
    pub compatibility: bool,
}

/// The invalidation queue's ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueState {
    /// Guest-physical address, a multiple of 4096.
    pub base: u64,
    /// Logarithm of its pages (QS): 0 to 7.
    pub size: u8,
    /// Descriptors of 256 bits (DW).
    pub wide: bool,
}

/// A state that does not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Written by another version of this crate.
    #[error("version {found} of the state is not {VERSION}")]
    Version {
        /// As saved.
        found: u32,
    },
    /// The state is of a unit that offers something else.
    #[error("the state is of another profile: {what} is {saved:#x} there and {here:#x} here")]
    Profile {
        /// The capability, by the manual's mnemonic.
        what: &'static str,
        /// Its value in the state.
        saved: u64,
        /// Its value here.
        here: u64,
    },
    /// A register is missing, unknown, or has bits that it cannot have.
    #[error(transparent)]
    Register(#[from] BadRegister),
    /// Parts of the state contradict each other, or one is out of its range.
    #[error("{what}")]
    Contradiction {
        /// Which parts, and how.
        what: &'static str,
    },
}

/// A unit's state in its own types; `F` is the register file or a reference to it.
pub(crate) struct Parts<F> {
    pub(crate) capability: Capability,
    pub(crate) file: F,
    pub(crate) root: RootLatch,
    pub(crate) interrupts: Latch,
    pub(crate) ring: Option<Ring>,
    pub(crate) log: FaultLog,
}

impl UnitState {
    pub(crate) fn of(parts: &Parts<&RegisterFile>) -> Self {
        let Parts { capability, file, root, interrupts, ring, log } = parts;
        Self {
            version: VERSION,
            profile: ProfileState::of(capability),
            registers: file.save(),
            fault_records: file.save_records(),
            next_fault_record: log.next(),
            root: RootState { table: root.table().0, mode: root.mode() as u8, enabled: root.enabled() },
            interrupts: InterruptState::of(interrupts),
            queue: ring.map(|ring| QueueState::of(ring.address())),
        }
    }

    /// The state in the unit's own types. **Pure.**
    ///
    /// # Errors
    /// No unit with these capabilities can be in this state.
    pub(crate) fn parts(&self, capability: &Capability) -> Result<Parts<RegisterFile>, RestoreError> {
        let Self { version, profile, registers, fault_records, next_fault_record, root, interrupts, queue } =
            self;
        if *version != VERSION {
            return Err(RestoreError::Version { found: *version });
        }
        profile.check(capability)?;
        let mut file = RegisterFile::new(capability);
        file.load(registers)?;
        file.load_records(fault_records)?;
        let log = FaultLog::at(*next_fault_record).ok_or(RestoreError::Contradiction {
            what: "next_fault_record is not the number of a register",
        })?;
        let ring = queue.map(|queue| queue.ring()).transpose()?;
        let (root, interrupts) = (root.latch()?, interrupts.latch()?);
        let parts = Parts { capability: *capability, file, root, interrupts, ring, log };
        check(&parts)?;
        Ok(parts)
    }
}

impl ProfileState {
    fn of(capability: &Capability) -> Self {
        Self {
            host_address_width: capability.host_address_width(),
            version: capability.version(),
            cap: capability.cap().raw_value(),
            ecap: capability.ecap().raw_value(),
        }
    }

    /// Refuses by the first difference.
    fn check(&self, capability: &Capability) -> Result<(), RestoreError> {
        let here = Self::of(capability);
        let rest = [
            ("host address width", self.host_address_width.into(), here.host_address_width.into()),
            ("VER", self.version.into(), here.version.into()),
            ("CAP", self.cap, here.cap),
            ("ECAP", self.ecap, here.ecap),
        ];
        let (cap, ecap) = (Cap::new_with_raw_value(self.cap), Ecap::new_with_raw_value(self.ecap));
        // Fields by their names, and the whole for bits that are in no field.
        let first = cap_difference(cap, capability.cap())
            .or_else(|| ecap_difference(ecap, capability.ecap()))
            .or_else(|| rest.into_iter().find(|(_, saved, here)| saved != here));
        match first {
            Some((what, saved, here)) => Err(RestoreError::Profile { what, saved, here }),
            None => Ok(()),
        }
    }
}

/// A function that finds the first field in which two registers differ.
macro_rules! differences {
    ($name:ident: $layout:ty; $($mnemonic:literal $field:ident,)+) => {
        fn $name(saved: $layout, here: $layout) -> Option<(&'static str, u64, u64)> {
            let fields = [$(($mnemonic, u64::from(saved.$field()), u64::from(here.$field()))),+];
            fields.into_iter().find(|(_, saved, here)| saved != here)
        }
    };
}

differences! { cap_difference: Cap;
    "ESRTPS" esrtps, "ESIRTPS" esirtps, "ECMDS" ecmds, "FS5LP" fs5lp, "PI" pi, "FS1GP" fs1gp, "DRD" drd, "DWD" dwd,
    "MAMV" mamv, "NFR" nfr, "PSI" psi, "SSLPS" sslps, "FRO" fro, "ZLR" zlr, "MGAW" mgaw, "SAGAW" sagaw, "CM" cm,
    "PHMR" phmr, "PLMR" plmr, "RWBF" rwbf, "ND" nd,
}

differences! { ecap_difference: Ecap;
    "SMS" sms, "RPRIVS" rprivs, "ADMS" adms, "RPS" rps, "SMPWCS" smpwcs, "FSTS" fsts, "SSTS" ssts, "SSADS" ssads,
    "SMTS" smts, "PDS" pds, "DIT" dit, "PASID" pasid, "PSS" pss, "EAFS" eafs, "NWFS" nwfs, "SRS" srs, "PRS" prs,
    "NEST" nest, "MHMV" mhmv, "IRO" iro, "SC" sc, "PT" pt, "EIM" eim, "IR" ir, "DT" dt, "QI" qi, "C" c,
}

impl RootState {
    fn latch(self) -> Result<RootLatch, RestoreError> {
        let Self { table, mode, enabled } = self;
        if table % 4096 != 0 || mode > 3 {
            return Err(RestoreError::Contradiction {
                what: "root is no address of a page and a table mode",
            });
        }
        let register = RootTableAddress::new_with_raw_value(table | u64::from(mode) << 10);
        Ok(RootLatch::new(register.raw_value(), enabled))
    }
}

impl InterruptState {
    fn of(latch: &Latch) -> Self {
        let Latch { enabled, compatibility, table } = *latch;
        let (size, extended) = (table.s().value(), table.eime());
        Self { table: table.irta().value() << 12, size, extended, enabled, compatibility }
    }

    fn latch(self) -> Result<Latch, RestoreError> {
        let Self { table, size, extended, enabled, compatibility } = self;
        if table % 4096 != 0 || size > 15 {
            return Err(RestoreError::Contradiction {
                what: "interrupts is no address of a page and a size",
            });
        }
        let table = TableAddress::new_with_raw_value(table | u64::from(extended) << 11 | u64::from(size));
        Ok(Latch { enabled, compatibility, table })
    }
}

impl QueueState {
    fn of(address: QueueAddress) -> Self {
        Self { base: Gpa(address.iqa().value() << 12).0, size: address.qs().value(), wide: address.dw() }
    }

    fn ring(self) -> Result<Ring, RestoreError> {
        let Self { base, size, wide } = self;
        if base % 4096 != 0 || size > 7 {
            return Err(RestoreError::Contradiction { what: "queue is no address of a page and a size" });
        }
        Ok(Ring::latch(QueueAddress::new_with_raw_value(base | u64::from(wide) << 11 | u64::from(size))))
    }
}

/// What holds between the parts of a unit whenever no write is under way.
fn check(parts: &Parts<RegisterFile>) -> Result<(), RestoreError> {
    let Parts { capability, file, root, interrupts, ring, log: _ } = parts;
    let (status, faults) = (file.get(GSTS), file.get(FSTS));
    let head = file.get(IQH).raw_value();
    let recorded = (0..FAULT_RECORDS).any(|index| file.get(fault_record(index).1).f());
    let unsent = [FECTL, IECTL, PECTL].into_iter().map(|control| file.get(control));
    let rules = [
        (status.te() == root.enabled(), "GSTS.TES and root disagree on whether requests are translated"),
        (
            status.ire() == interrupts.enabled && status.cfi() == interrupts.compatibility,
            "GSTS.IRES or CFIS and interrupts disagree on how interrupts are treated",
        ),
        (
            capability.ecap().ir() || *interrupts == Latch::OFF,
            "interrupts are remapped by a unit that cannot",
        ),
        (capability.ecap().eim() || !interrupts.extended(), "interrupts are extended in a unit that cannot"),
        (status.qie() == ring.is_some(), "GSTS.QIES and queue disagree on whether the queue is on"),
        (
            ring.map_or(head == 0, |ring| ring.holds(head)),
            "IQH is not the offset of a descriptor in the queue",
        ),
        (
            faults.iqe() == (file.get(IQERCD).iqei().value() != 0),
            "FSTS.IQE and IQERCD disagree on whether the queue has stopped",
        ),
        (
            faults.ite() || file.get(IQERCD).itesid() == 0,
            "IQERCD names a function that timed out and FSTS.ITE none",
        ),
        (faults.ppf() == recorded, "FSTS.PPF and the fault records disagree on whether a fault is pending"),
        (u16::from(faults.fri()) < FAULT_RECORDS, "FSTS.FRI is not the number of a fault record"),
        (
            unsent.into_iter().all(|control| control.im() || !control.ip()),
            "an event has a message pending that nothing masks",
        ),
    ];
    match rules.into_iter().find(|(holds, _)| !holds) {
        Some((_, what)) => Err(RestoreError::Contradiction { what }),
        None => Ok(()),
    }
}
