//! The kernel's own VFIO selftests in a guest, on the DMA engine behind the emulated unit: each case passes, in each
//! of the five ways to an IOMMU, or is skipped where the test itself says so.
//!
//! `SVMM_MATRIX=all` runs every case; else those that need pages of 1 GiB are skipped, and of the others that use so much
//! memory a few run.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail the test")]

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use svmm_tests::guest::Guest;
use svmm_tests::kselftest::{self, MODES, Verdict};

/// The function, as the guest names it.
const ENGINE: &str = "0000:00:01.0";
const PATIENCE: Duration = Duration::from_secs(1200);
/// Tests with few or cheap cases.
const CHEAP: [&str; 4] = [
    "vfio_iommufd_setup_test",
    "vfio_pci_device_test",
    "vfio_dma_mapping_mmio_test",
    "vfio_dma_mapping_test",
];
/// The test with the costly ones.
const DRIVER: &str = "vfio_pci_driver_test";
/// Those that short runs have.
const SOME: [&str; 3] =
    ["iommufd.memcpy_success", "iommufd.memcpy_to_unmapped_iova", "vfio_type1v2_iommu.send_msi"];
/// What cases may say that do not apply: the engine has no MSI, and a small machine has no page of 1 GiB to give.
const NO_MSI: &str = "MSI: not supported";
const NO_HUGE_PAGE: &str = "mmap() failed: Cannot allocate memory (12)";

/// Whether all cases are to run, in machines with room for them.
fn all() -> bool {
    std::env::var("SVMM_MATRIX").is_ok_and(|which| which == "all")
}

/// A guest whose DMA engine is in the hands of `vfio-pci`.
fn guest(memory_mib: u64) -> Guest {
    let path = |name: &str| PathBuf::from(std::env::var_os(name).unwrap_or_else(|| OsString::from(name)));
    Guest::new()
        .cpus(2)
        .memory_mib(memory_mib)
        .without_svm()
        .option("--ioat=transfer-kib=4")
        .kernel(path("SVMM_KERNEL"), path("SVMM_VFIO_INITRD"))
        .patience(PATIENCE)
        .word("svmm.vfio")
        .word("svmm.huge")
}

/// Runs the tests and judges all that they and the kernel say; cases may be skipped that say why in these words.
fn run(tests: &[String], guest: Guest, may_say: &[&str]) {
    let guest = tests.iter().fold(guest, |guest, test| guest.run(&format!("/bin/{test},{ENGINE}")));
    let outcome = guest.boot().unwrap();
    let runs = kselftest::parse(&outcome.console).unwrap();
    assert_eq!(runs.len(), tests.len(), "{}", outcome.tail());
    for (test, cases) in tests.iter().zip(&runs) {
        println!("{test}: {} cases", cases.len());
        kselftest::by_mode(cases).iter().for_each(|line| println!("  {line}"));
        for case in cases {
            match &case.verdict {
                Verdict::Passed => {}
                Verdict::Failed => panic!("{test}: {} failed\n{}", case.name, outcome.console),
                Verdict::Skipped(why) => {
                    println!("  {} skipped: {why}", case.name);
                    assert!(may_say.contains(&why.as_str()), "{}: {why}", case.name);
                }
            }
        }
    }
    assert_eq!(outcome.code, 0, "{}", outcome.tail());
    // Some cases copy from and to where nothing is, which the driver of the unit tells.
    let log = outcome.kernel_log().unwrap();
    let alarms: Vec<_> = log.complaints().into_iter().filter(|line| !line.contains("DMAR: ")).collect();
    assert_eq!(alarms, [""; 0]);
    println!("{} s", outcome.elapsed.as_secs());
}

/// Binding, configuration space, BARs, interrupts, reset; mappings of all page sizes, and of the BAR; the engine at work:
/// copies, copies from and to where nothing is, interrupts, 65,535 copies in a row, each case with 1 GiB pinned.
#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn the_kernels_own_tests_pass() {
    let mut tests = CHEAP.map(str::to_owned).to_vec();
    if all() {
        let guest_of_all = guest(3584).word("hugepagesz=1G hugepages=1");
        run(&tests, guest_of_all, &[NO_MSI]);
        let modes = MODES.map(|mode| format!("{DRIVER},-v,{mode}"));
        run(&modes, guest(1536), &[]);
    } else {
        let some = SOME.map(|case| format!("-r,{DRIVER}.{case}"));
        tests.push(format!("{DRIVER},{}", some.join(",")));
        run(&tests, guest(1536), &[NO_MSI, NO_HUGE_PAGE]);
    }
}
