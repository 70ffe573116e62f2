//! Random work on several queues while pages go, for as long as is asked for: no byte is wrong, no kernel complains, and
//! nothing is left behind in the program, the guest's kernel, the device or svmm.
//!
//! `SVMM_SOAK_SECONDS` and `SVMM_SOAK_OPERATIONS` say how long, until both are reached; else it is short.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::BTreeSet;
use std::time::Duration;

use svmm_tests::guest::{Guest, Outcome};

/// What svmm's memory may be unsteady by, in KiB.
const SLACK_KIB: u64 = 1024;
/// Time for a boot and an end, besides the work.
const AROUND: Duration = Duration::from_secs(300);

fn asked_for(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// Tells svmm's own memory, and judges it.
fn is_flat(outcome: &Outcome) {
    let (middle, last) = outcome.footprint.middle_and_last().unwrap();
    for (third, sample) in [("middle", middle), ("last", last)] {
        println!(
            "svmm, the most in the {third} third: {} KiB of its own, {} KiB of guest memory, after {} s",
            sample.own,
            sample.shared,
            sample.at.as_secs()
        );
    }
    assert!(last.own <= middle.own + SLACK_KIB, "svmm grew from {} to {} KiB", middle.own, last.own);
}

#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn the_soak_leaves_nothing_behind() {
    let seconds = asked_for("SVMM_SOAK_SECONDS", 20);
    let operations = asked_for("SVMM_SOAK_OPERATIONS", 1000);
    let program = format!("/bin/svm-selftest,--filter,soak,--soak,{seconds},--operations,{operations}");
    let patience = AROUND + Duration::from_secs(seconds) * 2;
    let outcome = Guest::new().cpus(2).patience(patience).run(&program).boot().unwrap();
    let told = |line: &&str| ["ok ", "not ok ", "# "].iter().any(|start| line.starts_with(start));
    outcome.console.lines().filter(told).for_each(|line| println!("{line}"));
    let tap = outcome.tap().unwrap();
    assert_eq!((tap.failed(), tap.skipped()), (BTreeSet::new(), BTreeSet::new()), "{}", outcome.tail());
    assert_eq!(outcome.code, 0, "{}", outcome.tail());
    assert_eq!(outcome.kernel_log().unwrap().complaints(), [""; 0]);
    println!("the guest's kernel complains of nothing; {} s with boot and end", outcome.elapsed.as_secs());
    is_flat(&outcome);
}
