//! What a user can do about an error of the host's.

use iommu_core::HostError;
use rustix::io::Errno;

use crate::object::{ATTACH, BIND, MAKE_NEST_PARENT, MAP, OPEN_DEVICE, OPEN_IOMMUFD};

/// (operation, reason, what helps).
const ADVICE: [(&str, Errno, &str); 16] = [
    (
        OPEN_IOMMUFD,
        Errno::NOENT,
        "the kernel has no iommufd: Linux 6.6 or later with CONFIG_IOMMUFD (modprobe iommufd)",
    ),
    (OPEN_IOMMUFD, Errno::ACCESS, "give this user access to /dev/iommu, or pass the open file"),
    (
        OPEN_DEVICE,
        Errno::NOENT,
        "bind the device to vfio-pci; the kernel needs CONFIG_VFIO_DEVICE_CDEV (Linux 6.6)",
    ),
    (
        OPEN_DEVICE,
        Errno::ACCESS,
        "give this user access to the device below /dev/vfio/devices, or pass the open file",
    ),
    (
        BIND,
        Errno::PERM,
        "a host driver holds a device of the same IOMMU group, or the host does not remap interrupts (if that risk is \
         acceptable: iommufd.allow_unsafe_interrupts=1)",
    ),
    (BIND, Errno::BUSY, "another program, or a host driver, is using the device or its group"),
    (BIND, Errno::INVAL, "firmware reserves memory for the device (RMRR), or its file is bound already"),
    (BIND, Errno::ACCESS, "the device is a virtual function whose driver wants a token"),
    (BIND, Errno::AGAIN, "the device is being reset; try again"),
    (BIND, Errno::NODEV, "the device has no IOMMU group; is the host's IOMMU on (intel_iommu=on)?"),
    (
        MAP,
        Errno::NOMEM,
        "the limit of locked memory must exceed the guest's memory (ulimit -l, LimitMEMLOCK=)",
    ),
    (MAP, Errno::ADDRINUSE, "guest memory must keep clear of 0xfee00000 and of what host firmware reserves"),
    (MAP, Errno::FAULT, "only ordinary memory can be mapped, not that of devices"),
    (MAKE_NEST_PARENT, Errno::OPNOTSUPP, "the host cannot nest page tables; examining the device says why"),
    (ATTACH, Errno::BUSY, "the device is being reset; try again"),
    (ATTACH, Errno::NOSPC, "the host's IOMMU has no domain id left"),
];

/// What a user can do about an error, if that is known.
#[must_use]
pub fn advice(error: &HostError) -> Option<&'static str> {
    let errno = Errno::from_io_error(&error.source)?;
    ADVICE.iter().find(|(operation, of, _)| *operation == error.operation && *of == errno).map(|row| row.2)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use iommu_core::{Domain, DomainId, HostIommu as _, SourceId};
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use super::*;
    use crate::NestedIommu;
    use crate::sys::{Cdev, Iommufd};
    use crate::testkit::{Call, Failure, FakeKernel};

    const SOURCE: SourceId = SourceId(8);

    /// How each operation fails with a given reason.
    fn provoke(operation: &str, errno: Errno) -> HostError {
        let kernel = FakeKernel::new();
        let host = NestedIommu::new(Arc::new(kernel.clone())).unwrap();
        let add = || host.add_device(SOURCE, Box::new(kernel.add_device(0))).map(drop);
        let fail = |call| kernel.fail(Failure::always(call, errno));
        match operation {
            BIND => fail(Call::Bind),
            MAKE_NEST_PARENT => fail(Call::HwptAlloc),
            MAP => fail(Call::IoasMap),
            ATTACH => {
                add().unwrap();
                fail(Call::Attach);
                let pass = Domain::PassThrough { id: DomainId(1) };
                return host.set_domain(SOURCE, None, &pass).unwrap_err();
            }
            // Nobody can be denied access here.
            OPEN_DEVICE => return Cdev::open("/nowhere".as_ref(), &null()).err().unwrap(),
            other => panic!("{other}"),
        }
        let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        add().and_then(|()| host.add_memory(&memory)).unwrap_err()
    }

    fn null() -> Iommufd {
        Iommufd::from_fd(std::fs::File::open("/dev/null").unwrap().into())
    }

    #[test]
    fn errors_as_they_come_find_their_advice() {
        let opens = |row: &&(&str, Errno, &str)| row.0 != OPEN_IOMMUFD && row.1 != Errno::ACCESS;
        let rows: Vec<_> = ADVICE.iter().filter(opens).collect();
        assert_eq!(rows.len(), 12);
        for (operation, errno, expected) in rows {
            let error = provoke(operation, *errno);
            assert_eq!(advice(&error), Some(*expected), "{error}");
        }
        let other = provoke(BIND, Errno::NXIO);
        assert_eq!((advice(&other), other.operation), (None, BIND));
    }
}
