//! `vfio-bridge` on Linux's iommufd and VFIO, judged by `bridge-test`: copies of second-stage tables, over iommufd and
//! over legacy containers, with DMA of the endpoint while pages come and go.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::BTreeSet;

use svmm_tests::guest::Guest;

/// (options of the unit and the endpoint, which way is best there).
fn passes(guest: Guest, way: &str) {
    let outcome = guest.word("svmm.unbound").run("/bin/bridge-test").boot().unwrap();
    let is_result = |line: &&str| ["ok ", "not ok ", "#"].iter().any(|start| line.starts_with(start));
    outcome.console.lines().filter(is_result).for_each(|line| println!("{line}"));
    let tap = outcome.tap().unwrap();
    assert_eq!((tap.failed(), tap.skipped()), (BTreeSet::new(), BTreeSet::new()), "{}", outcome.tail());
    assert_eq!(outcome.code, 0, "{}", outcome.tail());
    assert_eq!(outcome.kernel_log().unwrap().complaints(), [""; 0]);
    let chosen = format!("# assigned devices use {way}: ");
    assert!(outcome.console.lines().any(|line| line.starts_with(&chosen)), "{chosen}");
}

/// A host that could nest.
#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn bridge_full_profile() {
    passes(Guest::new(), "nested page tables");
}

/// A host that cannot, with a second stage only.
#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn bridge_without_nesting() {
    passes(Guest::new().iommu("full,nest=off,fsts=off"), "shadow page tables over iommufd");
}
