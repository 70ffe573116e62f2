//! Linux's iommufd on the emulated unit, judged by `iommufd-test`: nested page tables, invalidations, fault queues,
//! dirty tracking.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::BTreeSet;

use svmm_tests::expect::Tap;
use svmm_tests::guest::Guest;

const PROGRAM: &str = "/bin/iommufd-test";

/// A guest that leaves the endpoint to the test program.
fn guest() -> Guest {
    Guest::new().word("svmm.unbound")
}

/// No case fails and the kernel does not complain.
fn passes(guest: &Guest, program: &str) -> Tap {
    let outcome = guest.clone().run(program).boot().unwrap();
    let is_result = |line: &&str| ["ok ", "not ok ", "#"].iter().any(|start| line.starts_with(start));
    outcome.console.lines().filter(is_result).for_each(|line| println!("{line}"));
    let tap = outcome.tap().unwrap();
    assert_eq!(tap.failed(), BTreeSet::new(), "{}", outcome.tail());
    assert_eq!(outcome.code, 0, "{}", outcome.tail());
    assert_eq!(outcome.kernel_log().unwrap().complaints(), [""; 0]);
    println!("{} cases, {} page requests, {:?}", tap.cases.len(), tap.totals.page_requests, outcome.elapsed);
    tap
}

/// Everything that the full profile offers, with device-TLB and page requests.
#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn iommufd_full_profile() {
    let tap = passes(&guest(), PROGRAM);
    assert_eq!(tap.skipped(), BTreeSet::new());
    assert!(tap.case("fault-resumes").unwrap().page_requests > 0);
}

/// Without a device-TLB every access goes to the unit, which translates and caches by itself.
#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn iommufd_without_device_tlb() {
    let tap = passes(&guest().svm("ats=off,pri=off"), &format!("{PROGRAM},--no-pri"));
    assert_eq!(tap.skipped(), BTreeSet::new());
    assert_eq!(tap.totals.page_requests, 0);
}

/// The cases about fault queues can fail: without PRI each of them does, and no other.
#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn iommufd_without_page_requests() {
    let program = format!("{PROGRAM},--filter,fault,--filter,request,--filter,identify");
    let outcome = guest().svm("pri=off").run(&program).boot().unwrap();
    let tap = outcome.tap().unwrap();
    assert_eq!(tap.failed(), tap.totals.need_page_requests, "{}", outcome.tail());
    assert!(tap.failed().len() > 5 && tap.cases.len() > tap.failed().len(), "{}", outcome.tail());
    assert_eq!(tap.totals.page_requests, 0);
}

/// A unit with a first stage only: no nesting and no dirty tracking, and the rest works.
#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn iommufd_first_stage_only() {
    let tap = passes(&guest().iommu("svm"), PROGRAM);
    let skipped = tap.skipped();
    assert!(skipped.contains("nested") && skipped.contains("dirty-second-stage"), "{skipped:?}");
    assert!(!skipped.contains("address-space-page-request"), "{skipped:?}");
    assert!(tap.cases.len() > skipped.len() + 5, "{skipped:?}");
}
