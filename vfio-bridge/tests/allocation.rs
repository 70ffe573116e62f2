//! Flushing costs no allocation once it has run in.

#![allow(unsafe_code, reason = "an allocator that counts is one")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use common::{first, pasid, source};
use iommu_core::{DomainId, HostIommu, Invalidation, IovaRange, Scope};
use vfio_bridge::NestedIommu;
use vfio_bridge::testkit::{YesDevice, YesKernel};

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: everything is left to the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn flushes_allocate_nothing() {
    let kernel = Arc::new(YesKernel::default());
    let host = NestedIommu::new(kernel.clone()).unwrap();
    host.add_device(source(0), Box::new(YesDevice)).unwrap();
    for n in 1..17 {
        host.set_domain(source(0), pasid(Some(n)), &first(1, u64::from(n) << 12)).unwrap();
    }
    let round = |seed: u64| {
        for n in 1..17 {
            for page in 0..20 {
                let range = IovaRange::aligned((page * 3 + seed) << 12, 12);
                let pasid = pasid(Some(n)).unwrap();
                host.invalidate(&Invalidation::new(Scope::PasidRange { domain: DomainId(1), pasid, range }));
            }
        }
        host.invalidate(&Invalidation::new(Scope::Domain(DomainId(1))));
        host.sync().unwrap();
        host.set_domain(source(0), pasid(Some(3)), &first(1, 3 << 12)).unwrap();
    };
    round(0);
    let before = ALLOCATIONS.get();
    (1..100).for_each(round);
    assert_eq!(ALLOCATIONS.get(), before);
    assert_eq!(kernel.flushes(), 100 * 16, "one call for each table and wait");
}
