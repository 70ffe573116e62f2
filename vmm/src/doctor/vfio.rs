//! `svmm doctor --vfio`: what a guest would get of a device, and what stands in the way of more.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use iommu_core::{Capabilities, SourceId};
use iommu_vtd::{Capability, Platform, Profile};
use vfio_bridge::NestedIommu;
use vfio_bridge::caps::{Feature, Offer};
use vfio_bridge::choice::Doors as _;

use crate::config::{Complaint, Inherited, Named};
use crate::vfio::doors::HostDoors;
use crate::vfio::refusal::Refusal;

/// What a user knows each feature by.
const FEATURES: [(Feature, &str); 11] = [
    (Feature::Nesting, "first-stage tables of the guest's own, nested on the host's"),
    (Feature::Pasid, "PASIDs: shared virtual memory"),
    (Feature::DeviceTlb, "ATS: a device-TLB"),
    (Feature::PageRequests, "PRI: page requests, so that memory need not be resident"),
    (Feature::FiveLevel, "57-bit addresses"),
    (Feature::GibPages, "1 GiB pages in the first stage"),
    (Feature::CoherentWalk, "coherent table walks"),
    (Feature::Supervisor, "supervisor requests"),
    (Feature::WriteProtect, "write protection of supervisor requests"),
    (Feature::ExtendedAccessed, "extended accessed bits"),
    (Feature::DirtyTracking, "dirty tracking by the host; no guest sees it"),
];

/// Looks at a device and prints what was found; whether it can be assigned.
pub(super) fn run(device: &Named, iommufd: Option<&Inherited>) -> bool {
    match examine(device, iommufd) {
        Ok(offer) => {
            print!("{}", report(device, &offer));
            true
        }
        Err(complaint) => {
            println!("vfio     {complaint}");
            false
        }
    }
}

fn examine(device: &Named, iommufd: Option<&Inherited>) -> Result<Offer, Complaint> {
    let source = SourceId::from_bdf(0, 1, 0);
    let doors = HostDoors::new(BTreeMap::from([(source, device)]), iommufd, None);
    let thing = format!("--vfio {device}");
    let kernel = doors.iommufd();
    let result = kernel.and_then(|kernel| {
        let file = doors.device(source)?;
        NestedIommu::new(kernel)?.examine(source, file)
    });
    result.map_err(|error| {
        let noted = Refusal::most_telling(doors.refusals());
        let iommufd = doors.iommufd_name();
        let thing = if error.object.contains("device") { &thing } else { &iommufd };
        noted.unwrap_or_else(|| Refusal::of(thing, Some(device), &error).complaint)
    })
}

/// All that is to say about a device that can be had. **Pure.**
fn report(device: &Named, offer: &Offer) -> String {
    let mut text = format!("vfio     {device}: {}\n", way(offer));
    let mut line = |line: String| _ = writeln!(text, "{line}");
    line("host offers".into());
    for (feature, name) in FEATURES {
        match offer.why_not(feature) {
            None => line(format!("  yes    {name}")),
            Some(reason) => line(format!("  no     {name}\n         -> {reason}")),
        }
    }
    line("guest sees".into());
    line(format!("  of the device: {}", services(&offer.capabilities, offer)));
    // The widths are those of this host's CPUs in a run; they change none of what follows.
    let platform = Platform { host_address_width: 46, five_level: true };
    let Ok(full) = Profile::parse("full", platform) else { return text };
    let (profile, dropped) = full.behind(&offer.capabilities);
    match Capability::new(&profile) {
        Ok(_) => line("  of its unit: the profile full, in caching mode, but for".into()),
        // The host carries out no stage at all: then copies of second stages are made, whatever it is.
        Err(_) => line("  of its unit: second-stage tables only, copied by svmm".into()),
    }
    if Capability::new(&profile).is_ok() {
        dropped.iter().for_each(|it| line(format!("    {:<14} {}", it.feature, it.reason)));
    }
    text
}

fn way(offer: &Offer) -> &'static str {
    match (offer.why_not(Feature::Nesting), offer.why_not(Feature::Pasid)) {
        (None, None) => "can be assigned, with shared virtual memory",
        (None, Some(_)) => "can be assigned; nested page tables without PASIDs, so no shared virtual memory",
        (Some(_), _) => "can be assigned; shadow page tables, so no shared virtual memory",
    }
}

fn services(capabilities: &Capabilities, offer: &Offer) -> String {
    let mut all = Vec::new();
    if capabilities.pasid_bits > 0 {
        let bits =
            [(offer.execute, " with execute requests"), (offer.privileged, " with privileged requests")];
        let more: String = bits.iter().filter(|(has, _)| *has).map(|(_, text)| *text).collect();
        all.push(format!("PASID of {} bits{more}", capabilities.pasid_bits));
    }
    all.extend(capabilities.device_tlb.then(|| "ATS".to_owned()));
    all.extend((capabilities.device_tlb && capabilities.page_requests).then(|| "PRI".to_owned()));
    if all.is_empty() { "no address translation services".to_owned() } else { all.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vfio_bridge::testkit::{FULL_INFO, FakeKernel, config_space};

    fn offer(kernel: &FakeKernel, ats: bool, pri: bool) -> Offer {
        let file = kernel.add_device_with(0, FULL_INFO, config_space(ats, pri));
        let host = NestedIommu::new(std::sync::Arc::new(kernel.clone())).unwrap();
        host.examine(SourceId(8), Box::new(file)).unwrap()
    }

    fn said(offer: &Offer) -> String {
        report(&Named::Address("0000:6a:01.0".into()), offer)
    }

    #[test]
    fn everything_that_is_there_is_told() {
        let text = said(&offer(&FakeKernel::new(), true, true));
        assert!(
            text.starts_with("vfio     0000:6a:01.0: can be assigned, with shared virtual memory\n"),
            "{text}"
        );
        assert!(!text.contains("  no  "), "{text}");
        let services =
            "of the device: PASID of 20 bits with execute requests with privileged requests, ATS, PRI\n";
        assert!(text.contains(services), "{text}");
        assert!(text.contains("    ssts           the host does not carry out"), "{text}");
    }

    /// (name, kernel, ATS, PRI, what is said)
    #[test]
    fn every_missing_feature_has_its_reason() {
        let (whole, no_pasid, no_nesting) = (FakeKernel::new(), FakeKernel::new(), FakeKernel::new());
        no_pasid.without_pasid();
        no_nesting.without_nesting();
        for (name, kernel, ats, pri, expected) in [
            (
                "no PRI",
                &whole,
                true,
                false,
                "  no     PRI: page requests, so that memory need not be resident\n         -> host: PRI",
            ),
            ("no ATS", &whole, false, true, "-> host: ATS is off (no ATSR or SATC in DMAR"),
            ("no PASID", &no_pasid, true, true, "without PASIDs, so no shared"),
            (
                "why no PASID",
                &no_pasid,
                true,
                true,
                "-> kernel: page tables cannot be attached by PASID; needs Linux 6.15",
            ),
            ("no nesting", &no_nesting, true, true, "can be assigned; shadow page tables"),
            (
                "why no nesting",
                &no_nesting,
                true,
                true,
                "-> kernel: scalable mode is off; boot with intel_iommu=on,sm_on",
            ),
            ("the unit without", &no_nesting, true, true, "of its unit: second-stage tables only"),
        ] {
            let text = said(&offer(kernel, ats, pri));
            assert!(text.contains(expected), "{name}: {text}");
        }
    }

    #[test]
    fn every_feature_has_a_name() {
        let none = Offer::shadow(48);
        for missing in &none.missing {
            assert!(FEATURES.iter().any(|(feature, _)| *feature == missing.feature), "{missing:?}");
        }
    }
}
