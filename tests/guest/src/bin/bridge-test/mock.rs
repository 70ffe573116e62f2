//! Mock devices of Linux's iommufd (`CONFIG_IOMMUFD_TEST`, kernel header `iommufd_test.h`).
//!
//! They have no VFIO file: what VFIO would do with one is done here by the test's own ioctl. And they are never quite
//! without a page table: what is detached is parked on one of its own.
#![allow(unsafe_code, reason = "the test's ioctl has no safe interface")]

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, anyhow};
use rustix::io::Errno;
use vfio_bridge::kernel::{self, DeviceFile, HwptAlloc, Kernel, ObjectId};
use vfio_bridge::memory::HostRange;
use vfio_bridge::sys::Iommufd;
use vfio_bridge::testkit::rules::{Dialect, Driver, PAGES, Place};
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// `struct iommu_test_cmd`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Command {
    size: u32,
    op: u32,
    id: u32,
    reserved: u32,
    /// What depends on the operation.
    words: [u32; 12],
    last: u32,
    padding: u32,
}

/// Operations.
mod op {
    pub(super) const MOCK_DOMAIN_REPLACE: u32 = 10;
    pub(super) const MOCK_DOMAIN_FLAGS: u32 = 12;
    pub(super) const TRIGGER_IOPF: u32 = 15;
    pub(super) const PASID_ATTACH: u32 = 18;
    pub(super) const PASID_REPLACE: u32 = 19;
    pub(super) const PASID_DETACH: u32 = 20;
}

/// `MOCK_FLAGS_DEVICE_PASID`.
const PASIDS: u32 = 1 << 2;

/// `/dev/iommu`, once more for the test's ioctl.
#[derive(Clone)]
struct Tester(Arc<File>);

impl Tester {
    fn call<const N: usize>(&self, op: u32, id: u32, words: [u32; N]) -> kernel::Result<Command> {
        /// `IOMMU_TEST_CMD`.
        const REQUEST: libc::c_ulong = 0x3ba0;
        let size = u32::try_from(size_of::<Command>()).map_err(|_| Errno::INVAL)?;
        let mut command = Command { size, op, id, ..Command::default() };
        command.words[..N].copy_from_slice(&words);
        // SAFETY: the argument is as large as it says, and these operations write nowhere else.
        let answer = unsafe { libc::ioctl(self.0.as_raw_fd(), REQUEST, &raw mut command) };
        if answer < 0 {
            return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
        }
        Ok(command)
    }
}

/// An open `/dev/iommu` for mock devices.
pub(crate) struct Mock {
    tester: Tester,
    kernel: Iommufd,
    memory: HostRange,
}

impl Mock {
    pub(crate) fn open() -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open("/dev/iommu").context("/dev/iommu")?;
        let kernel = Iommufd::from_fd(file.try_clone()?.into());
        let bytes = usize::try_from(PAGES)? << 12;
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), bytes)])?;
        let memory = HostRange::of_memory(&memory)?.pop().ok_or_else(|| anyhow!("no memory"))?;
        Ok(Self { tester: Tester(Arc::new(file)), kernel, memory })
    }
}

impl Place for Mock {
    fn kernel(&self) -> &dyn Kernel {
        &self.kernel
    }

    fn device(&self, pasids: bool) -> kernel::Result<Box<dyn DeviceFile>> {
        let (tester, kernel) = (self.tester.clone(), self.kernel.clone());
        Ok(Box::new(Device { tester, kernel, pasids, bound: Mutex::new(None) }))
    }

    fn request(&self, (_, device): (usize, ObjectId), pasid: Option<u32>, group: u32) -> kernel::Result<()> {
        /// Read and write.
        const PERMISSIONS: u32 = 3;
        let words = [device.0, pasid.unwrap_or(0), group, PERMISSIONS, 0x5000, 0];
        self.tester.call(op::TRIGGER_IOPF, 0, words).map(drop)
    }

    /// Mock devices refuse every second attachment of one PASID.
    fn fail_attachment(&self) {}

    fn memory(&self) -> HostRange {
        self.memory.clone()
    }

    fn dialect(&self) -> Dialect {
        let words = |words: [u32; 2]| words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        Dialect {
            driver: Driver::Mock,
            table: (0xdead, words([0x0bad_beef, 0])),
            invalidation: 0xdead_beef,
            everything: words([1, 0]),
            unknown_flag: words([2, 0]),
            malformed: words([0, 4]),
        }
    }
}

/// What stands for the open file of a device.
struct Device {
    tester: Tester,
    kernel: Iommufd,
    pasids: bool,
    bound: Mutex<Option<Bound>>,
}

struct Bound {
    /// The test's own object; to destroy it is to close the file.
    test: u32,
    /// What the device is on when it is on nothing else, and the space below.
    park: (ObjectId, ObjectId),
    /// PASIDs that are attached.
    attached: BTreeSet<u32>,
}

impl Device {
    fn with<T>(&self, work: impl FnOnce(&mut Bound) -> kernel::Result<T>) -> kernel::Result<T> {
        let mut bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        work(bound.as_mut().ok_or(Errno::INVAL)?)
    }

    fn replace(&self, test: u32, table: ObjectId) -> kernel::Result<()> {
        self.tester.call(op::MOCK_DOMAIN_REPLACE, test, [table.0]).map(drop)
    }
}

impl DeviceFile for Device {
    fn bind(&self) -> kernel::Result<ObjectId> {
        let mut bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        let space = self.kernel.ioas_alloc()?;
        let flags = if self.pasids { PASIDS } else { 0 };
        let made = self.tester.call(op::MOCK_DOMAIN_FLAGS, space.0, [0, 0, 0, flags])?;
        let [test, _, device, ..] = made.words;
        let device = ObjectId(device);
        let park = HwptAlloc {
            device,
            parent: space,
            nest_parent: false,
            pasid: true,
            fault_queue: None,
            data: None,
        };
        let table = self.kernel.hwpt_alloc(&park)?;
        self.replace(test, table)?;
        *bound = Some(Bound { test, park: (table, space), attached: BTreeSet::new() });
        Ok(device)
    }

    fn attach(&self, pasid: Option<u32>, table: ObjectId) -> kernel::Result<()> {
        self.with(|bound| {
            let Some(pasid) = pasid else { return self.replace(bound.test, table) };
            let attached = bound.attached.contains(&pasid);
            let op = if attached { op::PASID_REPLACE } else { op::PASID_ATTACH };
            self.tester.call(op, bound.test, [pasid, table.0])?;
            bound.attached.insert(pasid);
            Ok(())
        })
    }

    fn detach(&self, pasid: Option<u32>) -> kernel::Result<()> {
        self.with(|bound| {
            let Some(pasid) = pasid else { return self.replace(bound.test, bound.park.0) };
            if bound.attached.remove(&pasid) {
                self.tester.call(op::PASID_DETACH, bound.test, [pasid])?;
            }
            Ok(())
        })
    }

    fn config_read(&self, _: u16, _: &mut [u8]) -> kernel::Result<()> {
        Err(Errno::NXIO)
    }
}

impl Drop for Device {
    /// As VFIO does when the file is closed. What cannot be destroyed goes with the iommufd.
    fn drop(&mut self) {
        let bound = self.bound.get_mut().unwrap_or_else(PoisonError::into_inner);
        let Some(bound) = bound.take() else { return };
        for pasid in bound.attached {
            let _ = self.tester.call(op::PASID_DETACH, bound.test, [pasid]);
        }
        for object in [ObjectId(bound.test), bound.park.0, bound.park.1] {
            let _ = self.kernel.destroy(object);
        }
    }
}
