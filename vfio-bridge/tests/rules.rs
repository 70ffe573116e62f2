//! The kernel in memory does what is believed of the kernel. The same table is run against Linux, in a guest.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeSet;

use rustix::io::Errno;
use vfio_bridge::kernel::{DeviceFile, HwInfo, Kernel, ObjectId, Result};
use vfio_bridge::memory::HostRange;
use vfio_bridge::sys::uapi::{HWPT_DATA_VTD_S1, INVALIDATE_DATA_VTD_S1, VtdS1, VtdS1Invalidate};
use vfio_bridge::testkit::rules::{self, Dialect, Driver, Expected, PAGES, Place};
use vfio_bridge::testkit::{Call, FULL_INFO, Failure, FakeKernel, config_space};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use zerocopy::IntoBytes as _;

struct Fake {
    kernel: FakeKernel,
    memory: HostRange,
}

impl Fake {
    fn new() -> Self {
        let ranges = [(GuestAddress(0), usize::try_from(PAGES).unwrap() << 12)];
        let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        Self { kernel: FakeKernel::new(), memory: HostRange::of_memory(&memory).unwrap().remove(0) }
    }
}

impl Place for Fake {
    fn kernel(&self) -> &dyn Kernel {
        &self.kernel
    }

    fn device(&self, pasids: bool) -> Result<Box<dyn DeviceFile>> {
        let info = HwInfo { max_pasid_log2: if pasids { 20 } else { 0 }, ..FULL_INFO };
        Ok(Box::new(self.kernel.add_device_with(0, info, config_space(true, true))))
    }

    fn request(&self, (number, _): (usize, ObjectId), pasid: Option<u32>, group: u32) -> Result<()> {
        self.kernel.request_pages(number, pasid, group, &[0x5000]);
        Ok(())
    }

    fn fail_attachment(&self) {
        self.kernel.fail(Failure::next(Call::Attach, Errno::NOMEM));
    }

    fn memory(&self) -> HostRange {
        self.memory.clone()
    }

    fn dialect(&self) -> Dialect {
        let table = VtdS1 { flags: 0, pgtbl_addr: 0x1000, addr_width: 48, reserved: 0 };
        let entry = |entry: VtdS1Invalidate| entry.as_bytes().to_vec();
        let all = VtdS1Invalidate::ALL;
        Dialect {
            driver: Driver::Vtd,
            table: (HWPT_DATA_VTD_S1, table.as_bytes().to_vec()),
            invalidation: INVALIDATE_DATA_VTD_S1,
            everything: entry(all),
            unknown_flag: entry(VtdS1Invalidate { flags: 2, ..all }),
            malformed: entry(VtdS1Invalidate { addr: 1, npages: 1, ..all }),
        }
    }
}

#[test]
fn the_kernel_in_memory_keeps_the_rules() {
    let failed: Vec<_> =
        rules::rows().iter().filter_map(|row| rules::play(row, &Fake::new()).err()).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// A table that anything passes would prove nothing.
#[test]
fn a_wrong_expectation_is_found() {
    for row in rules::rows() {
        for number in 0..row.lines.len() {
            let mut row = row.clone();
            row.lines.truncate(number + 1);
            row.lines[number].expected = Expected::Same(rules::Outcome::Count(usize::MAX));
            let told = rules::play(&row, &Fake::new()).unwrap_err();
            assert!(told.starts_with(&format!("{}, line {}: ", row.name, number + 1)), "{told}");
        }
    }
}

#[test]
fn names_are_plain_and_occur_once() {
    let rows = rules::rows();
    let names: BTreeSet<_> = rows.iter().map(|row| row.name).collect();
    assert_eq!(names.len(), rows.len());
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte == b'-';
    assert!(names.iter().all(|name| name.bytes().all(plain)));
}
