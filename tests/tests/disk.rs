//! A stock virtio driver does DMA through the emulated VT-d: `disk-check` in the guest, and the host's view of the file.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::BTreeSet;

use svmm_tests::guest::Guest;
use svmm_tests::image::{BYTES, Image};

/// Every case passes, the IOMMU has nothing to complain of, and the bytes are where they belong.
fn passes(words: &[&str]) {
    let (image, base) = (Image::new("data").unwrap(), Image::new("base").unwrap());
    let guest = words.iter().fold(Guest::new(), |guest, word| guest.word(word));
    let guest = guest
        .cpus(2)
        .without_svm()
        .disk(&format!("{},id=data", image.text()))
        .disk(&format!("{},readonly", base.text()))
        .run(&format!("/bin/disk-check,vda,{},data,vdb", BYTES / 512));
    let outcome = guest.boot().unwrap();
    let tap = outcome.tap().unwrap();
    assert_eq!(tap.failed(), BTreeSet::new(), "{}", outcome.tail());
    assert_eq!(outcome.code, 0, "{}", outcome.tail());
    assert_eq!(outcome.kernel_log().unwrap().complaints(), [""; 0]);
    assert!(image.is_written(), "the file on the host differs");
    assert!(base.is_untouched(), "the read-only file changed");
    println!("userspace after {:?} ms, {} cases, {:?}", outcome.boot_ms(), tap.cases.len(), outcome.elapsed);
}

#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn a_stock_driver_does_dma_through_the_unit() {
    passes(&[]);
}

/// The driver is told by interrupt lines.
#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn a_stock_driver_without_messages() {
    passes(&["pci=nomsi"]);
}
