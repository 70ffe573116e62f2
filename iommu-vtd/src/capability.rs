//! What a unit offers: the capability registers of chapter 11, and the rules between their fields.
//!
//! A [`Profile`] says what is wanted; [`Capability::new`] checks the mix and yields the registers. Everything
//! else in this crate asks the [`Capability`].

use arbitrary_int::traits::Integer;
use arbitrary_int::{u3, u4, u5, u6, u10};
use iommu_core::{Capabilities, DomainId};

use crate::spec::registers::{Cap, Ecap};

/// Offset of the IVA and IOTLB registers (ECAP.IRO * 16): between the page request and the MTRR registers.
pub const IOTLB_OFFSET: u16 = 0xf0;
/// Offset of the first fault recording register (CAP.FRO * 16): after the MTRR registers.
pub const FAULT_RECORD_OFFSET: u16 = 0x220;
/// Number of fault recording registers.
pub const FAULT_RECORDS: u16 = 8;
/// The architecture version, major in bits 7:4. 5: register-based invalidation works, drains are implied.
pub const VERSION: u8 = 0x50;

/// What a unit is to offer. Start from a preset and change fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Physical address width of the guest's CPUs in bits.
    pub host_address_width: u32,
    /// First stage with five levels; wanted if guest CPUs have it.
    pub five_level: bool,
    /// First stage with 1 GiB pages; wanted if guest CPUs have them.
    pub one_gib_pages: bool,
    /// Width of PASIDs in bits, 1 to 20; 0: requests with PASID are refused.
    pub pasid_bits: u32,
    /// Device-TLBs (ATS).
    pub device_tlb: bool,
    /// Page requests (PRI). Needs `device_tlb`.
    pub page_requests: bool,
    /// Supervisor requests with PASID. Needs PASIDs.
    pub supervisor: bool,
    /// Maintenance of the extended-accessed bit.
    pub extended_accessed: bool,
}

impl Profile {
    /// Shared virtual memory for emulated endpoints: scalable mode with a first stage only, 20-bit PASIDs,
    /// device-TLBs and page requests.
    #[must_use]
    pub const fn svm(host_address_width: u32) -> Self {
        Self {
            host_address_width,
            five_level: false,
            one_gib_pages: true,
            pasid_bits: 20,
            device_tlb: true,
            page_requests: true,
            supervisor: true,
            extended_accessed: true,
        }
    }
}

/// A profile that no hardware could have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CapabilityError {
    /// A feature without one that it builds on.
    #[error("{feature} needs {needs}")]
    Missing {
        /// What was asked for.
        feature: &'static str,
        /// What it needs.
        needs: &'static str,
    },
    /// A width that cannot be.
    #[error("{what} of {bits} bits is outside {min} to {max}")]
    Width {
        /// Which width.
        what: &'static str,
        /// As asked for.
        bits: u32,
        /// Smallest, inclusive.
        min: u32,
        /// Largest, inclusive.
        max: u32,
    },
}

/// A checked profile as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    host_address_width: u32,
    cap: Cap,
    ecap: Ecap,
}

impl Capability {
    /// Checks `profile` and lays out the registers.
    ///
    /// # Errors
    /// Widths out of range, or features without what they depend on.
    pub fn new(profile: &Profile) -> Result<Self, CapabilityError> {
        check(profile)?;
        Ok(Self {
            host_address_width: profile.host_address_width,
            cap: cap_register(profile),
            ecap: ecap_register(profile),
        })
    }

    /// The capability register.
    #[must_use]
    pub const fn cap(&self) -> Cap {
        self.cap
    }

    /// The extended capability register.
    #[must_use]
    pub const fn ecap(&self) -> Ecap {
        self.ecap
    }

    /// The version register.
    #[must_use]
    pub const fn version(&self) -> u8 {
        VERSION
    }

    /// Physical address width (HAW) in bits: addresses in tables reserve the bits above.
    #[must_use]
    pub const fn host_address_width(&self) -> u32 {
        self.host_address_width
    }

    /// The address bits that exist: `2^host_address_width - 1`.
    #[must_use]
    pub const fn host_address_mask(&self) -> u64 {
        (1 << self.host_address_width) - 1
    }

    /// Maximum guest address width in bits (MGAW as a width, not the field).
    #[must_use]
    pub fn guest_address_width(&self) -> u32 {
        u32::from(self.cap.mgaw().value()) + 1
    }

    /// Widest supported first-stage input in bits: 48 or 57.
    #[must_use]
    pub const fn first_stage_bits(&self) -> u32 {
        if self.cap.fs5lp() { 57 } else { 48 }
    }

    /// Five-level first stage.
    #[must_use]
    pub const fn fs5lp(&self) -> bool {
        self.cap.fs5lp()
    }

    /// 1 GiB pages in the first stage.
    #[must_use]
    pub const fn fs1gp(&self) -> bool {
        self.cap.fs1gp()
    }

    /// Page walks may be coherent (PWSNP).
    #[must_use]
    pub const fn smpwc(&self) -> bool {
        self.ecap.smpwcs()
    }

    /// Snoop control (PGSNP).
    #[must_use]
    pub const fn snoop_control(&self) -> bool {
        self.ecap.sc()
    }

    /// Pass-through.
    #[must_use]
    pub const fn pass_through(&self) -> bool {
        self.ecap.pt()
    }

    /// Requests with PASID.
    #[must_use]
    pub const fn pasid(&self) -> bool {
        self.ecap.pasid()
    }

    /// PASID width in bits; 0 without PASIDs.
    #[must_use]
    pub fn pasid_bits(&self) -> u32 {
        if self.ecap.pasid() { u32::from(self.ecap.pss().value()) + 1 } else { 0 }
    }

    /// Supervisor requests.
    #[must_use]
    pub const fn srs(&self) -> bool {
        self.ecap.srs()
    }

    /// Extended accessed flag.
    #[must_use]
    pub const fn eafs(&self) -> bool {
        self.ecap.eafs()
    }

    /// Device-TLBs.
    #[must_use]
    pub const fn dt(&self) -> bool {
        self.ecap.dt()
    }

    /// Page requests.
    #[must_use]
    pub const fn prs(&self) -> bool {
        self.ecap.prs()
    }

    /// The no-write flag of translation requests is honoured.
    #[must_use]
    pub const fn nwfs(&self) -> bool {
        self.ecap.nwfs()
    }

    /// The RID_PASID field is honoured.
    #[must_use]
    pub const fn rps(&self) -> bool {
        self.ecap.rps()
    }

    /// Width of domain-ids in bits.
    #[must_use]
    pub fn domain_id_bits(&self) -> u32 {
        4 + 2 * u32::from(self.cap.nd().value())
    }

    /// The domain-id that `raw` names: bits above the width are not looked at.
    #[must_use]
    pub fn domain_id(&self, raw: u16) -> DomainId {
        DomainId(u32::from(raw) & ((1 << self.domain_id_bits()) - 1))
    }

    /// The same in the words of all IOMMUs.
    #[must_use]
    pub fn neutral(&self) -> Capabilities {
        let gib = if self.fs1gp() { 1 << 30 } else { 0 };
        Capabilities {
            first_stage_bits: self.first_stage_bits(),
            second_stage_bits: 0,
            nested: self.ecap.nest(),
            first_stage_page_sizes: 1 << 12 | 1 << 21 | gib,
            second_stage_page_sizes: 0,
            pasid_bits: self.pasid_bits(),
            device_tlb: self.dt(),
            page_requests: self.prs(),
            supervisor: self.srs(),
            dirty_tracking: self.ecap.ssads(),
            coherent_walk: self.smpwc(),
        }
    }
}

fn check(profile: &Profile) -> Result<(), CapabilityError> {
    let widths = [
        ("host address width", profile.host_address_width, 36, 52),
        ("PASID width", profile.pasid_bits, 0, 20),
    ];
    for (what, bits, min, max) in widths {
        if !(min..=max).contains(&bits) {
            return Err(CapabilityError::Width { what, bits, min, max });
        }
    }
    let dependencies = [
        ("page requests", profile.page_requests, "device-TLBs", profile.device_tlb),
        ("supervisor requests", profile.supervisor, "PASIDs", profile.pasid_bits > 0),
    ];
    for (feature, wanted, needs, present) in dependencies {
        if wanted && !present {
            return Err(CapabilityError::Missing { feature, needs });
        }
    }
    Ok(())
}

/// CAP. MGAW is never below the physical width, so that pass-through reaches all of memory; 57 bits are
/// offered in MGAW and SAGAW together or not at all, because Linux takes its table depth from both.
fn cap_register(profile: &Profile) -> Cap {
    let (guest_bits, widths) =
        if profile.five_level { (57, 0b1100) } else { (profile.host_address_width.max(48), 0b0100) };
    Cap::builder()
        .with_esrtps(true)
        .with_esirtps(false)
        .with_ecmds(false)
        .with_fs5lp(profile.five_level)
        .with_pi(false)
        .with_fs1gp(profile.one_gib_pages)
        .with_drd(true)
        .with_dwd(true)
        .with_mamv(u6::new(18))
        .with_nfr(u8::try_from(FAULT_RECORDS - 1).unwrap_or(u8::MAX))
        .with_psi(true)
        .with_sslps(u4::new(0))
        .with_fro(u10::new(FAULT_RECORD_OFFSET / 16))
        .with_zlr(true)
        .with_mgaw(u6::masked_new(guest_bits - 1))
        .with_sagaw(u5::new(widths))
        .with_cm(false)
        .with_phmr(false)
        .with_plmr(false)
        .with_rwbf(false)
        .with_nd(u3::new(6))
        .build()
}

/// ECAP. No second stage, nesting or interrupt remapping.
fn ecap_register(profile: &Profile) -> Ecap {
    let pasid = profile.pasid_bits > 0;
    Ecap::builder()
        .with_sms(profile.page_requests)
        .with_ptrs(false)
        .with_rprivs(false)
        .with_adms(false)
        .with_rps(true)
        .with_smpwcs(true)
        .with_fsts(true)
        .with_ssts(false)
        .with_ssads(false)
        .with_smts(true)
        .with_pds(profile.device_tlb)
        .with_dit(profile.device_tlb)
        .with_pasid(pasid)
        .with_pss(u5::masked_new(profile.pasid_bits.saturating_sub(1)))
        .with_eafs(profile.extended_accessed)
        .with_nwfs(profile.device_tlb)
        .with_srs(profile.supervisor)
        .with_prs(profile.page_requests)
        .with_nest(false)
        .with_mhmv(u4::new(0))
        .with_iro(u10::new(IOTLB_OFFSET / 16))
        .with_sc(true)
        .with_pt(true)
        .with_eim(false)
        .with_ir(false)
        .with_dt(profile.device_tlb)
        .with_qi(true)
        .with_c(true)
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (name, change to the preset, CAP, ECAP). The numbers were put together by hand from the manual's tables.
    #[test]
    fn registers_are_laid_out_as_the_manual_says() {
        type Row = (&'static str, fn(&mut Profile), u64, u64);
        let rows: [Row; 4] = [
            ("preset", |_| (), 0x81d2_0780_226f_0406, 0x0403_8f9e_a000_0fc7),
            ("57 bits", |p| p.five_level = true, 0x91d2_0780_2278_0c06, 0x0403_8f9e_a000_0fc7),
            ("no 1 GiB", |p| p.one_gib_pages = false, 0x80d2_0780_226f_0406, 0x0403_8f9e_a000_0fc7),
            ("no PRI", |p| p.page_requests = false, 0x81d2_0780_226f_0406, 0x0003_8f9e_8000_0fc7),
        ];
        for (name, change, cap, ecap) in rows {
            let mut profile = Profile::svm(46);
            change(&mut profile);
            let capability = Capability::new(&profile).unwrap();
            assert_eq!(format!("{:#x}", capability.cap().raw_value()), format!("{cap:#x}"), "{name}");
            assert_eq!(format!("{:#x}", capability.ecap().raw_value()), format!("{ecap:#x}"), "{name}");
        }
    }

    #[test]
    fn impossible_mixes_name_what_is_missing() {
        type Row = (fn(&mut Profile), &'static str);
        let rows: [Row; 5] = [
            (|p| p.device_tlb = false, "page requests needs device-TLBs"),
            (|p| p.pasid_bits = 0, "supervisor requests needs PASIDs"),
            (|p| p.pasid_bits = 21, "PASID width of 21 bits is outside 0 to 20"),
            (|p| p.host_address_width = 35, "host address width of 35 bits is outside 36 to 52"),
            (|p| p.host_address_width = 64, "host address width of 64 bits is outside 36 to 52"),
        ];
        for (change, expected) in rows {
            let mut profile = Profile::svm(46);
            change(&mut profile);
            assert_eq!(Capability::new(&profile).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn neutral_capabilities_follow_the_profile() {
        let all = Capability::new(&Profile { five_level: true, ..Profile::svm(52) }).unwrap();
        let neutral = all.neutral();
        assert_eq!((neutral.first_stage_bits, neutral.pasid_bits), (57, 20));
        assert_eq!(neutral.first_stage_page_sizes, 0x4020_1000);
        assert!(neutral.page_requests && neutral.coherent_walk && !neutral.nested);
        let few = Profile {
            one_gib_pages: false,
            pasid_bits: 0,
            supervisor: false,
            page_requests: false,
            device_tlb: false,
            ..Profile::svm(52)
        };
        let few = Capability::new(&few).unwrap();
        assert_eq!((few.neutral().pasid_bits, few.neutral().first_stage_page_sizes), (0, 0x20_1000));
        assert!(!few.neutral().device_tlb && !few.ecap().pds() && !few.ecap().dit());
        assert_eq!(few.guest_address_width(), 52, "MGAW covers the physical width");
    }
}
