//! What a unit offers: the capability registers of chapter 11, and the rules between their fields.
//!
//! A [`Profile`] says what is wanted; [`Capability::new`] checks the mix and yields the registers. Everything
//! else in this crate asks the [`Capability`].
//!
//! Never offered: protected memory regions, enhanced commands and performance monitoring, virtual commands, memory
//! types, host permission tables, PASIDs in translated requests, I/O permissions in second stages, resource
//! director, and the two bits that take compatibility-format interrupts away (EIMER, IRREQ), which break early boot.

use arbitrary_int::traits::Integer;
use arbitrary_int::{u3, u4, u5, u6, u10};
use iommu_core::{Capabilities, DomainId};

use crate::profile::check;
pub use crate::profile::{LargestPage, Profile, ProfileError};
use crate::spec::registers::{Cap, Ecap};

/// Offset of the IVA and IOTLB registers (ECAP.IRO * 16): between the page request and the MTRR registers.
pub const IOTLB_OFFSET: u16 = 0xf0;
/// Offset of the first fault recording register (CAP.FRO * 16): after the MTRR registers.
pub const FAULT_RECORD_OFFSET: u16 = 0x220;
/// Number of fault recording registers.
pub const FAULT_RECORDS: u16 = 8;
/// The architecture version, major in bits 7:4. 5: register-based invalidation works, drains are implied.
pub const VERSION: u8 = 0x50;

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
    /// Values out of range, or features without what they need.
    pub fn new(profile: &Profile) -> Result<Self, ProfileError> {
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

    /// Widest supported first-stage input in bits: 48, 57, or 0 without a first stage.
    #[must_use]
    pub const fn first_stage_bits(&self) -> u32 {
        match (self.ecap.fsts(), self.cap.fs5lp()) {
            (false, _) => 0,
            (true, false) => 48,
            (true, true) => 57,
        }
    }

    /// Widths that second stages may have, one bit each: 1 for 39 bits (3 levels), 2 for 48, 3 for 57 (SAGAW).
    #[must_use]
    pub fn second_stage_widths(&self) -> u8 {
        self.cap.sagaw().value()
    }

    /// Widest table that is offered in bits, the largest AGAW: so much of an address fault records hold.
    #[must_use]
    pub fn largest_table_width(&self) -> u32 {
        self.second_stage_widths().checked_ilog2().map_or(self.first_stage_bits(), |bit| 30 + 9 * bit)
    }

    /// Widest second stage in scalable mode, or in legacy mode if there is no other; 0: there is none.
    #[must_use]
    pub fn second_stage_bits(&self) -> u32 {
        if self.ecap.smts() && !self.ecap.ssts() {
            return 0;
        }
        let widths = [(0b1000, 57), (0b0100, 48), (0b0010, 39)];
        widths.into_iter().find(|(bit, _)| self.second_stage_widths() & bit != 0).map_or(0, |(_, bits)| bits)
    }

    /// Second-stage block sizes, as a mask of powers of two in bytes.
    #[must_use]
    pub fn second_stage_page_sizes(&self) -> u64 {
        let large = self.cap.sslps().value();
        let size = |bit: u8, size: u64| if large & bit != 0 { size } else { 0 };
        1 << 12 | size(0b01, 1 << 21) | size(0b10, 1 << 30)
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
        let first = if self.ecap.fsts() { 1 << 12 | 1 << 21 } else { 0 };
        let gib = if self.fs1gp() { 1 << 30 } else { 0 };
        let second_stage_bits = self.second_stage_bits();
        Capabilities {
            first_stage_bits: self.first_stage_bits(),
            second_stage_bits,
            nested: self.ecap.nest(),
            first_stage_page_sizes: first | gib,
            second_stage_page_sizes: if second_stage_bits == 0 { 0 } else { self.second_stage_page_sizes() },
            pasid_bits: self.pasid_bits(),
            device_tlb: self.dt(),
            page_requests: self.prs(),
            supervisor: self.srs(),
            extended_accessed: self.eafs(),
            no_write_flag: self.nwfs(),
            dirty_tracking: self.ecap.ssads(),
            coherent_walk: if self.ecap.smts() { self.smpwc() } else { self.ecap.c() },
        }
    }
}

/// CAP. MGAW is never below the physical width, so that pass-through reaches all of memory; 57 bits are
/// offered in MGAW and SAGAW together or not at all, because Linux takes its table depth from both.
fn cap_register(profile: &Profile) -> Cap {
    let bits = profile.address_width.max(profile.host_address_width);
    Cap::builder()
        .with_esrtps(profile.root_invalidates)
        .with_esirtps(profile.interrupt_table_invalidates)
        .with_ecmds(false)
        .with_fs5lp(profile.five_level)
        .with_pi(profile.posted_interrupts)
        .with_fs1gp(profile.one_gib_pages)
        .with_drd(profile.dma_drain)
        .with_dwd(profile.dma_drain)
        .with_mamv(u6::masked_new(profile.max_address_mask))
        .with_nfr(u8::try_from(FAULT_RECORDS - 1).unwrap_or(u8::MAX))
        .with_psi(profile.page_selective)
        .with_sslps(u4::new(match profile.second_stage_pages {
            LargestPage::FourKib => 0b00,
            LargestPage::TwoMib => 0b01,
            LargestPage::OneGib => 0b11,
        }))
        .with_fro(u10::new(FAULT_RECORD_OFFSET / 16))
        .with_zlr(profile.zero_length_read)
        .with_mgaw(u6::masked_new(bits - 1))
        .with_sagaw(widths(profile))
        .with_cm(profile.caching_mode)
        .with_phmr(false)
        .with_plmr(false)
        .with_rwbf(profile.write_buffer_flush)
        .with_nd(u3::masked_new((profile.domain_id_bits - 4) / 2))
        .build()
}

/// SAGAW: all widths of second stages; of a unit for the first stage only, those that it has.
fn widths(profile: &Profile) -> u5 {
    let first_only = profile.first_stage && !profile.second_stage;
    let offered = |bits: u32| bits <= profile.address_width && !(first_only && bits < 48);
    let bit = |bits: u32, position: u8| if offered(bits) { 1 << position } else { 0 };
    u5::new(bit(39, 1) | bit(48, 2) | bit(57, 3))
}

/// ECAP.
fn ecap_register(profile: &Profile) -> Ecap {
    let handles = if profile.interrupt_remapping { profile.max_handle_mask } else { 0 };
    Ecap::builder()
        .with_sms(profile.stop_marker)
        .with_ptrs(false)
        .with_rprivs(profile.rid_priv)
        .with_adms(profile.abort_dma)
        .with_rps(profile.rid_pasid)
        .with_smpwcs(profile.coherent_walks)
        .with_fsts(profile.first_stage)
        .with_ssts(profile.second_stage)
        .with_ssads(profile.second_stage_dirty)
        .with_smts(profile.scalable_mode)
        .with_pds(profile.page_drain)
        .with_dit(profile.device_tlb_throttle)
        .with_pasid(profile.pasid_bits > 0)
        .with_pss(u5::masked_new(profile.pasid_bits.saturating_sub(1)))
        .with_eafs(profile.extended_accessed)
        .with_nwfs(profile.no_write_flag)
        .with_srs(profile.supervisor)
        .with_prs(profile.page_requests)
        .with_nest(profile.nested)
        .with_mhmv(u4::masked_new(handles))
        .with_iro(u10::new(IOTLB_OFFSET / 16))
        .with_sc(profile.snoop_control)
        .with_pt(profile.pass_through)
        .with_eim(profile.extended_interrupts)
        .with_ir(profile.interrupt_remapping)
        .with_dt(profile.device_tlb)
        .with_qi(profile.queued_invalidation)
        .with_c(profile.coherent_tables)
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (name, change to the preset, CAP, ECAP). The numbers were put together by hand from the manual's tables.
    #[test]
    fn registers_are_laid_out_as_the_manual_says() {
        type Row = (&'static str, fn(&mut Profile), u64, u64);
        let rows: [Row; 8] = [
            ("legacy", |p| *p = Profile::legacy(46), 0xc0d2_078c_226f_0606, 0x0000_0202_00f0_0fdf),
            ("preset", |_| (), 0xc1d2_0780_226f_0406, 0x0403_8f9e_a0f0_0fdf),
            (
                "scalable",
                |p| *p = Profile { interrupt_remapping: false, ..Profile::scalable(46) }.settled(),
                0x80d2_078c_226f_0606,
                0x0003_6f9a_0000_0fc7,
            ),
            (
                "all but interrupts",
                |p| {
                    let full = Profile::full(46).with_address_width(57);
                    *p = Profile { caching_mode: true, interrupt_remapping: false, ..full }.settled();
                },
                0x91d2_078c_2278_0e86,
                0x0433_ef9e_a400_0fc7,
            ),
            ("57 bits", |p| *p = p.with_address_width(57), 0xd1d2_0780_2278_0c06, 0x0403_8f9e_a0f0_0fdf),
            ("no 1 GiB", |p| p.one_gib_pages = false, 0xc0d2_0780_226f_0406, 0x0403_8f9e_a0f0_0fdf),
            (
                "no PRI",
                |p| (p.page_requests, p.stop_marker) = (false, false),
                0xc1d2_0780_226f_0406,
                0x0003_8f9e_80f0_0fdf,
            ),
            (
                "posted interrupts, few handles",
                |p| (p.posted_interrupts, p.max_handle_mask, p.extended_interrupts) = (true, 3, false),
                0xc9d2_0780_226f_0406,
                0x0403_8f9e_a030_0fcf,
            ),
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
    fn neutral_capabilities_follow_the_profile() {
        let neutral = |profile: Profile| Capability::new(&profile).unwrap().neutral();
        let svm = neutral(Profile::svm(52).with_address_width(57));
        assert_eq!((svm.first_stage_bits, svm.second_stage_bits, svm.pasid_bits), (57, 0, 20));
        assert_eq!((svm.first_stage_page_sizes, svm.second_stage_page_sizes), (0x4020_1000, 0));
        assert!(svm.page_requests && svm.coherent_walk && !svm.nested);
        let legacy = neutral(Profile::legacy(46).with_address_width(39));
        assert_eq!((legacy.first_stage_bits, legacy.second_stage_bits, legacy.pasid_bits), (0, 39, 0));
        assert_eq!((legacy.first_stage_page_sizes, legacy.second_stage_page_sizes), (0, 0x4020_1000));
        assert!(legacy.coherent_walk && !legacy.page_requests);
        let few =
            Profile { one_gib_pages: false, pasid_bits: 0, device_tlb: false, ..Profile::svm(52) }.settled();
        let few = Capability::new(&few).unwrap();
        assert_eq!((few.neutral().pasid_bits, few.neutral().first_stage_page_sizes), (0, 0x20_1000));
        assert!(!few.neutral().device_tlb && !few.prs() && !few.ecap().pds() && !few.ecap().dit());
        assert_eq!(few.guest_address_width(), 52, "MGAW covers the physical width");
    }
}
