//! Interrupt remapping, judged by a stock guest: its driver turns it on, and everything that interrupts goes
//! through the table.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::BTreeSet;

use svmm_tests::guest::{Guest, Outcome};

/// A few cases that wait for interrupts: of the endpoint's completions, and of page requests.
const SELFTEST: &str = "/bin/svm-selftest,--filter,fault";

const X2APIC: &str = "DMAR-IR: Enabled IRQ remapping in x2apic mode";
const XAPIC: &str = "DMAR-IR: Enabled IRQ remapping in xapic mode";

fn green(guest: &Guest) -> Outcome {
    let outcome = guest.clone().run(SELFTEST).boot().unwrap();
    let tap = outcome.tap().unwrap();
    assert_eq!(tap.failed(), BTreeSet::new(), "{}", outcome.tail());
    assert!(tap.totals.page_requests > 0, "{}", outcome.tail());
    assert_eq!(outcome.code, 0, "{}", outcome.tail());
    let log = outcome.kernel_log().unwrap();
    assert_eq!(log.complaints(), [""; 0]);
    println!("userspace after {:?} ms, {} cases, {:?}", outcome.boot_ms(), tap.cases.len(), outcome.elapsed);
    outcome
}

#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn remapping_with_x2apic() {
    let outcome = green(&Guest::new().cpus(2));
    let log = outcome.kernel_log().unwrap();
    assert!(log.says(X2APIC), "{}", outcome.tail());
}

#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn remapping_without_x2apic() {
    let outcome = green(&Guest::new().cpus(2).word("nox2apic"));
    let log = outcome.kernel_log().unwrap();
    assert!(log.says(XAPIC) && !log.says(X2APIC), "{}", outcome.tail());
}

#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn remapping_off() {
    let outcome = green(&Guest::new().cpus(2).word("intremap=off"));
    let log = outcome.kernel_log().unwrap();
    assert!(!log.says("Enabled IRQ remapping"), "{}", outcome.tail());
}

/// Ids 0, 200 and 400: the last CPU is reached by nothing but x2APIC messages of 32 bits.
#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn ids_beyond_255() {
    let outcome = green(&Guest::new().cpus(3).apic_id_step(200).run("@dmesg"));
    let log = outcome.kernel_log().unwrap();
    assert!(log.says(X2APIC), "{}", outcome.tail());
    assert!(log.says("Brought up 1 node, 3 CPUs"), "{}", outcome.tail());
}
