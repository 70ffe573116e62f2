//! Shared virtual memory in a stock guest, judged by `svm-selftest`.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::BTreeSet;

use svmm_tests::expect::Tap;
use svmm_tests::guest::{Guest, Outcome};

const SELFTEST: &str = "/bin/svm-selftest";

/// Cases that show the main job: pages brought by the guest's kernel because the device asked.
const SERVED: [&str; 6] = [
    "demand-fault",
    "demand-fault-source",
    "discard-destination",
    "all-queues-at-once",
    "fork-copy-on-write",
    "soak",
];

/// All green, page requests where they belong, and a kernel that does not complain.
fn passes(guest: &Guest) -> (Outcome, Tap) {
    let outcome = guest.clone().run(SELFTEST).boot().unwrap();
    let tap = outcome.tap().unwrap();
    assert_eq!(tap.failed(), BTreeSet::new(), "{}", outcome.tail());
    assert_eq!(outcome.code, 0, "{}", outcome.tail());
    for name in SERVED {
        assert!(tap.case(name).unwrap().page_requests > 0, "{name} asked for no page");
    }
    assert!(tap.totals.page_requests > 1000, "{} page requests", tap.totals.page_requests);
    assert_eq!(outcome.kernel_log().unwrap().complaints(), [""; 0]);
    println!(
        "userspace after {:?} ms, {} cases, {} page requests, {:?}",
        outcome.boot_ms(),
        tap.cases.len(),
        tap.totals.page_requests,
        outcome.elapsed
    );
    (outcome, tap)
}

/// What the stock driver says of itself, and the way of one page request.
#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn two_cpus() {
    let (outcome, tap) = passes(&Guest::new().cpus(2));
    let log = outcome.kernel_log().unwrap();
    assert!(log.says("DMAR: Host address width"), "{}", outcome.tail());
    assert!(log.says("DMAR: Intel(R) Virtualization Technology for Directed I/O"), "{}", outcome.tail());
    let timeline = tap.timeline.as_ref().unwrap();
    let moments = [timeline.miss, timeline.sent, timeline.queued, timeline.response, timeline.retry];
    assert!(moments.is_sorted() && timeline.retry > 0.0, "{timeline:?}");
    assert_eq!(tap.skipped(), BTreeSet::from(["memory-above-4-gib".to_owned()]));
}

#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn four_cpus_elf_kernel() {
    passes(&Guest::new().cpus(4).elf());
}

/// Buffers above the gap below 4 GiB.
#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn six_gib() {
    let (_, tap) = passes(&Guest::new().cpus(2).memory_mib(6144));
    assert_eq!(tap.skipped(), BTreeSet::new());
}

/// The cases that need page requests can fail: without PRI each of them does, and no other.
#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn without_pri_exactly_its_cases_fail() {
    let outcome = Guest::new().svm("pri=off").run(SELFTEST).boot().unwrap();
    let tap = outcome.tap().unwrap();
    assert_eq!(tap.failed(), tap.totals.need_page_requests, "{}", outcome.tail());
    assert_eq!(outcome.code, svmm_tests::guest::STATUS_BASE + 1, "{}", outcome.tail());
    assert_eq!(tap.totals.page_requests, 0);
    assert!(tap.cases.len() > tap.failed().len() + 10);
}
