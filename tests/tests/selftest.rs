//! Shared virtual memory in a stock guest, judged by `svm-selftest`.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::BTreeSet;
use std::time::Duration;

use svmm_tests::expect::Tap;
use svmm_tests::guest::{Guest, Outcome};

const SELFTEST: &str = "/bin/svm-selftest";
/// All cases, and less of what is only more of the same.
const BRIEF: &str = "/bin/svm-selftest,--operations,200";
/// How long all cases may take.
const LONG: Duration = Duration::from_secs(600);

/// Cases that apply to no machine that is as it is: the PASIDs are too many to run out, Linux (seen in 7.3.4) lets no page
/// request wait for a userfaultfd handler, and the driver gives no interrupts back.
const NOWHERE: [&str; 3] =
    ["pasid-exhaustion", "userfault-handler-is-asked", "driver-unbound-with-work-in-flight"];

/// Cases that may be skipped or not. Compaction leaves pages alone where memory is plenty, the search for equal pages
/// takes its time, and five levels of page tables are the processor's to have.
const UNSTEADY: [&str; 3] = ["migration-under-way", "merged-pages", "above-47-bits"];

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
fn passes(guest: &Guest, program: &str) -> (Outcome, Tap) {
    let outcome = guest.clone().patience(LONG).run(program).boot().unwrap();
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

/// What was skipped, but for what may or may not be.
fn steadily_skipped(tap: &Tap) -> BTreeSet<String> {
    tap.skipped().into_iter().filter(|case| !UNSTEADY.contains(&case.as_str())).collect()
}

/// These, and those that apply nowhere.
fn names(cases: &[&str]) -> BTreeSet<String> {
    cases.iter().copied().chain(NOWHERE).map(str::to_owned).collect()
}

/// What the stock driver says of itself, and the way of one page request.
#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn two_cpus() {
    let (outcome, tap) = passes(&Guest::new().cpus(2), SELFTEST);
    let log = outcome.kernel_log().unwrap();
    assert!(log.says("DMAR: Host address width"), "{}", outcome.tail());
    assert!(log.says("DMAR: Intel(R) Virtualization Technology for Directed I/O"), "{}", outcome.tail());
    let timeline = tap.timeline.as_ref().unwrap();
    let moments = [timeline.miss, timeline.sent, timeline.queued, timeline.response, timeline.retry];
    assert!(moments.is_sorted() && timeline.retry > 0.0, "{timeline:?}");
    assert_eq!(steadily_skipped(&tap), names(&["memory-above-4-gib"]));
}

#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn four_cpus_elf_kernel() {
    passes(&Guest::new().cpus(4).elf(), BRIEF);
}

/// Buffers above the gap below 4 GiB.
#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn six_gib() {
    let (_, tap) = passes(&Guest::new().cpus(2).memory_mib(6144), BRIEF);
    assert_eq!(steadily_skipped(&tap), names(&[]));
}

/// The cases that need page requests can fail: without PRI each of them does, and no other.
#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn without_pri_exactly_its_cases_fail() {
    let outcome = Guest::new().svm("pri=off").patience(LONG).run(BRIEF).boot().unwrap();
    let tap = outcome.tap().unwrap();
    assert_eq!(tap.failed(), tap.totals.need_page_requests, "{}", outcome.tail());
    assert_eq!(outcome.code, svmm_tests::guest::STATUS_BASE + 1, "{}", outcome.tail());
    assert_eq!(tap.totals.page_requests, 0);
    assert!(tap.cases.len() > tap.failed().len() + 10);
}

/// Without interrupts it leaves nothing behind.
#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn the_driver_goes_and_comes_back() {
    let program = "/bin/svm-selftest,--filter,unb";
    let outcome = Guest::new().cpus(2).word("svmm.polling").run(program).boot().unwrap();
    let tap = outcome.tap().unwrap();
    assert_eq!((tap.failed(), tap.skipped()), (BTreeSet::new(), BTreeSet::new()), "{}", outcome.tail());
    assert_eq!(outcome.kernel_log().unwrap().complaints(), [""; 0]);
}

/// 256 processes one after the other, and at once, however long it takes.
#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn a_crowd_of_256() {
    let program = "/bin/svm-selftest,--thorough,--filter,processes-in-turn,--filter,processes-at-once";
    let outcome = Guest::new().cpus(2).patience(LONG).run(program).boot().unwrap();
    let told = |line: &&str| line.starts_with("ok ") || line.starts_with("# 256 ");
    outcome.console.lines().filter(told).for_each(|line| println!("{line}"));
    let tap = outcome.tap().unwrap();
    assert_eq!((tap.failed(), tap.skipped()), (BTreeSet::new(), BTreeSet::new()), "{}", outcome.tail());
    assert!(outcome.console.contains("# 256 processes, one after the other"), "{}", outcome.tail());
    assert!(outcome.console.contains("# 256 processes bound at once"), "{}", outcome.tail());
    assert_eq!(outcome.kernel_log().unwrap().complaints(), [""; 0]);
}

/// A process more than there are PASIDs: few, and as many as a small machine has processes.
#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn few_pasids_run_out() {
    let program = "/bin/svm-selftest,--filter,pasid-exhaustion,--filter,demand-fault";
    for bits in [4, 8] {
        let guest = Guest::new().svm(&format!("pasid-bits={bits}")).patience(LONG);
        let outcome = guest.run(program).boot().unwrap();
        outcome
            .console
            .lines()
            .filter(|line| line.contains("bits of PASID"))
            .for_each(|line| println!("{line}"));
        let tap = outcome.tap().unwrap();
        assert_eq!((tap.failed(), tap.skipped()), (BTreeSet::new(), BTreeSet::new()), "{}", outcome.tail());
        assert_eq!(outcome.kernel_log().unwrap().complaints(), [""; 0]);
    }
}

/// Rows of the table in the suite's README that a guest can show.
struct Row {
    name: &'static str,
    guest: fn(Guest) -> Guest,
    options: &'static str,
    cases: &'static [&'static str],
}

const ROWS: [Row; 5] = [
    Row {
        name: "guest rehearsal: stale",
        guest: |guest| guest,
        options: "--rehearse=stale,--change-machine,--patience,5",
        cases: &[
            "huge-page-of-the-pool",
            "swap-out-under-way",
            "migration-under-way",
            "merged-pages",
            "memory-limit",
            "suspended-while-reclaimed",
        ],
    },
    Row {
        name: "guest rehearsal: narrow",
        guest: |guest| guest,
        options: "--rehearse=narrow,--patience,5",
        cases: &["unreachable-addresses", "above-47-bits"],
    },
    // Cases in which a device that is stale reads too much, or writes what its process still has.
    Row {
        name: "misbehave=stale-translation",
        guest: |guest| guest.svm("misbehave=stale-translation"),
        options: "--patience,5",
        cases: &[
            "discard-source",
            "replace-at-same-address",
            "move-mapping",
            "protect-takes-write-away",
            "protect-and-back",
            "grow-mapping",
            "copy-on-write-by-the-cpu",
            "userfault-write-protected",
        ],
    },
    Row {
        name: "pri=off, without interrupts",
        guest: |guest| guest.svm("pri=off").word("svmm.polling"),
        options: "--patience,5",
        cases: &["driver-unbound-with-work-in-flight"],
    },
    Row {
        name: "scalable,pasid-bits=0",
        guest: |guest| guest.iommu("scalable,pasid-bits=0"),
        options: "--patience,5",
        cases: &["unit-offers-scalable-mode"],
    },
];

/// Each of these cases fails when what it is about is broken.
#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn every_case_fails_somewhere() {
    for Row { name, guest, options, cases } in ROWS {
        let filters: String = cases.iter().map(|case| format!(",--filter,{case}")).collect();
        let outcome = guest(Guest::new()).run(&format!("{SELFTEST},{options}{filters}")).boot().unwrap();
        let tap = outcome.tap().unwrap();
        let skipped = tap.skipped();
        let mut expected: BTreeSet<String> = cases.iter().map(|&case| case.to_owned()).collect();
        expected.retain(|case| !UNSTEADY.contains(&case.as_str()) || !skipped.contains(case));
        let failed = tap.failed();
        let blind: Vec<&String> = expected.difference(&failed).collect();
        assert!(blind.is_empty(), "{name} is not seen by {blind:?}: {}", outcome.tail());
    }
}
