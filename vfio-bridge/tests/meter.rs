//! What is counted between the bridge and the kernel is what the kernel was asked.

mod common;

use std::sync::Arc;

use common::{check_nothing_left, first, guest, memory, response, source};
use iommu_core::{HostIommu, Invalidation, IovaRange, Pasid, ResponseCode, Scope};
use rustix::io::Errno;
use vfio_bridge::NestedIommu;
use vfio_bridge::meter::Metered;
use vfio_bridge::testkit::{Call, Failure, FakeKernel};

#[test]
fn the_meter_says_what_the_kernel_was_asked() {
    let kernel = FakeKernel::new();
    let metered = Metered::new(Arc::new(kernel.clone()));
    let host = NestedIommu::new(Arc::new(metered.clone())).unwrap();
    host.add_device(source(0), metered.device(Box::new(kernel.add_device(0)))).unwrap();
    host.add_memory(&memory()).unwrap();
    let pasid = Pasid::new(5);
    host.set_domain(source(0), pasid, &first(1, 0x1000)).unwrap();
    for page in [1, 9] {
        let range = IovaRange::aligned(page << 12, 12);
        let scope = Scope::PasidRange { domain: iommu_core::DomainId(1), pasid: Pasid::truncate(5), range };
        host.invalidate(&Invalidation::new(scope));
    }
    host.sync().unwrap();
    // A group of two and a group of one; one of them is answered.
    kernel.request_pages(0, Some(5), 1, &[0x5000, 0x6000]);
    kernel.request_pages(0, Some(5), 2, &[0x7000]);
    let guest = guest();
    host.deliver_page_requests(&*guest).unwrap();
    host.respond(&response((0, Some(5)), 2, ResponseCode::Success)).unwrap();

    let reading = metered.read();
    let asked = |call| kernel.count(call) as u64;
    let made = (reading.tables_made, reading.attachments, reading.detachments);
    assert_eq!(made, (asked(Call::HwptAlloc), asked(Call::Attach), asked(Call::Detach)));
    assert_eq!((reading.invalidate_calls, reading.invalidate_entries), (asked(Call::Invalidate), 2));
    assert_eq!(reading.invalidate_ranges, 2);
    assert_eq!((reading.page_requests, reading.page_request_groups), (3, 2));
    assert_eq!((reading.fault_writes, reading.page_group_responses), (1, 1));
    assert_eq!((reading.invalidate_times.count, reading.page_request_times.count), (1, 1));
    assert!(reading.fault_reads >= 1 && reading.maps == asked(Call::IoasMap) && reading.maps > 0);
    assert!(reading.page_request_times.p99_ns >= reading.page_request_times.p50_ns);
    // An answer that was not taken at once is timed when it is.
    kernel.fail(Failure::next(Call::FaultWrite, Errno::NOMEM));
    let late = response((0, Some(5)), 1, ResponseCode::Success);
    host.respond(&late).unwrap_err();
    assert_eq!((metered.read().page_group_responses, metered.read().page_request_times.count), (1, 1));
    host.respond(&late).unwrap();
    assert_eq!((metered.read().page_group_responses, metered.read().page_request_times.count), (2, 2));
    drop(host);
    assert!(metered.read().detachments > reading.detachments);
    check_nothing_left(&kernel);
}
