//! A stock virtio driver does DMA through the emulated VT-d: `disk-check` in the guest, and the host's view of the file.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::BTreeSet;
use std::path::PathBuf;

use svmm_tests::guest::Guest;

const BYTES: usize = 8 << 20;
/// As in the guest's program `disk-check`.
const HOST_SEED: u64 = 0x686f_7374;
const GUEST_SEED: u64 = 0x6775_6573;

/// Bytes that tell where they belong; the same as the guest's.
fn pattern(seed: u64, offset: usize, len: usize) -> Vec<u8> {
    let word = |n: usize| ((n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed).to_le_bytes();
    (offset / 8..(offset + len) / 8).flat_map(word).collect()
}

/// A file that goes when the test ends.
struct Image(PathBuf);

impl Image {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("svmm-{name}-{}.img", std::process::id()));
        std::fs::write(&path, pattern(HOST_SEED, 0, BYTES)).unwrap();
        Self(path)
    }

    fn text(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Every case passes, the IOMMU has nothing to complain of, and the bytes are where they belong.
#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn a_stock_driver_does_dma_through_the_unit() {
    let (image, base) = (Image::new("data"), Image::new("base"));
    let guest = Guest::new()
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
    let half = BYTES / 2;
    let expected = [pattern(HOST_SEED, 0, half), pattern(GUEST_SEED, half, half)].concat();
    assert!(std::fs::read(&image.0).unwrap() == expected, "the file on the host differs");
    assert!(std::fs::read(&base.0).unwrap() == pattern(HOST_SEED, 0, BYTES), "the read-only file changed");
    println!("userspace after {:?} ms, {} cases, {:?}", outcome.boot_ms(), tap.cases.len(), outcome.elapsed);
}
