//! What is left of a profile where functions have a host's IOMMU behind them. **Pure.**

use iommu_core::Capabilities;

use super::fields::Profile;
use super::options::{
    AW_BITS, DT, EAFS, FS1GP, FS5LP, FSTS, NEST, NWFS, PASID_BITS, PDS, PRS, RPRIVS, RPS, SC, SMPWCS, SRS,
    SSADS, SSTS, Switch,
};

/// A feature that a profile has lost because of its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// The option's name.
    pub feature: &'static str,
    /// What the host lacks.
    pub reason: &'static str,
}

/// A feature, whether hosts with these capabilities carry it out, and what is missing if not.
type Row = (Switch, fn(&Capabilities) -> bool, &'static str);

const ROWS: [Row; 16] = [
    (FSTS, |host| host.first_stage_bits >= 48, "the host cannot nest first stages (its ECAP.NEST, Linux)"),
    (SSTS, |host| host.second_stage_bits >= 39, "the host does not carry out second stages of the guest's"),
    (NEST, |host| host.nested, "the host cannot put a second stage of the guest's between"),
    (FS5LP, |host| host.first_stage_bits >= 57, "the host has no five-level first stage (its CAP.FS5LP)"),
    (
        FS1GP,
        |host| host.first_stage_page_sizes & 1 << 30 != 0,
        "the host has no 1 GiB pages in the first stage (its CAP.FS1GP)",
    ),
    (EAFS, |host| host.extended_accessed, "the host keeps no extended-accessed bit (its ECAP.EAFS)"),
    (SSADS, |_| false, "the host does not mark second stages of the guest's"),
    (SMPWCS, |host| host.coherent_walk, "the host's walks are not coherent (its ECAP.SMPWCS)"),
    (SC, |_| false, "snooping is the host's to decide"),
    (RPS, |_| false, "the host always takes PASID 0 for requests without PASID"),
    (RPRIVS, |_| false, "the host decides whether requests without PASID are privileged"),
    (SRS, |host| host.supervisor, "the host serves no supervisor requests (its ECAP.SRS)"),
    (DT, |host| host.device_tlb, "device-TLBs are off on the host (its ECAP.DT, the device's ATS)"),
    (NWFS, |host| host.no_write_flag, "the host does not honour the no-write flag (its ECAP.NWFS)"),
    (PRS, |host| host.page_requests, "page requests are off on the host (its ECAP.PRS, the device's PRI)"),
    (PDS, |host| host.page_requests, "page requests are off on the host (its ECAP.PDS, the device's PRI)"),
];

impl Profile {
    /// What a unit may offer when functions behind it are carried out by a host with these capabilities
    /// ([`HostIommu::capabilities`](iommu_core::HostIommu::capabilities)): what both have. And what that costs, in
    /// an order that does not change.
    ///
    /// Caching mode is on: a driver announces new entries only with it. Legacy tables cannot be taken away from a
    /// guest; if the host does not carry out second stages, functions under such tables are blocked, but for
    /// pass-through. What is left may be nothing that hardware could be ([`Capability::new`](crate::Capability::new)
    /// says so): for example a host without first stages, and a profile without second ones.
    #[must_use]
    pub fn behind(self, host: &Capabilities) -> (Self, Vec<Dropped>) {
        let mut profile = Self { caching_mode: true, ..self };
        let mut dropped = Vec::new();
        for (feature, offered, reason) in &ROWS {
            if feature.get(&profile) && !offered(host) {
                feature.set(&mut profile, false);
                dropped.push(Dropped { feature: feature.name, reason });
            }
        }
        if profile.pasid_bits > host.pasid_bits {
            profile.pasid_bits = host.pasid_bits;
            let reason = "PASIDs are narrower on the host (its ECAP.PSS, the device's PASID width)";
            dropped.push(Dropped { feature: PASID_BITS.name, reason });
        }
        if !profile.first_stage && host.second_stage_bits < profile.address_width {
            let width = [57, 48, 39].into_iter().find(|width| *width <= host.second_stage_bits);
            profile.address_width = width.unwrap_or(profile.address_width);
            let reason = "addresses are narrower on the host";
            dropped.extend(width.map(|_| Dropped { feature: AW_BITS.name, reason }));
        }
        (profile.settled(), dropped)
    }
}

#[cfg(test)]
mod tests {
    use iommu_core::testkit::NESTING as HOST;

    use super::*;
    use crate::Capability;

    /// A host that copies second stages.
    const SHADOW: Capabilities =
        Capabilities { second_stage_bits: 48, pasid_bits: 16, coherent_walk: true, ..Capabilities::NONE };

    fn full() -> Profile {
        Profile::full(46).with_address_width(57)
    }

    fn names(dropped: &[Dropped]) -> Vec<&'static str> {
        dropped.iter().map(|dropped| dropped.feature).collect()
    }

    #[test]
    fn the_best_host_leaves_shared_virtual_memory() {
        let (profile, dropped) = full().behind(&HOST);
        assert_eq!(names(&dropped), ["ssts", "nest", "ssads", "snoop-control", "rps", "rprivs"]);
        let expected = Profile {
            second_stage: false,
            nested: false,
            second_stage_dirty: false,
            snoop_control: false,
            rid_pasid: false,
            rid_priv: false,
            caching_mode: true,
            ..full()
        };
        assert_eq!(profile, expected);
        let neutral = Capability::new(&profile).unwrap().neutral();
        assert_eq!(neutral.intersect(&HOST), Capabilities { dirty_tracking: false, ..HOST });
    }

    #[test]
    fn a_host_that_copies_leaves_a_second_stage() {
        let (profile, dropped) = full().behind(&SHADOW);
        assert!(profile.second_stage && !profile.first_stage && !profile.page_requests);
        assert_eq!((profile.address_width, profile.pasid_bits), (48, 16));
        assert_eq!(names(&dropped)[..3], ["fsts", "nest", "fs5lp"]);
        assert!(names(&dropped).ends_with(&["pasid-bits", "aw-bits"]));
        assert_eq!(Capability::new(&profile).unwrap().second_stage_bits(), 48);
        assert!(Capability::new(&Profile::svm(46).behind(&SHADOW).0).is_err(), "no stage is left");
        assert!(Capability::new(&full().behind(&Capabilities::NONE).0).is_err());
    }

    /// (name, what the host lacks, what the profile loses besides)
    #[test]
    fn each_bit_of_the_host_costs_its_feature() {
        type Line = (&'static str, fn(&mut Capabilities), &'static [&'static str]);
        let lines: [Line; 10] = [
            ("no first stage", |c| c.first_stage_bits = 0, &["fsts", "fs5lp"]),
            ("48 bits", |c| c.first_stage_bits = 48, &["fs5lp"]),
            ("no 1 GiB", |c| c.first_stage_page_sizes = 0x20_1000, &["fs1gp"]),
            ("no EA", |c| c.extended_accessed = false, &["eafs"]),
            ("not coherent", |c| c.coherent_walk = false, &["smpwcs"]),
            ("no supervisor", |c| c.supervisor = false, &["srs"]),
            ("no ATS", |c| c.device_tlb = false, &["device-iotlb"]),
            ("no NW", |c| c.no_write_flag = false, &["nwfs"]),
            ("no PRI", |c| c.page_requests = false, &["svm", "pds"]),
            ("narrow PASIDs", |c| c.pasid_bits = 8, &["pasid-bits"]),
        ];
        let (_, always) = full().behind(&HOST);
        for (name, change, lost) in lines {
            let mut host = HOST;
            change(&mut host);
            let (profile, dropped) = full().behind(&host);
            let mut found = names(&dropped);
            found.retain(|feature| !names(&always).contains(feature));
            assert_eq!(found, lost, "{name}");
            if profile.first_stage {
                let neutral = Capability::new(&profile).expect(name).neutral();
                assert_eq!(neutral.intersect(&host).pasid_bits, neutral.pasid_bits, "{name}");
                assert_eq!(neutral.intersect(&host).first_stage_bits, neutral.first_stage_bits, "{name}");
            }
            assert_eq!(profile.behind(&host), (profile, vec![]), "{name}: nothing more to lose");
        }
    }
}
