//! What Linux does when the SVM endpoint misbehaves, judged by `svm-misbehaviour`: the reasons of faults, time-outs of the
//! invalidation queue, refused page requests, a function that is gone; and that everything goes on afterwards.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::BTreeSet;
use std::time::Duration;

use svmm_tests::guest::{Guest, Outcome};

/// How long all cases may take, also where most of them wait in vain.
const LONG: Duration = Duration::from_secs(600);

/// `uio_pci_generic_sva` frees no interrupts when it lets go of a function, and the kernel warns of that; the program has
/// seen that it does so of an honest function too.
fn is_of_the_driver(line: &str) -> bool {
    ["irq_domain_remove+", "msi_device_data_release+"].iter().any(|place| line.contains(place))
}

/// A line of a selftest, and not of somebody else.
fn is_result(line: &&str) -> bool {
    ["ok ", "not ok ", "#"].iter().any(|start| line.starts_with(start))
}

/// No case fails, and the kernel complains of nothing but what the cases provoke.
fn passes(guest: &Guest, program: &str) -> Outcome {
    let outcome = guest.clone().cpus(2).patience(LONG).run(program).boot().unwrap();
    outcome.console.lines().filter(is_result).for_each(|line| println!("{line}"));
    let tap = outcome.tap().unwrap();
    assert_eq!((tap.failed(), tap.skipped()), (BTreeSet::new(), BTreeSet::new()), "{}", outcome.tail());
    assert_eq!(outcome.code, 0, "{}", outcome.tail());
    let log = outcome.kernel_log().unwrap();
    let complaints: Vec<_> = log.complaints().into_iter().filter(|line| !is_of_the_driver(line)).collect();
    assert_eq!(complaints, [""; 0]);
    println!("{} cases, {:?}", tap.cases.len(), outcome.elapsed);
    outcome
}

/// Each kind, switched on by the guest while it runs.
#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn misbehaviour_live() {
    passes(&Guest::new(), "/bin/svm-misbehaviour");
}

/// Some of everything from power-on on, as the command line says.
#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn misbehaviour_of_the_command_line() {
    let options = "misbehave=late-invalidation:1/4@20,misbehave=lost-invalidation:1/5@2,\
        misbehave=execute-request:1/6,seed=5";
    passes(&Guest::new().svm(options), "/bin/svm-misbehaviour,--planned");
}

/// Against an endpoint with this flaw, each case fails, and none for want of the one before.
fn fails_every_case(flaw: &str) {
    let program = format!("/bin/svm-misbehaviour,--patience,4,--flaw,{flaw}");
    let outcome = Guest::new().cpus(2).patience(LONG).run(&program).boot().unwrap();
    outcome.console.lines().filter(is_result).for_each(|line| println!("{line}"));
    let tap = outcome.tap().unwrap();
    let blind: Vec<_> = tap.cases.iter().filter(|case| case.passed).map(|case| &case.name).collect();
    assert!(blind.is_empty(), "{flaw} is not seen by {blind:?}\n{}", outcome.tail());
    assert!(!outcome.console.contains("afterwards"), "{}", outcome.tail());
    println!("{} cases, {:?}", tap.cases.len(), outcome.elapsed);
}

#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn an_honest_device_fails_every_case() {
    fails_every_case("honest");
}

#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn another_misbehaviour_fails_every_case() {
    fails_every_case("another");
}

/// What was not planned does not happen.
#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn without_a_plan_its_case_fails() {
    let outcome = Guest::new().run("/bin/svm-misbehaviour,--planned").boot().unwrap();
    let tap = outcome.tap().unwrap();
    assert_eq!(tap.failed(), BTreeSet::from(["planned".to_owned()]), "{}", outcome.tail());
}
