//! Fault conditions of DMA remapping (revision 5.10, §7.1): code, qualification, and what each request type
//! gets.

use iommu_core::FaultClass::{self, Address, Interrupt, NotPresent, Pasid, Permission, Source, Table};

/// What a request gets that meets a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// This request type cannot meet the condition.
    Never,
    /// Unsupported Request; recorded.
    Unsupported,
    /// Completer Abort; recorded.
    Abort,
    /// Success without permissions; not recorded.
    Empty,
    /// Success without permissions; recorded all the same.
    EmptyRecorded,
    /// Success with the permissions there are; not recorded.
    Effective,
    /// Of a page request: dropped, answered "Invalid Request" if it is the last of its group; recorded.
    Invalid,
}

use Reply::{Abort, Effective, Empty, EmptyRecorded, Invalid, Never, Unsupported};

/// One row of the manual's table. An untranslated request is always blocked and the condition recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Fault reason code, as recorded.
    pub code: u8,
    /// The manual's name.
    pub name: &'static str,
    /// "Fault processing disable" suppresses the record.
    pub qualified: bool,
    /// Neutral kind.
    pub class: FaultClass,
    /// Result of a translation request.
    pub translation: Reply,
    /// Result of a translated request.
    pub translated: Reply,
    /// Result of a page request.
    pub page_request: Reply,
}

macro_rules! conditions {
    ($($(#[$doc:meta])* $reason:ident = $code:literal $name:literal $qualified:ident $class:ident:
        $translation:ident $translated:ident $page_request:ident;)*) => {
        /// A condition: the manual's name for a row of [`CONDITIONS`], which it is the index of.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Reason { $($(#[$doc])* $reason,)* }

        /// All conditions, in the order of their codes.
        pub const CONDITIONS: &[Condition] = &[$(Condition {
            code: $code,
            name: $name,
            qualified: $qualified,
            class: $class,
            translation: $translation,
            translated: $translated,
            page_request: $page_request,
        },)*];

        impl Reason {
            /// All of them, in the order of [`CONDITIONS`].
            pub const ALL: &[Self] = &[$(Self::$reason,)*];
        }
    };
}

const Q: bool = true;
const N: bool = false;

// Columns: code, name, qualified, class: translation request, translated request, page request.
conditions! {
    /// Refused before any look-up, and with no code of the manual's: never recorded.
    Refused = 0x00 "-" Q Source: Unsupported Unsupported Never;
    /// Legacy: root entry not present.
    Lrt2 = 0x01 "LRT.2" N Source: Unsupported Unsupported Never;
    /// Legacy: context entry not present.
    Lct2 = 0x02 "LCT.2" Q Source: Unsupported Unsupported Never;
    /// Legacy: context entry programmed for what is not supported.
    Lct4 = 0x03 "LCT.4" Q Source: Abort Unsupported Never;
    /// Legacy: address too large.
    Lgn1 = 0x04 "LGN.1" Q Address: Empty Unsupported Never;
    /// Legacy: no write permission.
    Lgn2 = 0x05 "LGN.2" Q Permission: Effective Never Never;
    /// Legacy: no read permission.
    Lgn3 = 0x06 "LGN.3" Q Permission: Effective Never Never;
    /// Legacy: paging entry not accessible.
    Lss1 = 0x07 "LSS.1" Q Table: Abort Never Never;
    /// Legacy: root entry not accessible.
    Lrt1 = 0x08 "LRT.1" N Table: Abort Unsupported Never;
    /// Legacy: context entry not accessible.
    Lct1 = 0x09 "LCT.1" N Table: Abort Unsupported Never;
    /// Legacy: reserved bits in a root entry.
    Lrt3 = 0x0a "LRT.3" N Table: Abort Unsupported Never;
    /// Legacy: reserved bits in a context entry.
    Lct3 = 0x0b "LCT.3" Q Table: Abort Unsupported Never;
    /// Legacy: reserved bits in a paging entry.
    Lss2 = 0x0c "LSS.2" Q Table: Abort Never Never;
    /// Legacy: the translation type blocks ATS requests.
    Lct5 = 0x0d "LCT.5" Q Source: Unsupported Unsupported Never;
    /// Legacy: the output is in the interrupt range.
    Lgn4 = 0x0e "LGN.4" Q Address: Abort Unsupported Never;
    /// An access to the interrupt range that is not an interrupt.
    InterruptRange = 0x29 "29h" N Interrupt: Never Never Never;
    /// The latched root has an unsupported table mode.
    Rta1 = 0x30 "RTA.1" N Source: Abort Unsupported Invalid;
    /// A request with PASID in legacy mode.
    Rta2 = 0x31 "RTA.2" N Source: Unsupported Unsupported Never;
    /// A page request in legacy mode.
    Rta3 = 0x32 "RTA.3" N Source: Never Never Invalid;
    /// Abort-DMA mode.
    Rta4 = 0x33 "RTA.4" N Source: Unsupported Unsupported Invalid;
    /// An execute request; version 8 and later.
    Rta5 = 0x34 "RTA.5" N Permission: Unsupported Unsupported Never;
    /// Root entry not accessible.
    Srt1 = 0x38 "SRT.1" N Table: Abort Unsupported Invalid;
    /// Root entry not present.
    Srt2 = 0x39 "SRT.2" N Source: Unsupported Unsupported Invalid;
    /// Reserved bits in a root entry.
    Srt3 = 0x3a "SRT.3" N Table: Abort Unsupported Invalid;
    /// Context entry not accessible.
    Sct1 = 0x40 "SCT.1" N Table: Abort Unsupported Invalid;
    /// Context entry not present.
    Sct2 = 0x41 "SCT.2" Q Source: Unsupported Unsupported Invalid;
    /// Reserved bits in a context entry.
    Sct3 = 0x42 "SCT.3" Q Table: Abort Unsupported Invalid;
    /// Context entry that contradicts itself.
    Sct4 = 0x43 "SCT.4" Q Source: Abort Unsupported Invalid;
    /// ATS request with DTE=0.
    Sct5 = 0x44 "SCT.5" Q Source: Unsupported Unsupported Never;
    /// Request with PASID, PASIDE=0.
    Sct6 = 0x45 "SCT.6" Q Pasid: Unsupported Never Invalid;
    /// PASID beyond the directory.
    Sct7 = 0x46 "SCT.7" Q Pasid: Unsupported Unsupported Invalid;
    /// Page request with PRE=0.
    Sct8 = 0x47 "SCT.8" Q Source: Never Never Invalid;
    /// Request with the PASID that stands for none.
    Sct9 = 0x48 "SCT.9" Q Pasid: Unsupported Unsupported Invalid;
    /// Translated request with PASID, EPTR=0.
    Sct10 = 0x49 "SCT.10" Q Pasid: Never Unsupported Never;
    /// PASID directory entry not accessible.
    Spd1 = 0x50 "SPD.1" N Table: Abort Abort Invalid;
    /// PASID directory entry not present.
    Spd2 = 0x51 "SPD.2" Q Pasid: Empty Unsupported Invalid;
    /// Reserved bits in a PASID directory entry.
    Spd3 = 0x52 "SPD.3" Q Table: Abort Abort Invalid;
    /// PASID entry not accessible.
    Spt1 = 0x58 "SPT.1" N Table: Abort Abort Invalid;
    /// PASID entry not present.
    Spt2 = 0x59 "SPT.2" Q Pasid: Empty Unsupported Invalid;
    /// Reserved bits in a PASID entry.
    Spt3 = 0x5a "SPT.3" Q Table: Abort Abort Invalid;
    /// PASID entry programmed for what is not supported.
    Spt4 = 0x5b "SPT.4" Q Pasid: Abort Abort Invalid;
    /// Execute request; up to version 7.
    Spt5 = 0x5c "SPT.5" Q Permission: Empty Never Never;
    /// Privileged request, SRE=0.
    Spt6 = 0x5d "SPT.6" Q Permission: Empty Never Never;
    /// Translated address beyond the host permission table.
    Spt9 = 0x60 "SPT.9" Q Address: Never Unsupported Never;
    /// First-stage entry not accessible.
    Sfs1 = 0x70 "SFS.1" Q Table: Empty Never Never;
    /// First-stage entry not present.
    Sfs2 = 0x71 "SFS.2" Q NotPresent: Empty Never Never;
    /// Reserved bits in a first-stage entry.
    Sfs3 = 0x72 "SFS.3" Q Table: Empty Never Never;
    /// First-stage root table not accessible.
    Sfs4 = 0x73 "SFS.4" Q Table: Empty Never Never;
    /// Nested: address in a first-stage entry too large.
    Sfs5 = 0x74 "SFS.5" Q Address: Empty Never Never;
    /// Nested: second stage forbids reading the first-stage root table.
    Sfs6 = 0x75 "SFS.6" Q Permission: Empty Never Never;
    /// Nested: second stage forbids reading a first-stage table.
    Sfs7 = 0x76 "SFS.7" Q Permission: Empty Never Never;
    /// Nested: second stage forbids updating a first-stage entry.
    Sfs8 = 0x77 "SFS.8" Q Permission: Empty Never Never;
    /// Second-stage entry not accessible.
    Sss1 = 0x78 "SSS.1" Q Table: Abort Never Never;
    /// Second-stage entry not present.
    Sss2 = 0x79 "SSS.2" Q NotPresent: Empty Never Never;
    /// Reserved bits in a second-stage entry.
    Sss3 = 0x7a "SSS.3" Q Table: Abort Never Never;
    /// Second-stage root table not accessible.
    Sss4 = 0x7b "SSS.4" Q Table: Abort Never Never;
    /// Second stage: accessed or dirty bit needed, page walk not snooped.
    Sss5 = 0x7c "SSS.5" Q Table: Abort Never Never;
    /// Second stage: accessed or dirty bit could not be set.
    Sss6 = 0x7d "SSS.6" Q Table: Abort Never Never;
    /// Address not canonical.
    Sgn1 = 0x80 "SGN.1" Q Address: Empty Never Never;
    /// User request to a supervisor page.
    Sgn2 = 0x81 "SGN.2" Q Permission: Empty Never Never;
    /// Address beyond the physical width.
    Sgn4 = 0x83 "SGN.4" Q Address: Empty Unsupported Never;
    /// Address beyond the second stage's width.
    Sgn5 = 0x84 "SGN.5" Q Address: Empty Never Never;
    /// No write permission.
    Sgn6 = 0x85 "SGN.6" Q Permission: Effective Never Never;
    /// No read permission.
    Sgn7 = 0x86 "SGN.7" Q Permission: Effective Never Never;
    /// The output is in the interrupt range.
    Sgn8 = 0x87 "SGN.8" Q Address: Abort Unsupported Never;
    /// PASID wider than supported.
    Sgn10 = 0x89 "SGN.10" Q Pasid: Unsupported Unsupported Never;
    /// First stage: accessed or dirty bit needed, page walk not snooped.
    Sfs9 = 0x90 "SFS.9" Q Table: Empty Never Never;
    /// First stage: accessed or dirty bit could not be set.
    Sfs10 = 0x91 "SFS.10" Q Table: EmptyRecorded Never Never;
    /// Host permission table entry not accessible.
    Hpt1 = 0xa0 "HPT.1" Q Table: Never Abort Never;
    /// Reserved bits in a host permission table entry.
    Hpt2 = 0xa1 "HPT.2" Q Table: Never Abort Never;
    /// Host permission table root not accessible.
    Hpt3 = 0xa2 "HPT.3" Q Table: Never Abort Never;
    /// Host permission table: no permission for a zero-length read.
    Hpt4 = 0xa3 "HPT.4" Q Permission: Never Unsupported Never;
    /// Host permission table: no write permission.
    Hpt5 = 0xa4 "HPT.5" Q Permission: Never Unsupported Never;
    /// Host permission table: no read permission.
    Hpt6 = 0xa5 "HPT.6" Q Permission: Never Unsupported Never;
}

impl Reason {
    /// Its row.
    #[must_use]
    pub const fn condition(self) -> &'static Condition {
        &CONDITIONS[self as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_ascend_and_rows_are_where_their_reasons_point() {
        assert!(CONDITIONS.windows(2).all(|pair| pair[0].code < pair[1].code));
        let rows = [
            (Reason::Lgn4, 0x0e, "LGN.4"),
            (Reason::Sct10, 0x49, "SCT.10"),
            (Reason::Sfs8, 0x77, "SFS.8"),
            (Reason::Sgn10, 0x89, "SGN.10"),
            (Reason::Hpt6, 0xa5, "HPT.6"),
        ];
        for (reason, code, name) in rows {
            assert_eq!((reason.condition().code, reason.condition().name), (code, name));
        }
        assert_eq!(Reason::ALL.len(), CONDITIONS.len());
    }

    #[test]
    fn only_these_are_recorded_in_spite_of_fault_processing_disable() {
        let found: Vec<_> = CONDITIONS.iter().filter(|row| !row.qualified).map(|row| row.name).collect();
        let expected = [
            "LRT.2", "LRT.1", "LCT.1", "LRT.3", "29h", "RTA.1", "RTA.2", "RTA.3", "RTA.4", "RTA.5", "SRT.1",
            "SRT.2", "SRT.3", "SCT.1", "SPD.1", "SPT.1",
        ];
        assert_eq!(found, expected);
    }
}
