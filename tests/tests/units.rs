//! Remapping units as users describe them: several in one machine, their devices, and what the guest makes of each.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::BTreeSet;

use svmm_tests::guest::{Guest, Outcome};
use svmm_tests::image::{BYTES, Image};

const FIRST: &str = "unit fed90000 has ";
const SECOND: &str = "unit fed91000 has ";
const ENDPOINT: &str = "0000:00:01.0";
const OTHER_ENDPOINT: &str = "0000:00:02.0";
const DISK: &str = "0000:00:10.0";
const ENGINE: &str = "SVMM0001:00";
const OTHER_ENGINE: &str = "SVMM0001:01";

/// A few cases with page requests.
const SELFTEST: &str = "/bin/svm-selftest,--filter,demand";

/// A guest that first tells of its units.
fn guest() -> Guest {
    Guest::new().run("@units")
}

/// What programs told, and a kernel that does not complain.
fn green(guest: &Guest) -> Outcome {
    let outcome = guest.boot().unwrap();
    let tap = outcome.tap().unwrap();
    assert_eq!(tap.failed(), BTreeSet::new(), "{}", outcome.tail());
    assert_eq!(outcome.code, 0, "{}", outcome.tail());
    assert_eq!(outcome.kernel_log().unwrap().complaints(), [""; 0]);
    println!("userspace after {:?} ms, {} cases, {:?}", outcome.boot_ms(), tap.cases.len(), outcome.elapsed);
    outcome
}

fn has(outcome: &Outcome, unit: &str, device: &str) -> bool {
    outcome.units().contains(&format!("{unit}{device}").as_str())
}

/// The endpoint of the main job behind the second unit, another behind the first.
#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn an_endpoint_behind_each_of_two_units() {
    let guest =
        guest().cpus(2).iommu("full").iommu("svm,id=b").option("--svm=iommu=b").option("--svm").without_svm();
    let outcome = green(&guest.run(SELFTEST));
    assert!(outcome.tap().unwrap().totals.page_requests > 0, "{}", outcome.tail());
    let units = outcome.units();
    assert!(has(&outcome, SECOND, ENDPOINT), "{units:?}");
    assert!(has(&outcome, FIRST, OTHER_ENDPOINT), "{units:?}");
}

/// Requests of each DMA engine outside PCI reach the unit that has it in scope, and carry the name it has there. The
/// units are in legacy mode: in scalable mode, Linux has tables for PCI functions only.
#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn dma_engines_outside_pci_are_behind_their_units() {
    let guest = guest()
        .without_svm()
        .iommu("legacy")
        .iommu("legacy,id=b")
        .option("--acpi-dma=iommu=b")
        .option("--acpi-dma");
    let outcome = guest.run("/bin/dma-engine,2").boot().unwrap();
    assert_eq!(outcome.code, 0, "{}", outcome.tail());
    let units = outcome.units();
    assert!(has(&outcome, SECOND, ENGINE) && has(&outcome, FIRST, OTHER_ENGINE), "{units:?}");
    let log = outcome.kernel_log().unwrap();
    for requester in ["ff:10.0", "ff:11.0"] {
        let fault = format!("[DMA Read NO_PASID] Request device [0000:{requester}] fault addr 0x100000");
        assert!(log.says(&fault), "{requester}: {}", outcome.tail());
    }
}

/// A unit in legacy mode beside one in scalable mode: a stock driver's DMA goes through its second stage.
#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn a_disk_behind_a_legacy_unit_beside_an_endpoint() {
    let (image, base) = (Image::new("old").unwrap(), Image::new("new").unwrap());
    let guest = guest()
        .cpus(2)
        .iommu("full")
        .iommu("legacy,id=old")
        .disk(&format!("{},id=data,iommu=old", image.text()))
        .disk(&format!("{},readonly", base.text()))
        .run(&format!("/bin/disk-check,vda,{},data,vdb", BYTES / 512));
    let outcome = green(&guest);
    let units = outcome.units();
    assert!(has(&outcome, FIRST, ENDPOINT) && has(&outcome, SECOND, DISK), "{units:?}");
    assert!(image.is_written() && base.is_untouched(), "a file on the host differs");
}

/// Profiles without a first stage: a stock driver's tables are second stages.
const SECOND_STAGES: [&str; 4] = ["legacy", "legacy,aw-bits=39", "scalable", "scalable,aw-bits=57"];

/// A stock driver's DMA in each of them.
#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn a_disk_behind_each_second_stage() {
    for profile in SECOND_STAGES {
        let (image, base) = (Image::new("data").unwrap(), Image::new("base").unwrap());
        let guest = guest()
            .without_svm()
            .iommu(profile)
            .disk(&format!("{},id=data", image.text()))
            .disk(&format!("{},readonly", base.text()))
            .run(&format!("/bin/disk-check,vda,{},data,vdb", BYTES / 512));
        let outcome = green(&guest);
        assert!(has(&outcome, FIRST, DISK), "{profile}: {:?}", outcome.units());
        assert!(image.is_written() && base.is_untouched(), "{profile}: a file on the host differs");
    }
}

/// Memory that firmware reserved for the endpoint is mapped one to one for it from the start; and the rest that the
/// table tells of a unit arrives.
#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn reserved_memory_is_mapped_for_its_device() {
    let guest = guest().iommu("full,node=0").svm("rmrr-mib=2,satc=on").run("@dmesg").run("@exit:0");
    let outcome = guest.boot().unwrap();
    assert_eq!(outcome.code, 0, "{}", outcome.tail());
    let direct = format!("{FIRST}{ENDPOINT} direct 0x000000001fe00000 0x000000001fffffff");
    assert!(outcome.units().contains(&direct.as_str()), "{:?}", outcome.units());
    let log = outcome.kernel_log().unwrap();
    assert!(log.says("DMAR: RMRR base: 0x0000001fe00000 end: 0x0000001fffffff"), "{}", outcome.tail());
    assert!(log.says("DMAR: SATC flags: 0x0"), "{}", outcome.tail());
    assert!(log.says("DMAR: RHSA base: 0x000000fed90000 proximity domain: 0x0"), "{}", outcome.tail());
    assert!(log.says("ACPI: SRAT 0x"), "{}", outcome.tail());
    assert_eq!(log.complaints(), [""; 0]);
}
