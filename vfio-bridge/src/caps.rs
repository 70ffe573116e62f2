//! What a host offers for a device, and why it does not offer more.
//!
//! Every condition of every feature is a row of `RULES`: the feature is there if none of its rows objects, and the
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
const RULES: [Rule; 28] = [
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
    rule(
        Feature::PageRequests,
        |f| f.fault_queue == Err(Errno::NOTTY),
        "kernel: no fault queues; needs Linux 6.11",
    ),
    rule(Feature::PageRequests, |f| f.fault_queue.is_err(), "kernel: no fault queue could be made"),
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

const NO_FIRST_STAGE: &str = "shadow: no first stage, because no guest announces what it adds to one";

/// What cannot be had with copies of the guest's tables, and why. In the order of [`Feature`].
const NOT_IN_SHADOW: [(Feature, &str); 10] = [
    (Feature::Nesting, NO_FIRST_STAGE),
    (Feature::Pasid, "shadow: PASIDs are for first stages, and there is none"),
    (Feature::DeviceTlb, "shadow: the host alone invalidates the device's translations"),
    (Feature::PageRequests, "shadow: what a second stage maps is there, and the rest is refused"),
    (Feature::FiveLevel, NO_FIRST_STAGE),
    (Feature::GibPages, NO_FIRST_STAGE),
    (Feature::Supervisor, NO_FIRST_STAGE),
    (Feature::WriteProtect, NO_FIRST_STAGE),
    (Feature::ExtendedAccessed, NO_FIRST_STAGE),
    (Feature::DirtyTracking, "shadow: the host does not keep the guest's dirty bits"),
];

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
    /// The device may send requests for execution with a PASID.
    pub execute: bool,
    /// The device may send privileged requests with a PASID.
    pub privileged: bool,
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
            extended_accessed: nested && has(Feature::ExtendedAccessed),
            no_write_flag: has(Feature::WriteProtect),
            dirty_tracking: has(Feature::DirtyTracking),
            coherent_walk: has(Feature::CoherentWalk),
        };
        Self {
            capabilities,
            extended_accessed: nested && has(Feature::ExtendedAccessed),
            write_protect: nested && has(Feature::WriteProtect),
            execute: has(Feature::Pasid) && findings.info.capabilities & capability::PASID_EXEC != 0,
            privileged: has(Feature::Pasid) && findings.info.capabilities & capability::PASID_PRIV != 0,
            missing,
        }
    }

    /// **Pure.** What is offered for a device where the host keeps copies of second-stage tables, whose input has so
    /// many bits.
    #[must_use]
    pub fn shadow(second_stage_bits: u32) -> Self {
        let missing = |(feature, reason): &(Feature, &'static str)| Missing { feature: *feature, reason };
        Self {
            capabilities: Capabilities {
                second_stage_bits,
                second_stage_page_sizes: 1 << 12 | 1 << 21 | 1 << 30,
                // This process reads the guest's tables.
                coherent_walk: true,
                ..Capabilities::NONE
            },
            extended_accessed: false,
            write_protect: false,
            execute: false,
            privileged: false,
            missing: NOT_IN_SHADOW.iter().map(missing).collect(),
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

#[cfg(test)]
mod tests {
    use iommu_core::testkit::NESTING;

    use super::*;

    /// Bits of CAP and ECAP, by the manual's numbers.
    const CAP: u64 = 1 << 60 | 1 << 56;
    const ECAP: u64 = 1 << 48
        | 1 << 46
        | 1 << 45
        | 1 << 43
        | 1 << 42
        | 1 << 40
        | 19 << 35
        | 1 << 34
        | 1 << 33
        | 1 << 31
        | 1 << 29
        | 1 << 26
        | 1 << 2;

    fn full() -> Findings {
        Findings {
            info: HwInfo {
                vendor: VendorInfo::Vtd { flags: 1, cap: CAP, ecap: ECAP },
                max_pasid_log2: 20,
                capabilities: capability::DIRTY_TRACKING,
            },
            nest_parent: Ok(true),
            fault_queue: Ok(()),
            ats: Live::On,
            pri: Live::On,
        }
    }

    fn without(cap_bit: Option<u32>, ecap_bit: Option<u32>) -> Findings {
        let clear = |register: u64, bit: Option<u32>| bit.map_or(register, |bit| register & !(1 << bit));
        let vendor = VendorInfo::Vtd { flags: 1, cap: clear(CAP, cap_bit), ecap: clear(ECAP, ecap_bit) };
        Findings { info: HwInfo { vendor, ..full().info }, ..full() }
    }

    #[test]
    fn a_host_with_everything_offers_everything_but_a_second_stage() {
        let offer = Offer::judge(&full());
        assert_eq!(offer.missing, []);
        assert_eq!(offer.capabilities, NESTING);
        assert!(offer.extended_accessed && offer.write_protect);
    }

    /// (findings, feature, its reason begins so). Together the rows give every reason there is.
    fn rows() -> Vec<(Findings, Feature, &'static str)> {
        let parent = |nest_parent| Findings { nest_parent, ..full() };
        let vendor = |vendor| Findings { info: HwInfo { vendor, ..full().info }, ..full() };
        let info = |change: fn(&mut HwInfo)| {
            let mut findings = full();
            change(&mut findings.info);
            findings
        };
        let (ats, pri) = (|ats| Findings { ats, ..full() }, |pri| Findings { pri, ..full() });
        vec![
            (vendor(VendorInfo::Other(4)), Feature::Nesting, "the host's IOMMU is not"),
            (vendor(VendorInfo::None), Feature::Pasid, "hardware: no PASIDs"),
            (without(None, Some(43)), Feature::Nesting, "hardware: no scalable mode"),
            (without(None, Some(26)), Feature::Nesting, "hardware: no nested"),
            (without(None, Some(46)), Feature::Nesting, "hardware: no second stage"),
            (parent(Err(Errno::NOTTY)), Feature::Nesting, "kernel: no HWPT_ALLOC"),
            (parent(Err(Errno::OPNOTSUPP)), Feature::Nesting, "kernel: scalable mode is off"),
            (parent(Err(Errno::NOMEM)), Feature::Nesting, "kernel: no page table"),
            (without(None, Some(40)), Feature::Pasid, "hardware: no PASIDs"),
            (info(|i| i.max_pasid_log2 = 0), Feature::Pasid, "device: no PASID capability"),
            (parent(Ok(false)), Feature::Pasid, "kernel: page tables cannot"),
            (without(None, Some(2)), Feature::DeviceTlb, "hardware: no device-TLBs"),
            (info(|i| i.capabilities |= 8), Feature::DeviceTlb, "device: its platform"),
            (ats(Live::Absent), Feature::DeviceTlb, "device: no ATS"),
            (ats(Live::Off), Feature::DeviceTlb, "host: ATS is off"),
            (ats(Live::Off), Feature::PageRequests, "device: page requests need ATS"),
            (without(None, Some(2)), Feature::PageRequests, "hardware: no device-TLBs"),
            (without(None, Some(29)), Feature::PageRequests, "hardware: no page requests"),
            (without(None, Some(42)), Feature::PageRequests, "hardware: page requests do not drain"),
            (pri(Live::Absent), Feature::PageRequests, "device: no PRI"),
            (pri(Live::Off), Feature::PageRequests, "host: PRI is off"),
            (
                Findings { fault_queue: Err(Errno::NOTTY), ..full() },
                Feature::PageRequests,
                "kernel: no fault queues",
            ),
            (
                Findings { fault_queue: Err(Errno::MFILE), ..full() },
                Feature::PageRequests,
                "kernel: no fault queue could",
            ),
            (without(Some(60), None), Feature::FiveLevel, "hardware: no 57-bit"),
            (without(Some(56), None), Feature::GibPages, "hardware: no 1 GiB"),
            (without(None, Some(48)), Feature::CoherentWalk, "hardware: walks do not snoop"),
            (without(None, Some(31)), Feature::Supervisor, "hardware: no supervisor"),
            (without(None, Some(33)), Feature::WriteProtect, "hardware: ECAP.NWFS"),
            (without(None, Some(34)), Feature::ExtendedAccessed, "hardware: ECAP.EAFS"),
            (info(|i| i.capabilities = 0), Feature::DirtyTracking, "hardware or kernel: no dirty"),
        ]
    }

    #[test]
    fn every_missing_feature_has_its_reason() {
        for (findings, feature, reason) in rows() {
            let offer = Offer::judge(&findings);
            let given = offer.why_not(feature).unwrap_or("none");
            assert!(given.starts_with(reason), "{feature:?}: {given}, not {reason}");
        }
        for Rule { feature, reason, .. } in &RULES {
            let given = rows().iter().any(|(f, _, _)| Offer::judge(f).why_not(*feature) == Some(*reason));
            assert!(given, "{feature:?} is never refused because of: {reason}");
        }
    }

    /// A reason and a capability go together.
    #[test]
    fn what_is_missing_is_not_offered() {
        let off = |feature, c: &Capabilities, o: &Offer| match feature {
            Feature::Nesting => c.first_stage_bits == 0 && c.pasid_bits == 0 && !c.page_requests,
            Feature::Pasid => c.pasid_bits == 0,
            Feature::DeviceTlb => !c.device_tlb,
            Feature::PageRequests => !c.page_requests,
            Feature::FiveLevel => c.first_stage_bits != 57,
            Feature::GibPages => c.first_stage_page_sizes & 1 << 30 == 0,
            Feature::CoherentWalk => !c.coherent_walk,
            Feature::Supervisor => !c.supervisor,
            Feature::WriteProtect => !o.write_protect,
            Feature::ExtendedAccessed => !o.extended_accessed,
            Feature::DirtyTracking => !c.dirty_tracking,
        };
        for (findings, ..) in rows() {
            let offer = Offer::judge(&findings);
            for missing in &offer.missing {
                assert!(off(missing.feature, &offer.capabilities, &offer), "{missing:?}");
            }
        }
    }

    #[test]
    fn pasids_are_as_wide_as_device_and_unit_allow() {
        let mut findings = full();
        findings.info.max_pasid_log2 = 12;
        assert_eq!(Offer::judge(&findings).capabilities.pasid_bits, 12);
        let vendor = VendorInfo::Vtd { flags: 0, cap: CAP, ecap: ECAP & !(0x1f << 35) | 7 << 35 };
        findings.info = HwInfo { vendor, max_pasid_log2: 20, ..findings.info };
        assert_eq!(Offer::judge(&findings).capabilities.pasid_bits, 8);
    }

    /// (name, (offset, double word) pairs, ATS, PRI).
    #[test]
    fn live_services_are_read_from_any_chain() {
        type Row = (&'static str, Vec<(u16, u32)>, Live, Live);
        let rows: [Row; 7] = [
            ("nothing", vec![], Live::Absent, Live::Absent),
            ("all ones", vec![(0x100, u32::MAX)], Live::Absent, Live::Absent),
            ("ATS on", vec![(0x100, 0x1_000f), (0x104, 1 << 31)], Live::On, Live::Absent),
            ("ATS off, depth set", vec![(0x100, 0x1_000f), (0x104, 0x1f)], Live::Off, Live::Absent),
            (
                "both, PRI off but stopped",
                vec![(0x100, 0x2001_000f), (0x104, 1 << 31), (0x200, 0x1_0013), (0x204, 1 << 24)],
                Live::On,
                Live::Off,
            ),
            ("a loop", vec![(0x100, 0x1001_0013), (0x104, 1)], Live::Absent, Live::On),
            ("into the header", vec![(0x100, 0x0401_0013), (0x40, 0x1_000f)], Live::Absent, Live::Off),
        ];
        for (name, words, ats, pri) in rows {
            let read = |offset| Some(words.iter().find(|(at, _)| *at == offset).map_or(0, |(_, word)| *word));
            assert_eq!(live_services(read), (ats, pri), "{name}");
        }
        assert_eq!(live_services(|_| None), (Live::Absent, Live::Absent));
    }
}
