//! What a user can do about an error of the host's.

use iommu_core::HostError;
use rustix::io::Errno;

use crate::object::{
    ATTACH, BIND, MAKE_NEST_PARENT, MAP, OPEN_CONTAINER, OPEN_DEVICE, OPEN_GROUP, OPEN_IOMMUFD,
    SET_UP_CONTAINER, SHADOW,
};

const LOCKED_MEMORY: &str = "the limit of locked memory must exceed the guest's memory (ulimit -l, LimitMEMLOCK=), and a multiple of it with \
     legacy containers";

/// (operation, reason, what helps).
const ADVICE: [(&str, Errno, &str); 27] = [
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
    (MAP, Errno::NOMEM, LOCKED_MEMORY),
    (MAP, Errno::ADDRINUSE, "guest memory must keep clear of 0xfee00000 and of what host firmware reserves"),
    (MAP, Errno::FAULT, "only ordinary memory can be mapped, not that of devices"),
    (MAKE_NEST_PARENT, Errno::OPNOTSUPP, "the host cannot nest page tables; examining the device says why"),
    (MAKE_NEST_PARENT, Errno::NOMEM, LOCKED_MEMORY),
    (
        MAKE_NEST_PARENT,
        Errno::ADDRINUSE,
        "guest memory lies where the page tables of the host's IOMMU do not reach",
    ),
    (
        ATTACH,
        Errno::ADDRINUSE,
        "guest memory must keep clear of 0xfee00000 and of what host firmware reserves for the device (RMRR)",
    ),
    (ATTACH, Errno::BUSY, "the device is being reset; try again"),
    (ATTACH, Errno::NOSPC, "the host's IOMMU has no domain id left"),
    (ATTACH, Errno::NOMEM, LOCKED_MEMORY),
    (
        MAP,
        Errno::NOSPC,
        "the host limits the mappings of a container (vfio_iommu_type1.dma_entry_limit); iommufd does not",
    ),
    (
        SHADOW,
        Errno::NOSPC,
        "the guest has its devices reach more memory at a time than can be copied; let it pass through (iommu=pt), or \
         use huge pages",
    ),
    (SHADOW, Errno::OPNOTSUPP, "SVA needs a host that nests; examining the device says why it does not"),
    (
        OPEN_CONTAINER,
        Errno::NOENT,
        "the kernel has no VFIO containers: CONFIG_VFIO_CONTAINER (modprobe vfio)",
    ),
    (OPEN_GROUP, Errno::NOENT, "bind the device to vfio-pci; the kernel needs CONFIG_VFIO_GROUP"),
    (OPEN_GROUP, Errno::ACCESS, "give this user access to the group's file below /dev/vfio"),
    (
        SET_UP_CONTAINER,
        Errno::PERM,
        "a host driver holds a device of the same IOMMU group, or the host does not remap interrupts (if that risk is \
         acceptable: vfio_iommu_type1.allow_unsafe_interrupts=1)",
    ),
];

/// What a user can do about an error, if that is known.
#[must_use]
pub fn advice(error: &HostError) -> Option<&'static str> {
    let errno = Errno::from_io_error(&error.source)?;
    ADVICE.iter().find(|(operation, of, _)| *operation == error.operation && *of == errno).map(|row| row.2)
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;
    use std::sync::Arc;

    use iommu_core::{
        Domain, DomainId, Gpa, GuestMappings, HostIommu as _, IovaRange, Mapping, Permissions, SourceId,
        Visit,
    };
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use super::*;
    use crate::sys::{Cdev, Iommufd};
    use crate::testkit::{Call, Failure, FakeKernel};
    use crate::{NestedIommu, ShadowIommu};

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
            SHADOW => return provoke_shadow(errno),
            other => panic!("{other}"),
        }
        let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        add().and_then(|()| host.add_memory(&memory)).unwrap_err()
    }

    /// A guest that maps more than anybody can copy.
    struct Endless;

    impl GuestMappings for Endless {
        fn visit(
            &self,
            _: &Domain,
            _: &IovaRange,
            visit: &mut dyn FnMut(&Mapping) -> ControlFlow<()>,
        ) -> Visit {
            for page in 0.. {
                let range = IovaRange::aligned(page << 12, 12);
                let mapping = Mapping { range, base: Gpa(0), permissions: Permissions::READ_WRITE };
                if visit(&mapping).is_break() {
                    break;
                }
            }
            Visit::Stopped
        }
    }

    fn provoke_shadow(errno: Errno) -> HostError {
        let kernel = FakeKernel::new();
        let host = ShadowIommu::new(Arc::new(kernel.clone())).unwrap();
        host.add_device(SOURCE, Box::new(kernel.add_device(0))).unwrap();
        let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        host.add_memory(&memory).unwrap();
        if errno == Errno::NOSPC {
            host.set_mappings(Arc::new(Endless));
        }
        host.set_domain(SOURCE, None, &Domain::Mapped { id: DomainId(1) }).unwrap_err()
    }

    fn null() -> Iommufd {
        Iommufd::from_fd(std::fs::File::open("/dev/null").unwrap().into())
    }

    #[test]
    fn errors_as_they_come_find_their_advice() {
        // What is there on the machine of a test is not known.
        let there = [OPEN_IOMMUFD, OPEN_CONTAINER, OPEN_GROUP, SET_UP_CONTAINER];
        let provoked = |row: &&(&str, Errno, &str)| !there.contains(&row.0) && row.1 != Errno::ACCESS;
        let rows: Vec<_> = ADVICE.iter().filter(provoked).collect();
        assert_eq!(rows.len(), 19);
        for (operation, errno, expected) in rows {
            let error = provoke(operation, *errno);
            assert_eq!(advice(&error), Some(*expected), "{error}");
        }
        let other = provoke(BIND, Errno::NXIO);
        assert_eq!((advice(&other), other.operation), (None, BIND));
    }
}
