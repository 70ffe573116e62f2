//! Which way devices go, by what the host has.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::cell::Cell;
use std::sync::Arc;

use common::shadow::{GuestTables, errno, ram, second};
use common::{PASS, check_nothing_left, first, source};
use iommu_core::{HostError, Permissions, SourceId};
use rustix::io::Errno;
use vfio_bridge::choice::{Choice, Doors, Wanted, Way};
use vfio_bridge::kernel::{ContainerFile, DeviceFile, HwInfo, Kernel};
use vfio_bridge::sys::{Cdev, Iommufd};
use vfio_bridge::testkit::{Call, FULL_INFO, Failure, FakeKernel, config_space};
use vfio_bridge::{Bridge, choose};

/// A host of which parts may be missing.
struct Host {
    kernel: FakeKernel,
    /// `/dev/iommu` opens.
    iommufd: Result<(), Errno>,
    /// So many devices have a character device.
    cdevs: usize,
    opened: Cell<usize>,
    /// The second device has no PASIDs.
    poor: bool,
    groups: bool,
}

impl Host {
    fn full() -> Self {
        let kernel = FakeKernel::new();
        Self { kernel, iommufd: Ok(()), cdevs: 2, opened: Cell::new(0), poor: false, groups: true }
    }

    fn choose(&self, wanted: Wanted) -> Result<Choice, HostError> {
        choose(wanted, &[source(0), source(1)], self, None)
    }
}

fn failed(operation: &'static str, errno: Errno) -> HostError {
    HostError { operation, object: "nowhere".to_owned(), still_bound: false, source: errno.into() }
}

impl Doors for Host {
    fn iommufd(&self) -> Result<Arc<dyn Kernel>, HostError> {
        self.iommufd.map_err(|errno| failed("open", errno))?;
        Ok(Arc::new(self.kernel.clone()))
    }

    fn device(&self, _: SourceId) -> Result<Box<dyn DeviceFile>, HostError> {
        let number = self.opened.get();
        if number >= self.cdevs {
            let null = Iommufd::from_fd(std::fs::File::open("/dev/null").unwrap().into());
            return Err(Cdev::open("/nowhere".as_ref(), &null).err().unwrap());
        }
        self.opened.set(number + 1);
        let max_pasid_log2 = if self.poor && number == 1 { 0 } else { FULL_INFO.max_pasid_log2 };
        let info = HwInfo { max_pasid_log2, ..FULL_INFO };
        Ok(Box::new(self.kernel.add_device_with(0, info, config_space(true, true))))
    }

    fn container(&self, _: SourceId) -> Result<Box<dyn ContainerFile>, HostError> {
        if self.groups {
            Ok(Box::new(self.kernel.open_container()))
        } else {
            Err(failed("open a group", Errno::NOENT))
        }
    }
}

/// A host without something, what is wanted, which way or the errno, and what the reason holds.
type Row = (Host, Wanted, Result<Way, Errno>, &'static str);

/// Hosts with iommufd.
fn with_iommufd() -> Vec<Row> {
    let with = |change: fn(&FakeKernel)| {
        let host = Host::full();
        change(&host.kernel);
        host
    };
    let poor = || Host { poor: true, ..Host::full() };
    let old = || with(FakeKernel::without_pasid);
    let flat = || with(FakeKernel::without_nesting);
    let short = || with(|kernel| kernel.fail(Failure::next(Call::HwptAlloc, Errno::NOMEM)));
    let no_table = "device 00:01.0: kernel: no page table for nesting could be made";
    use Wanted::{Auto, Container, Nested, Shadow};
    vec![
        (Host::full(), Auto, Ok(Way::Nested), "all it takes"),
        (Host::full(), Nested, Ok(Way::Nested), ""),
        (Host::full(), Shadow, Ok(Way::Shadow), "asked"),
        (Host::full(), Container, Ok(Way::Container), "asked"),
        (poor(), Auto, Ok(Way::NestedWithoutPasid), "device 00:02.0: device: no PASID capability"),
        (old(), Auto, Ok(Way::NestedWithoutPasid), "needs Linux 6.15"),
        (flat(), Auto, Ok(Way::Shadow), "device 00:01.0: kernel: scalable mode is off"),
        (flat(), Nested, Err(Errno::OPNOTSUPP), "scalable mode is off"),
        (short(), Auto, Ok(Way::Shadow), "no page table for nesting could be made (Cannot allocate memory"),
        (short(), Nested, Err(Errno::NOMEM), no_table),
    ]
}

/// Hosts without iommufd, or without its part of VFIO.
fn without_iommufd() -> Vec<Row> {
    let no_cdev = || Host { cdevs: 1, ..Host::full() };
    let opens = |errno| Host { iommufd: Err(errno), ..Host::full() };
    let ancient = || opens(Errno::NOENT);
    let bare = || Host { groups: false, ..ancient() };
    use Wanted::{Auto, Nested, Shadow};
    vec![
        (no_cdev(), Auto, Ok(Way::Container), "open a device on /nowhere failed (No such file"),
        (no_cdev(), Shadow, Err(Errno::NOENT), "open a device"),
        (ancient(), Auto, Ok(Way::Container), "open on nowhere failed"),
        (ancient(), Nested, Err(Errno::NOENT), ""),
        (opens(Errno::NODEV), Auto, Ok(Way::Container), "open on nowhere failed (No such device"),
        (opens(Errno::ACCESS), Auto, Ok(Way::Container), "open on nowhere failed (Permission denied"),
        (opens(Errno::MFILE), Auto, Err(Errno::MFILE), "open on nowhere failed"),
        (bare(), Auto, Err(Errno::NOENT), "open a group"),
    ]
}

#[test]
fn the_best_way_is_taken() {
    let rows = with_iommufd().into_iter().chain(without_iommufd());
    for (number, (host, wanted, expected, reason)) in rows.enumerate() {
        let chosen = host.choose(wanted);
        let name = format!("row {number}, {wanted:?}");
        match &chosen {
            Ok(choice) => {
                assert_eq!(Ok(choice.way), expected, "{name}");
                assert!(choice.to_string().contains(reason), "{name}: {choice}");
                assert_eq!(choice.offers.len(), 2, "{name}");
                choice.bridge.set_mappings(Arc::new(GuestTables::default()));
                choice.bridge.add_memory(&ram()).unwrap();
                let domain = match choice.way {
                    Way::Nested | Way::NestedWithoutPasid => first(1, 0x1000),
                    Way::Shadow | Way::Container => second(1, 0x1000),
                };
                choice.bridge.iommu().set_domain(source(1), None, &domain).unwrap();
                choice.bridge.remove_device(source(0));
                let polls = matches!(choice.bridge, Bridge::Nested(_));
                assert_eq!(choice.bridge.fault_queue().is_some(), polls, "{name}");
            }
            Err(error) => {
                assert_eq!(Err(errno(error).unwrap()), expected, "{name}");
                assert!(error.to_string().contains(reason), "{name}: {error}");
            }
        }
        drop(chosen);
        check_nothing_left(&host.kernel);
    }
}

/// A device that is in use is not there in another way either: the user hears why.
#[test]
fn a_device_that_cannot_be_had_is_no_reason_for_another_way() {
    for call in [Call::Bind, Call::HwInfo, Call::IoasAlloc] {
        let host = Host::full();
        host.kernel.fail(Failure::always(call, Errno::BUSY));
        let error = host.choose(Wanted::Auto).err().unwrap();
        assert_eq!(errno(&error), Some(Errno::BUSY), "{error}");
        assert_eq!(host.kernel.count(Call::ContainerInfo), 0);
        check_nothing_left(&host.kernel);
    }
}

/// A guest with two units. Memory is mapped, pinned and charged once, whatever the ways; and reached by both.
#[test]
fn units_share_memory_where_they_can() {
    let rows = [
        (Wanted::Nested, Wanted::Nested, true),
        (Wanted::Nested, Wanted::Shadow, true),
        (Wanted::Shadow, Wanted::Nested, true),
        (Wanted::Shadow, Wanted::Shadow, true),
        (Wanted::Shadow, Wanted::Container, false),
        (Wanted::Container, Wanted::Shadow, false),
    ];
    for (first, second, shared) in rows {
        let host = Host { cdevs: 4, ..Host::full() };
        let one = host.choose(first).unwrap();
        assert!(!one.has_memory);
        one.bridge.add_memory(&ram()).unwrap();
        let two = choose(second, &[source(0)], &host, Some(&one.bridge)).unwrap();
        assert_eq!(two.has_memory, shared, "{first:?} {second:?}");
        if !shared {
            two.bridge.add_memory(&ram()).unwrap();
        }
        for choice in [&one, &two] {
            choice.bridge.iommu().set_domain(source(0), None, &PASS).unwrap();
        }
        let device = if first == Wanted::Container { 0 } else { 2 };
        let reached = match second {
            Wanted::Container => host.kernel.contained(0, 0x1000),
            _ => host.kernel.lookup(device, 0x1000),
        };
        assert!(reached.is_some(), "{first:?} {second:?}");
        if second == Wanted::Shadow {
            let tables = GuestTables::default();
            tables.map(1, 0x5000, 12, (0x3000, Permissions::READ_WRITE));
            two.bridge.set_mappings(Arc::new(tables));
            two.bridge.iommu().set_domain(source(0), None, &common::shadow::second(1, 0)).unwrap();
            assert!(host.kernel.lookup(device, 0x5000).is_some());
        }
        drop((one, two));
        check_nothing_left(&host.kernel);
    }
}

#[test]
fn ways_have_names() {
    let rows = [
        ("auto", Wanted::Auto),
        ("nested", Wanted::Nested),
        ("shadow", Wanted::Shadow),
        ("container", Wanted::Container),
    ];
    for (name, wanted) in rows {
        assert_eq!(name.parse(), Ok(wanted));
    }
    let error = "Nested".parse::<Wanted>().unwrap_err();
    assert_eq!(error.to_string(), "auto, nested, shadow or container");
}
