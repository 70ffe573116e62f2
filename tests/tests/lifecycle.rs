//! A kernel takes over from another, and a machine is suspended and resumed: the unit goes along.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use svmm_tests::expect::{KernelLog, Tap};
use svmm_tests::guest::{Guest, Outcome};
use svmm_tests::image::Image;

/// A few cases that need page requests, invalidations, and interrupts.
const SHORT: &str =
    "/bin/svm-selftest,--filter,demand-fault,--filter,discard,--filter,interrupt,--filter,operation";

/// Cases that make no page request: what can go on after Linux lost the page request queue.
const WITHOUT_PAGE_REQUESTS: &str = "/bin/svm-selftest,--no-pri,--filter,bind,--filter,interrupt,--filter,operation,\
     --filter,copy,--filter,fill,--filter,crc,--filter,discard,--filter,replace,--filter,move,--filter,second-process";

/// Runs of the selftest on a console, each with what follows it.
fn runs(outcome: &Outcome) -> Vec<String> {
    const START: &str = "TAP version 14\n";
    outcome.console.split(START).skip(1).map(|run| format!("{START}{run}")).collect()
}

/// What the guest's init said, and the end of the console.
fn told(outcome: &Outcome) -> String {
    let said: Vec<&str> = outcome.console.lines().filter(|line| line.starts_with("guest-init:")).collect();
    format!("{}\n{}", said.join("\n"), outcome.tail())
}

/// So many runs of the selftest, all green, and a kernel that does not complain.
fn judge(outcome: &Outcome, expected: usize) {
    assert_eq!(outcome.code, 0, "{}", told(outcome));
    let taps = all_green(outcome, expected);
    assert!(taps.iter().all(|tap| tap.totals.page_requests > 0), "{}", told(outcome));
    assert_eq!(outcome.kernel_log().unwrap().complaints(), [""; 0]);
}

/// So many runs of the selftest, all green.
fn all_green(outcome: &Outcome, expected: usize) -> Vec<Tap> {
    let taps: Vec<Tap> = runs(outcome).iter().map(|run| Tap::parse(run).unwrap()).collect();
    assert_eq!(taps.len(), expected, "{}", told(outcome));
    assert!(taps.iter().all(|tap| tap.failed().is_empty()), "{}", told(outcome));
    taps
}

/// The first kernel has used the unit when the second one starts, which finds and uses it anew.
#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn goes_on_in_another_kernel() {
    let guest = Guest::new().run(SHORT).run("@kexec").then(SHORT).then("@dmesg");
    let outcome = guest.boot().unwrap();
    assert_eq!(outcome.console.matches("guest-init: up after").count(), 2, "{}", told(&outcome));
    judge(&outcome, 2);
    // The second kernel's own log, not the first one's.
    let (_, second) = outcome.console.rsplit_once("guest-init: up after").unwrap();
    let log = KernelLog::parse(second).unwrap();
    assert!(log.says("DMAR: Intel(R) Virtualization Technology for Directed I/O"), "{}", told(&outcome));
    assert_eq!(log.complaints(), [""; 0]);
}

/// Everything that hibernation suspends is suspended and resumed, the unit last and first; the image itself is not
/// written.
#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn goes_on_after_a_suspend() {
    let guest = Guest::new().word("hibernate.pm_test_delay=1");
    let outcome = guest.run(SHORT).run("@hibernate:core").run(SHORT).run("@dmesg").boot().unwrap();
    assert!(outcome.console.contains("guest-init: resumed"), "{}", told(&outcome));
    judge(&outcome, 2);
    assert!(outcome.kernel_log().unwrap().says("hibernation debug: Waiting for"), "{}", told(&outcome));
}

/// The machine is written to a disk and goes. Another one reads it and goes on: its unit knows only what the kernel that
/// read the disk told it, and the hibernated kernel puts back what it had. The disk's own DMA is translated as well.
///
/// Linux puts back everything but the page request queue (`iommu_resume` in the driver, up to 7.3 at least): requests go to
/// where the kernel that read the disk had its queue, and the hibernated one answers what happens to stand in its own.
/// So page requests are impossible from then on, and all else is judged.
#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn goes_on_in_another_machine() {
    const DISK_BYTES: u64 = 512 << 20;
    let disk = Image::blank("hibernation", DISK_BYTES).unwrap();
    let guest = Guest::new().disk(&disk.text()).word("resume=/dev/vda");
    let guest = guest.run(SHORT).run("@hibernate:disk").run(WITHOUT_PAGE_REQUESTS).run("@dmesg");
    let first = guest.boot().unwrap();
    assert_eq!(first.code, 0, "{}", told(&first));
    let [ran] = all_green(&first, 1).try_into().unwrap();
    assert!(ran.totals.page_requests > 0, "{}", told(&first));
    assert!(!first.console.contains("guest-init: resumed"), "{}", told(&first));
    let second = guest.boot().unwrap();
    assert!(!second.console.contains("guest-init: up after"), "{}", told(&second));
    assert!(second.console.contains("guest-init: resumed"), "{}", told(&second));
    assert_eq!(second.code, 0, "{}", told(&second));
    let [ran] = all_green(&second, 1).try_into().unwrap();
    assert_eq!(ran.totals.page_requests, 0, "{}", told(&second));
    assert_eq!(second.kernel_log().unwrap().complaints(), [""; 0]);
}
