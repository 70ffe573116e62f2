//! What the crate has of a kernel, and that none of it is left out.

use std::collections::BTreeSet;

use iommu_core::{IovaRange, Permissions};
use rustix::io::Errno;
use vfio_bridge::function_file::{FunctionFile, Region};
use vfio_bridge::kernel::{ContainerFile, DeviceFile, Entries, HwptAlloc, IoasCopy, Kernel, ObjectId};
use vfio_bridge::memory::HostRange;
use vfio_bridge::testkit::{Call, Failure, FakeFunction, FakeKernel, Model};
use vmm_sys_util::eventfd::EventFd;

use crate::common::memory;
use crate::common::shadow::KINDS;
use crate::{function, nested, shadow};

/// A method of one of the kernel's traits, the call that it is, and what becomes of it.
type Row = (&'static str, Call, fn(&FakeKernel) -> Option<Errno>);

const ID: ObjectId = ObjectId(1);
const PAGE: IovaRange = IovaRange::aligned(0, 12);
const RW: Permissions = Permissions::READ_WRITE;

fn ram() -> HostRange {
    HostRange::of_memory(&memory()).unwrap().remove(0)
}

fn of_function(kernel: &FakeKernel) -> FakeFunction {
    FakeFunction::new(kernel, Model::endpoint())
}

/// The open `/dev/iommu` and the queues that come from it.
const OF_IOMMUFD: [Row; 13] = [
    ("destroy", Call::Destroy, |k| k.destroy(ID).err()),
    ("ioas_alloc", Call::IoasAlloc, |k| k.ioas_alloc().err()),
    ("ioas_map", Call::IoasMap, |k| k.ioas_map(ID, 0, &ram(), RW).err()),
    ("ioas_map_file", Call::IoasMapFile, |k| {
        let memory = of_function(k).share(0, 0..0x1000).unwrap();
        k.ioas_map_file(ID, 0, &memory, RW).err()
    }),
    ("ioas_copy", Call::IoasCopy, |k| {
        k.ioas_copy(&IoasCopy { from: ID, range: PAGE, to: ID, iova: 0, permissions: RW }).err()
    }),
    ("ioas_iova_ranges", Call::IovaRanges, |k| k.ioas_iova_ranges(ID).err()),
    ("ioas_unmap", Call::IoasUnmap, |k| {
        // One that does not exist has no other answer.
        let space = k.ioas_alloc().unwrap();
        k.ioas_unmap(space, PAGE).err()
    }),
    ("hw_info", Call::HwInfo, |k| k.hw_info(ID).err()),
    ("hwpt_alloc", Call::HwptAlloc, |k| {
        let (nest_parent, pasid, fault_queue, data) = (true, true, None, None);
        k.hwpt_alloc(&HwptAlloc { device: ID, parent: ID, nest_parent, pasid, fault_queue, data }).err()
    }),
    ("hwpt_invalidate", Call::Invalidate, |k| {
        k.hwpt_invalidate(ID, &Entries { kind: 0, entry_len: 24, bytes: &[0; 24] }).err().map(|e| e.errno)
    }),
    ("fault_queue_alloc", Call::FaultQueueAlloc, |k| k.fault_queue_alloc().err()),
    ("read", Call::FaultRead, |k| k.fault_queue_alloc().unwrap().1.read(&mut [0; 40]).err()),
    ("write", Call::FaultWrite, |k| k.fault_queue_alloc().unwrap().1.write(&[0; 8]).err()),
];

/// Files of devices as their IOMMU sees them, and containers.
const OF_DEVICES: [Row; 7] = [
    ("bind", Call::Bind, |k| k.add_device(0).bind().err()),
    ("attach", Call::Attach, |k| k.add_device(0).attach(None, ID).err()),
    ("detach", Call::Detach, |k| k.add_device(0).detach(None).err()),
    ("config_read", Call::ConfigRead, |k| k.add_device(0).config_read(0, &mut [0; 4]).err()),
    ("map", Call::ContainerMap, |k| k.open_container().map(0, &ram(), RW).err()),
    ("unmap", Call::ContainerUnmap, |k| k.open_container().unmap(PAGE).err()),
    ("iova_ranges", Call::ContainerInfo, |k| k.open_container().iova_ranges().err()),
];

/// Files of devices as functions.
const OF_FUNCTIONS: [Row; 11] = [
    ("can_reset", Call::DeviceInfo, |k| of_function(k).can_reset().err()),
    ("region", Call::RegionInfo, |k| of_function(k).region(0).err()),
    ("read", Call::RegionRead, |k| of_function(k).read(&Region::default(), 0, &mut [0; 4]).err()),
    ("write", Call::RegionWrite, |k| of_function(k).write(&Region::default(), 0, &[0; 4]).err()),
    ("map", Call::RegionMap, |k| of_function(k).map(&Region::default(), 0..0x1000).err()),
    ("share", Call::Share, |k| of_function(k).share(0, 0..0x1000).err()),
    ("irqs", Call::IrqInfo, |k| of_function(k).irqs(1).err()),
    ("set_irqs", Call::SetIrqs, |k| of_function(k).set_irqs(1, 0, &[Some(&EventFd::new(0).unwrap())]).err()),
    ("unmask_irqs", Call::UnmaskIrqs, |k| of_function(k).unmask_irqs(0).err()),
    ("disable_irqs", Call::DisableIrqs, |k| of_function(k).disable_irqs(1).err()),
    ("reset", Call::Reset, |k| of_function(k).reset().err()),
];

/// The names of a trait's methods, by the text that declares it.
fn methods(text: &'static str) -> Vec<&'static str> {
    let declared = text.lines().filter_map(|line| line.strip_prefix("    fn ")?.split('(').next());
    declared.collect()
}

/// Whatever the crate asks of a kernel can be refused by the one in memory: a method that is new has no row, and a call
/// that is new has no method, until somebody writes it.
#[test]
fn every_method_is_a_call_that_can_fail() {
    let iommufd_and_devices = methods(include_str!("../../src/kernel.rs"));
    let functions = methods(include_str!("../../src/function_file.rs"));
    let names = |rows: &[&[Row]]| -> Vec<&str> { rows.concat().iter().map(|row| row.0).collect() };
    let fmt: Vec<_> = iommufd_and_devices.into_iter().filter(|name| *name != "fmt").collect();
    assert_eq!(fmt, names(&[&OF_IOMMUFD, &OF_DEVICES]));
    assert_eq!(functions, names(&[&OF_FUNCTIONS]));
    let rows = [&OF_IOMMUFD[..], &OF_DEVICES, &OF_FUNCTIONS].concat();
    for (name, call, method) in &rows {
        let kernel = FakeKernel::new();
        // No call fails so by itself.
        kernel.fail(Failure::next(*call, Errno::XFULL));
        assert_eq!(method(&kernel), Some(Errno::XFULL), "{name}");
    }
    let calls: BTreeSet<_> = rows.iter().map(|row| row.1).collect();
    assert_eq!(calls, Call::ALL.iter().copied().collect());
}

/// Each of them is made in some history, and so made to fail there.
#[test]
fn every_call_is_made_to_fail() {
    let mut made = nested::made();
    made.extend(KINDS.into_iter().flat_map(shadow::made));
    made.extend(function::made());
    assert_eq!(made, Call::ALL.iter().copied().collect());
}
