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
