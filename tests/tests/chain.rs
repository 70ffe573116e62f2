//! Two hops: svmm runs Linux as a host, which runs svmm, which runs Linux.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::BTreeSet;

use svmm_tests::chain::{Chain, host};

/// The inner guest has an endpoint of its own; the host's stays in the hands of `vfio-pci`. That shows that
/// virtualization nests, apart from assignment.
#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn a_guest_is_a_host() {
    let guest = host().unwrap().run("@host:--stats=stderr;--svm;/bin/svm-selftest,--filter,demand");
    let chain = Chain::run(&guest).unwrap();
    assert_eq!(chain.host.code, 0, "{}", chain.host.tail());
    let inner = &chain.inner[0];
    let tap = inner.tap().unwrap();
    assert_eq!(tap.failed(), BTreeSet::new(), "{}", inner.text);
    assert_eq!(inner.kernel_log().unwrap().complaints(), [""; 0]);
    assert_eq!(chain.host.kernel_log().unwrap().complaints(), [""; 0]);
    let stats = inner.stats().unwrap();
    assert!(tap.totals.page_requests > 0, "{}", inner.text);
    assert_eq!(stats.unit("page_requests").unwrap(), tap.totals.page_requests);
    assert_eq!(stats.unit("page_group_responses").unwrap(), tap.totals.page_requests);
    assert_eq!(chain.stats().unwrap().unit("page_requests").unwrap(), 0);
}
