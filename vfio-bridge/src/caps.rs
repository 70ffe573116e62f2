//! What a host offers for a device, and why it does not offer more.
//!
//! Every condition of every feature is a row of [`RULES`]: the feature is there if none of its rows objects, and the
//! first that does is the reason given. Registers say what the hardware has, not what Linux made of it; so the
//! rows also look at what was tried ([`Findings`]).

use arbitrary_int::traits::Integer as _;
use iommu_core::Capabilities;
use rustix::io::Errno;

use crate::kernel::{HwInfo, VendorInfo, capability};
use crate::spec::{Cap, Ecap, ExtendedHeader};

/// A service of the function as its host has it at this moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Live {
    /// No such capability, or configuration space could not be read.
    #[default]
    Absent,
    /// There, but off.
    Off,
    /// On.
    On,
}

/// What was found out by trying.
#[derive(Clone, Copy, Debug)]
pub struct Findings {
    /// The kernel's own words.
    pub info: HwInfo,
    /// A nest parent could be made; `true`: with the PASID flag.
    pub nest_parent: Result<bool, Errno>,
    /// A fault queue could be made.
    pub fault_queue: Result<(), Errno>,
    /// Address translation services.
    pub ats: Live,
    /// Page request interface.
    pub pri: Live,
}

impl Findings {
    fn registers(&self) -> Option<(Cap, Ecap)> {
        match self.info.vendor {
            VendorInfo::Vtd { cap, ecap, .. } => {
                Some((Cap::new_with_raw_value(cap), Ecap::new_with_raw_value(ecap)))
            }
            VendorInfo::None | VendorInfo::Other(_) => None,
        }
    }

    /// A bit of CAP is known to be 0.
    fn cap_lacks(&self, bit: fn(&Cap) -> bool) -> bool {
        self.registers().is_none_or(|(cap, _)| !bit(&cap))
    }

    fn ecap_lacks(&self, bit: fn(&Ecap) -> bool) -> bool {
        self.registers().is_none_or(|(_, ecap)| !bit(&ecap))
    }

    fn parent_refused(&self, how: fn(Errno) -> bool) -> bool {
        self.nest_parent.is_err_and(how)
    }
}

/// What a guest may or may not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Feature {
    /// A guest's first-stage tables, nested on the host's.
    Nesting,
    /// Address spaces by PASID.
    Pasid,
    /// ATS.
    DeviceTlb,
    /// PRI.
    PageRequests,
    /// 57-bit first stage.
    FiveLevel,
    /// 1 GiB pages in the first stage.
    GibPages,
    /// Walks coherent with caches.
    CoherentWalk,
    /// Supervisor requests.
    Supervisor,
    /// Write protection of supervisor writes.
    WriteProtect,
    /// Extended accessed flag.
    ExtendedAccessed,
    /// The host can tell what a device wrote.
    DirtyTracking,
}

/// One condition of a feature.
struct Rule {
    feature: Feature,
    objects: fn(&Findings) -> bool,
    reason: &'static str,
}

const fn rule(feature: Feature, objects: fn(&Findings) -> bool, reason: &'static str) -> Rule {
    Rule { feature, objects, reason }
}

/// All conditions; for each feature the most telling one first.
const RULES: [Rule; 27] = [
    rule(Feature::Nesting, |f| f.registers().is_none(), "the host's IOMMU is not an Intel VT-d"),
    rule(Feature::Nesting, |f| f.ecap_lacks(|e| e.smts()), "hardware: no scalable mode (ECAP.SMTS, bit 43)"),
    rule(
        Feature::Nesting,
        |f| f.ecap_lacks(|e| e.nest()),
        "hardware: no nested translation (ECAP.NEST, bit 26)",
    ),
    rule(Feature::Nesting, |f| f.ecap_lacks(|e| e.ssts()), "hardware: no second stage (ECAP.SSTS, bit 46)"),
    rule(
        Feature::Nesting,
        |f| f.parent_refused(|e| e == Errno::NOTTY),
        "kernel: no HWPT_ALLOC; needs Linux 6.7 with CONFIG_IOMMUFD",
    ),
    rule(
        Feature::Nesting,
        |f| f.parent_refused(|e| e == Errno::OPNOTSUPP),
        "kernel: scalable mode is off; boot with intel_iommu=on,sm_on (Linux 6.7 or later)",
    ),
    rule(Feature::Nesting, |f| f.nest_parent.is_err(), "kernel: no page table for nesting could be made"),
    rule(
        Feature::Pasid,
        |f| f.ecap_lacks(|e| e.pasid()),
        "hardware: no PASIDs in the IOMMU (ECAP.PASID, bit 40)",
    ),
    rule(
        Feature::Pasid,
        |f| f.info.max_pasid_log2 == 0,
        "device: no PASID capability, or scalable mode is off, or Linux before 6.15",
    ),
    rule(
        Feature::Pasid,
        |f| f.nest_parent != Ok(true),
        "kernel: page tables cannot be attached by PASID; needs Linux 6.15",
    ),
    rule(Feature::DeviceTlb, |f| f.ecap_lacks(|e| e.dt()), "hardware: no device-TLBs (ECAP.DT, bit 2)"),
    rule(
        Feature::DeviceTlb,
        |f| f.info.capabilities & capability::ATS_NOT_SUPPORTED != 0,
        "device: its platform or it cannot use ATS",
    ),
    rule(Feature::DeviceTlb, |f| f.ats == Live::Absent, "device: no ATS capability"),
    rule(
        Feature::DeviceTlb,
        |f| f.ats == Live::Off,
        "host: ATS is off (no ATSR or SATC in DMAR, no page-aligned requests, or pci=noats)",
    ),
    rule(Feature::PageRequests, |f| f.ats != Live::On, "device: page requests need ATS"),
    rule(Feature::PageRequests, |f| f.ecap_lacks(|e| e.dt()), "hardware: no device-TLBs (ECAP.DT, bit 2)"),
    rule(
        Feature::PageRequests,
        |f| f.ecap_lacks(|e| e.prs()),
        "hardware: no page requests (ECAP.PRS, bit 29)",
    ),
    rule(
        Feature::PageRequests,
        |f| f.ecap_lacks(|e| e.pds()),
        "hardware: page requests do not drain (ECAP.PDS, bit 42)",
    ),
    rule(
        Feature::PageRequests,
        |f| f.pri == Live::Absent,
        "device: no PRI capability, or a virtual function",
    ),
    rule(
        Feature::PageRequests,
        |f| f.pri == Live::Off,
        "host: PRI is off (responses without PASID, or not stopped)",
    ),
    rule(Feature::PageRequests, |f| f.fault_queue.is_err(), "kernel: no fault queue; needs Linux 6.11"),
    rule(
        Feature::FiveLevel,
        |f| f.cap_lacks(|c| c.fs5lp()),
        "hardware: no 57-bit first stage (CAP.FS5LP, bit 60)",
    ),
    rule(
        Feature::GibPages,
        |f| f.cap_lacks(|c| c.fs1gp()),
        "hardware: no 1 GiB first-stage pages (CAP.FS1GP, bit 56)",
    ),
    rule(
        Feature::CoherentWalk,
        |f| f.ecap_lacks(|e| e.smpwcs()),
        "hardware: walks do not snoop (ECAP.SMPWCS, bit 48)",
    ),
    rule(
        Feature::Supervisor,
        |f| f.ecap_lacks(|e| e.srs()),
        "hardware: no supervisor requests (ECAP.SRS, bit 31)",
    ),
    rule(Feature::WriteProtect, |f| f.ecap_lacks(|e| e.nwfs()), "hardware: ECAP.NWFS (bit 33) is 0"),
    rule(Feature::ExtendedAccessed, |f| f.ecap_lacks(|e| e.eafs()), "hardware: ECAP.EAFS (bit 34) is 0"),
];

/// Not a row: it does not change what a guest sees.
const NO_DIRTY_TRACKING: &str = "hardware or kernel: no dirty tracking (ECAP.SSADS, bit 45; Linux 6.7)";

/// A feature that is not offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Which.
    pub feature: Feature,
    /// The first reason found: a bit of the hardware, an option or a version of the kernel, the device.
    pub reason: &'static str,
}

/// What a host offers for one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// In neutral words. There is never a second stage for the guest's own use, nor nesting.
    pub capabilities: Capabilities,
    /// Tables may ask for the extended accessed flag.
    pub extended_accessed: bool,
    /// Tables may ask for write protection of supervisor writes.
    pub write_protect: bool,
    /// What is not there, in the order of [`Feature`].
    pub missing: Vec<Missing>,
}

impl Offer {
    /// **Pure.** Judges the findings.
    #[must_use]
    pub fn judge(findings: &Findings) -> Self {
        let mut missing = Vec::new();
        for rule in &RULES {
            let known = missing.iter().any(|m: &Missing| m.feature == rule.feature);
            if !known && (rule.objects)(findings) {
                missing.push(Missing { feature: rule.feature, reason: rule.reason });
            }
        }
        if findings.info.capabilities & capability::DIRTY_TRACKING == 0 {
            missing.push(Missing { feature: Feature::DirtyTracking, reason: NO_DIRTY_TRACKING });
        }
        missing.sort_by_key(|m| m.feature);
        let has = |feature| !missing.iter().any(|m| m.feature == feature);
        let nested = has(Feature::Nesting);
        let width = |wide| if wide { 57 } else { 48 };
        let blocks = 1 << 12 | 1 << 21 | if has(Feature::GibPages) { 1 << 30 } else { 0 };
        let pasid_bits = findings.registers().map_or(0, |(_, ecap)| ecap.pss().as_u32() + 1);
        let capabilities = Capabilities {
            first_stage_bits: if nested { width(has(Feature::FiveLevel)) } else { 0 },
            second_stage_bits: 0,
            nested: false,
            first_stage_page_sizes: if nested { blocks } else { 0 },
            second_stage_page_sizes: 0,
            pasid_bits: if nested && has(Feature::Pasid) {
                pasid_bits.min(u32::from(findings.info.max_pasid_log2))
            } else {
                0
            },
            device_tlb: has(Feature::DeviceTlb),
            page_requests: nested && has(Feature::PageRequests),
            supervisor: nested && has(Feature::Supervisor),
            dirty_tracking: has(Feature::DirtyTracking),
            coherent_walk: has(Feature::CoherentWalk),
        };
        Self {
            capabilities,
            extended_accessed: nested && has(Feature::ExtendedAccessed),
            write_protect: nested && has(Feature::WriteProtect),
            missing,
        }
    }

    /// Why a feature is not offered; `None` if it is.
    #[must_use]
    pub fn why_not(&self, feature: Feature) -> Option<&'static str> {
        self.missing.iter().find(|m| m.feature == feature).map(|m| m.reason)
    }
}

/// The live state of ATS and PRI: extended capabilities 0x0f and 0x13, whose enable bits the host owns. `read`
/// gives the double word at an offset of configuration space.
///
/// **Pure.** Ends on every chain, looped ones too.
pub(crate) fn live_services(read: impl Fn(u16) -> Option<u32>) -> (Live, Live) {
    const ATS: u32 = 0x0f;
    const PRI: u32 = 0x13;
    let state = |on| if on { Live::On } else { Live::Off };
    let (mut ats, mut pri) = (Live::Absent, Live::Absent);
    let mut offset = 0x100;
    // 4 KiB of configuration space hold no more.
    for _ in 0..960 {
        let Some(header) = read(offset).filter(|h| *h != 0 && *h != u32::MAX) else { break };
        let header = ExtendedHeader::new_with_raw_value(header);
        let control = read(offset + 4).unwrap_or(0);
        match u32::from(header.id()) {
            // Control is the upper half.
            ATS => ats = state(control & 1 << 31 != 0),
            PRI => pri = state(control & 1 != 0),
            _ => {}
        }
        offset = header.next().value() & !3;
        if offset < 0x100 {
            break;
        }
    }
    (ats, pri)
}
