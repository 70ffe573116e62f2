//! Two hops: svmm runs Linux as a host, which assigns its SVM endpoint to svmm's guest in turn. The iommufd and the two
//! drivers of the units between the two ends are Linux's.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail the test")]

use std::collections::BTreeSet;
use std::io::Write;

use svmm_tests::chain::{Chain, Inner, Stats, host};
use svmm_tests::expect::Tap;

/// What the inner svmm is told; then come the things to do in its guest.
const ASSIGNED: &str = "--memory-mib=256;--stats=stderr;--vfio=0000:00:01.0";

/// No case failed and the kernel did not complain.
fn green(inner: &Inner) -> Tap {
    let tap = inner.tap().unwrap();
    assert_eq!((tap.failed(), inner.code), (BTreeSet::new(), Some(0)), "{}", inner.text);
    assert_eq!(inner.kernel_log().unwrap().complaints(), [""; 0]);
    tap
}

/// Numbers of the unit that the guest programs, of the bridge, and of the unit that the host programs.
struct Counted {
    guest: Stats,
    host: Stats,
}

impl Counted {
    fn unit(&self, key: &str) -> u64 {
        self.guest.get("units", "assigned", key).unwrap()
    }

    fn bridge(&self, key: &str) -> u64 {
        self.guest.get("hosts", "iommufd", key).unwrap()
    }

    fn host(&self, key: &str) -> u64 {
        self.host.unit(key).unwrap()
    }

    /// What passed through is the same at each station, and costs no more than it may.
    fn check(&self, requests: u64) {
        for key in ["page_requests", "page_request_groups", "page_group_responses"] {
            let all = [self.host(key), self.bridge(key), self.unit(key)];
            assert_eq!(all, [requests; 3], "{key}: host's unit, bridge, guest's unit");
        }
        assert_eq!((self.unit("page_requests_unseen"), self.unit("faults")), (0, 0));
        let groups = self.bridge("page_request_groups");
        let reads = self.bridge("fault_reads") - self.bridge("empty_fault_reads");
        let calls = reads + self.bridge("fault_writes");
        assert!(calls <= 2 * groups, "{calls} system calls for {groups} groups");
        let ranges = [self.bridge("invalidate_ranges"), self.unit("iotlb_ranges")];
        assert_eq!(ranges, [ranges[0]; 2], "ranges invalidated: bridge, guest's unit");
        // The endpoint's memory, which other devices reach, is taken back: not the guest's doing, and after it was counted.
        let (all, shared) = (self.host("iotlb_ranges"), self.bridge("device_maps"));
        let possible = ranges[0]..=ranges[0] + shared;
        assert!(possible.contains(&all), "ranges invalidated: {all}, of {ranges:?} and {shared} of memory");
        assert!(self.host("device_tlb") >= ranges[0], "the host drops them in the device, too");
        let (calls, waits) = (self.bridge("invalidate_calls"), self.unit("waits"));
        assert!(calls > 0 && calls <= waits, "{calls} invalidating calls for {waits} waits");
    }

    /// Past the harness, which shows what is printed only if the test fails.
    fn print(&self) {
        let mut out = std::io::stdout();
        for (what, key) in [("invalidation", "invalidate_times"), ("page request", "page_request_times")] {
            let of = |part: &str| self.bridge(&format!("{key}.{part}"));
            let (count, p50, p99) = (of("count"), of("p50_ns") / 1000, of("p99_ns") / 1000);
            let _ = writeln!(out, "{what}, forwarded: p50 {p50} us, p99 {p99} us ({count})");
        }
    }
}

/// Page requests of the endpoint reach the inner guest, and its answers the endpoint; each is counted once at every
/// station on the way.
#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn page_requests_pass_through_two_units() {
    let guest = host().unwrap().run(&format!("@host:{ASSIGNED};/bin/svm-selftest,--filter,demand"));
    let chain = Chain::run(&guest).unwrap();
    assert_eq!(chain.host.code, 0, "{}", chain.host.tail());
    assert_eq!(chain.host.kernel_log().unwrap().complaints(), [""; 0]);
    let inner = &chain.inner[0];
    let tap = green(inner);
    let counted = Counted { guest: inner.stats().unwrap(), host: chain.stats().unwrap() };
    counted.print();
    assert!(tap.totals.page_requests > 0, "{}", inner.text);
    counted.check(tap.totals.page_requests);
    assert!(counted.bridge("device_maps") > 0, "the endpoint's memory is not known to other devices");
}

/// The inner svmm dies in the middle of its guest's work: the host ends what is under way, and the next svmm finds a
/// device that works.
#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn a_killed_svmm_leaves_the_device_to_the_next() {
    let guest = host()
        .unwrap()
        .run(&format!("@kill-host:2000;{ASSIGNED};/bin/svm-selftest,--filter,soak,--repeat,100"))
        .run(&format!("@host:{ASSIGNED};/bin/svm-selftest,--filter,demand-fault-source"));
    let chain = Chain::run(&guest).unwrap();
    assert_eq!(chain.host.code, 0, "{}", chain.host.tail());
    let [killed, next] = &chain.inner[..] else { panic!("{}", chain.host.tail()) };
    assert_eq!(killed.code, None, "{}", killed.text);
    assert!(killed.text.contains("TAP version"), "{}", killed.text);
    assert!(green(next).totals.page_requests > 0, "{}", next.text);
    let stats = chain.stats().unwrap();
    let answered = next.stats().unwrap().get("hosts", "iommufd", "page_group_responses").unwrap();
    assert!(stats.unit("page_requests").unwrap() > answered, "nothing was asked before the kill");
}

/// The host wants a device back while a guest has it: svmm lets go at once, its guest finds ones in place of the device
/// and goes on with another one, and the next svmm gets the device as ever.
#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn the_host_gets_a_device_back() {
    let engine = "--vfio=0000:00:02.0;@until-gone;/bin/dma-test,--threads,2,--iterations,10";
    let lose = format!("@unbind-host:300;{TOLD};{ASSIGNED};{engine}");
    let guest = host()
        .unwrap()
        .option("--ioat=transfer-kib=4")
        .run(&lose)
        .run(&format!("@host:{ASSIGNED};/bin/svm-selftest,--filter,demand-fault-source"));
    let chain = Chain::run(&guest).unwrap();
    assert!(chain.host.console.contains("0000:00:01.0 taken away: Ok(()) after "), "{}", chain.host.tail());
    let [loser, next] = &chain.inner[..] else { panic!("{}", chain.host.tail()) };
    assert!(loser.text.contains("the host wants it back; the guest loses the device"), "{}", loser.text);
    assert!(loser.text.contains("guest-init: 0000:00:01.0 is gone"), "{}", loser.text);
    green(loser);
    assert!(green(next).totals.page_requests > 0, "{}", next.text);
    assert_eq!(chain.host.code, 0, "{}", chain.host.tail());
    assert_eq!(chain.host.kernel_log().unwrap().complaints(), [""; 0]);
}

/// Files that svmm is given open, by somebody who may open them.
const GIVEN: &str = "--memory-mib=256;--iommufd=fd=/dev/iommu;--vfio=fd=/dev/vfio/devices/vfio0";
/// Guest memory and a little, in KiB.
const ENOUGH: u32 = 300 << 10;

/// svmm runs as a user without rights, who is given open files; what he may not do, svmm names, and what helps.
#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn a_user_without_rights_needs_open_files_only() {
    let faults = "/bin/svm-selftest,--filter,demand-fault-source";
    let guest = host()
        .unwrap()
        .run(&format!("@user-host:{ENOUGH};{TOLD};{GIVEN};{faults}"))
        .run(&format!("@user-host:64;{GIVEN};{faults}"))
        .run(&format!("@user-host:{ENOUGH};{ASSIGNED};{faults}"));
    let chain = Chain::run(&guest).unwrap();
    let [works, locked, denied] = &chain.inner[..] else { panic!("{}", chain.host.tail()) };
    assert!(works.text.contains("assigned devices use nested page tables"), "{}", works.text);
    assert!(green(works).totals.page_requests > 0, "{}", works.text);
    let rows = [
        (
            locked,
            "guest memory: ",
            "the limit of locked memory must exceed the guest's memory",
            "it is 64 KiB",
        ),
        (
            denied,
            "/dev/iommu: ",
            "Permission denied",
            "give this user access to /dev/iommu, or pass the open file",
        ),
    ];
    for (inner, thing, reason, remedy) in rows {
        let told = |line: &str| [thing, reason, remedy].iter().all(|part| line.contains(part));
        assert!(inner.code.is_some_and(|code| code != 0), "{}", inner.text);
        assert!(inner.text.lines().any(told), "{}", inner.text);
    }
}

/// The DMA engine of the host, for the inner guest's kernel.
const ENGINE: &str = "--memory-mib=256;--vfio=0000:00:02.0";
/// Copies by the kernel's own driver and test.
const COPIES: &str = "/bin/dma-test,--threads,4,--iterations,20,--group,DMA";

/// The kernel's own driver of a DMA engine works in the inner guest, whose second-stage tables are copied: copies of four
/// threads are byte-exact while their mappings come and go.
#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn a_dma_engine_works_behind_copied_tables() {
    let guest = host()
        .unwrap()
        .option("--ioat=transfer-kib=4")
        .run(&format!("@host:{TOLD};{ENGINE},mode=shadow;{COPIES}"))
        .run(&format!("@host:{TOLD};{ENGINE},mode=container;{COPIES}"));
    let chain = Chain::run(&guest).unwrap();
    assert_eq!(chain.host.code, 0, "{}", chain.host.tail());
    assert_eq!(chain.host.kernel_log().unwrap().complaints(), [""; 0]);
    let [iommufd, container] = &chain.inner[..] else { panic!("{}", chain.host.tail()) };
    for (inner, way) in [(iommufd, "over iommufd"), (container, "over legacy VFIO containers")] {
        assert!(inner.text.contains(&format!("shadow page tables {way}: as asked for")), "{}", inner.text);
        green(inner);
        let summaries = inner.text.lines().filter(|line| line.starts_with("# dma0chan0-copy"));
        summaries.for_each(|summary| _ = writeln!(std::io::stdout(), "{way}: {summary}"));
    }
}

/// Whoever runs this inner svmm wants to know which way its device goes, and why.
const TOLD: &str = "--log=info";
/// DMA by a kernel's own mappings, while they come and go.
const CHURN: &str = "svmm.unbound;/bin/iommufd-test,--filter,address-space-unmap,--filter,map-unmap-churn";

/// What svmm says of devices behind copied tables.
const WHY_NOT: &str = "no Pasid: shadow: PASIDs are for first stages, and there is none";
/// A process binds its address space.
const SHARES: &str = "/bin/svm-selftest,--filter,demand-fault-record";

/// The host's unit does not nest, so the inner guest's second-stage tables are copied, first over iommufd and then over
/// a legacy container. In both DMA is byte-exact; sharing an address space is refused, and svmm says why.
#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn without_nesting_second_stages_are_copied() {
    let guest = host()
        .unwrap()
        .iommu("svm")
        .run(&format!("@host:{TOLD};{ASSIGNED};{CHURN}"))
        .run(&format!("@host:{TOLD};{ASSIGNED},mode=container;{CHURN}"))
        .run(&format!("@host:{TOLD};{ASSIGNED};{SHARES}"))
        .run(&format!("@host:{TOLD};{ASSIGNED},mode=container;{SHARES}"));
    let chain = Chain::run(&guest).unwrap();
    let [iommufd, container, refused @ ..] = &chain.inner[..] else { panic!("{}", chain.host.tail()) };
    let ways = [
        "shadow page tables over iommufd: device 00:01.0: hardware: no nested translation",
        "shadow page tables over legacy VFIO containers: as asked for",
    ];
    for (inner, way) in chain.inner.iter().zip(ways.iter().cycle()) {
        assert!(inner.text.contains(&format!("assigned devices use {way}")), "{}", inner.text);
        assert!(inner.text.contains(WHY_NOT), "{}", inner.text);
    }
    green(iommufd);
    green(container);
    assert_eq!(refused.len(), 2, "{}", chain.host.tail());
    for inner in refused {
        assert_eq!(inner.code, Some(65), "{}", inner.text);
        let message = "cannot bind this address space through /dev/uio0";
        assert!(inner.text.contains(message), "{}", inner.text);
    }
}
