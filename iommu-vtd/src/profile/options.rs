//! The names of presets and features, as command lines have them.
//!
//! Where users of QEMU know a name, it is that one; else it is the manual's mnemonic.

use super::fields::{LargestPage, Profile};

/// A preset by its name.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// As in a command line.
    pub name: &'static str,
    /// One line for a help text.
    pub summary: &'static str,
    /// Makes it, from the physical address width of the guest's CPUs in bits.
    pub make: fn(u32) -> Profile,
}

/// All presets. The last is the default.
pub const PRESETS: [Preset; 4] = [
    Preset { name: "legacy", summary: "root tables in legacy mode only", make: Profile::legacy },
    Preset { name: "scalable", summary: "scalable mode, second stage only", make: Profile::scalable },
    Preset {
        name: "svm",
        summary: "scalable mode, first stage only, PASIDs and page requests",
        make: Profile::svm,
    },
    Preset { name: "full", summary: "everything that the model has", make: Profile::full },
];

/// A feature that is there or not.
pub(super) struct Switch {
    pub(super) name: &'static str,
    /// Other names for it, the manual's mnemonic among them if `name` is not.
    pub(super) aliases: &'static [&'static str],
    pub(super) summary: &'static str,
    field: fn(&mut Profile) -> &mut bool,
}

impl Switch {
    pub(super) fn get(&self, profile: &Profile) -> bool {
        let mut copy = *profile;
        *(self.field)(&mut copy)
    }

    pub(super) fn set(&self, profile: &mut Profile, on: bool) {
        *(self.field)(profile) = on;
    }
}

/// One constant per switch, and all of them in [`SWITCHES`].
macro_rules! switches {
    ($($constant:ident $name:literal [$($alias:literal)*] $field:ident $summary:literal;)*) => {
        $(pub(super) const $constant: Switch = Switch {
            name: $name,
            aliases: &[$($alias),*],
            summary: $summary,
            field: |profile| &mut profile.$field,
        };)*
        /// All switches.
        pub(super) const SWITCHES: &[Switch] = &[$($constant),*];
    };
}

switches! {
    SCALABLE_MODE "scalable-mode" ["x-scalable-mode" "smts"] scalable_mode "scalable mode";
    FSTS "fsts" ["x-flts" "flts"] first_stage "first stage";
    SSTS "ssts" ["slts"] second_stage "second stage in scalable mode";
    NEST "nest" [] nested "first over second stage";
    PT "pass-through" ["pt"] pass_through "pass-through";
    ADMS "abort-dma" ["adms"] abort_dma "abort-DMA mode";
    FS5LP "fs5lp" [] five_level "first stage with five levels";
    FS1GP "fs1gp" [] one_gib_pages "first stage with 1 GiB pages";
    EAFS "eafs" [] extended_accessed "extended-accessed bit";
    SSADS "ssads" ["slads"] second_stage_dirty "accessed and dirty bits in the second stage";
    COHERENT "coherent" ["c"] coherent_tables "coherent access to tables";
    SMPWCS "smpwcs" ["smpwc"] coherent_walks "coherent page walks in scalable mode";
    SC "snoop-control" ["sc"] snoop_control "snoop control";
    ZLR "zlr" [] zero_length_read "zero-length reads of write-only pages";
    RPS "rps" [] rid_pasid "RID_PASID";
    RPRIVS "rprivs" [] rid_priv "RID_PRIV";
    SRS "srs" [] supervisor "supervisor requests";
    DT "device-iotlb" ["dt"] device_tlb "device-TLBs (ATS)";
    DIT "dit" [] device_tlb_throttle "PFSID in device-TLB invalidations";
    NWFS "nwfs" [] no_write_flag "no-write flag of translation requests";
    PRS "svm" ["prs"] page_requests "page requests (PRI)";
    PDS "pds" [] page_drain "drain of page requests";
    SMS "sms" [] stop_marker "stop markers";
    QI "qi" [] queued_invalidation "queued invalidation";
    PSI "psi" [] page_selective "page-selective invalidation";
    DRAIN "dma-drain" [] dma_drain "drains of DMA";
    CM "caching-mode" ["cm"] caching_mode "caching mode";
    RWBF "rwbf" [] write_buffer_flush "software flushes write buffers";
    ESRTPS "esrtps" [] root_invalidates "a new root table invalidates";
    IR "intremap" ["ir"] interrupt_remapping "interrupt remapping";
    EIM "eim" [] extended_interrupts "interrupts to x2APIC ids";
    PI "pi" [] posted_interrupts "posted interrupts";
    ESIRTPS "esirtps" [] interrupt_table_invalidates "a new interrupt remapping table invalidates";
}

/// A feature that has a size.
pub(super) struct Number {
    pub(super) name: &'static str,
    pub(super) aliases: &'static [&'static str],
    pub(super) summary: &'static str,
    /// What it can be, in words.
    pub(super) possible: &'static str,
    pub(super) fits: fn(u32) -> bool,
    field: fn(&mut Profile) -> &mut u32,
}

impl Number {
    pub(super) fn get(&self, profile: &Profile) -> u32 {
        let mut copy = *profile;
        *(self.field)(&mut copy)
    }

    pub(super) fn set(&self, profile: &mut Profile, value: u32) {
        *(self.field)(profile) = value;
    }
}

pub(super) const AW_BITS: Number = Number {
    name: "aw-bits",
    aliases: &[],
    summary: "widest address that tables translate",
    possible: "39, 48 or 57",
    fits: |bits| matches!(bits, 39 | 48 | 57),
    field: |profile| &mut profile.address_width,
};

pub(super) const PASID_BITS: Number = Number {
    name: "pasid-bits",
    aliases: &["pss"],
    summary: "width of PASIDs, 0 for none",
    possible: "0 to 20",
    fits: |bits| bits <= 20,
    field: |profile| &mut profile.pasid_bits,
};

/// All numbers that have names in command lines.
pub(super) const NUMBERS: &[Number] = &[
    AW_BITS,
    PASID_BITS,
    Number {
        name: "domain-bits",
        aliases: &["nd"],
        summary: "width of domain-ids",
        possible: "4, 6, 8, 10, 12, 14 or 16",
        fits: |bits| bits.is_multiple_of(2) && matches!(bits, 4..=16),
        field: |profile| &mut profile.domain_id_bits,
    },
    // From 52 on, Linux takes the largest mask for "everything", and its range has 2^64 bytes.
    Number {
        name: "mamv",
        aliases: &[],
        summary: "largest address mask of an invalidation",
        possible: "0 to 51",
        fits: |mask| mask <= 51,
        field: |profile| &mut profile.max_address_mask,
    },
    Number {
        name: "mhmv",
        aliases: &[],
        summary: "largest index mask of an interrupt entry invalidation",
        possible: "0 to 15",
        fits: |mask| mask <= 15,
        field: |profile| &mut profile.max_handle_mask,
    },
];

/// What the VMM says, not the user.
pub(super) const HOST_ADDRESS_WIDTH: Number = Number {
    name: "host address width",
    aliases: &[],
    summary: "physical address width of the CPUs",
    possible: "36 to 52",
    fits: |bits| matches!(bits, 36..=52),
    field: |profile| &mut profile.host_address_width,
};

/// The option for [`LargestPage`].
pub(super) const SSLPS: &str = "sslps";

/// Values of [`SSLPS`].
pub(super) const PAGES: [(&str, LargestPage); 3] =
    [("4k", LargestPage::FourKib), ("2m", LargestPage::TwoMib), ("1g", LargestPage::OneGib)];

/// The names of all options: switches, numbers, the rest.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    let switches = SWITCHES.iter().map(|switch| switch.name);
    switches.chain(NUMBERS.iter().map(|number| number.name)).chain([SSLPS])
}

/// A help text: one line per preset and option, without indentation.
#[must_use]
pub fn help() -> String {
    let presets = PRESETS.iter().map(|preset| format!("{}: {}", preset.name, preset.summary));
    let switches = SWITCHES.iter().map(|switch| format!("{}=on|off: {}", switch.name, switch.summary));
    let numbers = NUMBERS.iter().map(|n| format!("{}={}: {}", n.name, n.possible, n.summary));
    let pages = ["sslps=4k, 2m or 1g: largest page of a second stage".to_owned()];
    let lines: Vec<String> = presets.chain(switches).chain(numbers).chain(pages).collect();
    lines.join("\n")
}
