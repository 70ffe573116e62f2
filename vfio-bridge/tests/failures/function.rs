//! An assigned function: nothing is shown or led at the end, and the device is off.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use devices::irq::EndOfInterrupt as _;
use devices::pci::PciFunction as _;
use vfio_bridge::function_file::irq;
use vfio_bridge::testkit::{Call, Failure, Model, place};

use crate::rig::{MASTER, MEMORY, Rig, offer, read32, write16, write32};

const COMMAND: u16 = 4;
const BAR0: u16 = 0x10;
const BAR2: u16 = 0x18;
const ENABLE: u16 = 1 << 15;
const RESET: u16 = 1 << 15;

fn rig() -> Rig {
    Rig { line: Some(Arc::default()), ..Rig::with(Model::endpoint()) }
}

/// A guest's start, use and end of a device: its line, MSI-X, MSI, a reset. `None` if there is no function at all.
fn life(rig: &Rig) -> Option<()> {
    let function = rig.build(&offer()).ok()?;
    write32(&function, BAR0, 0xc000_0000);
    write32(&function, BAR2, 0xc001_0000);
    write16(&function, COMMAND, MEMORY | MASTER);
    rig.device.assert_line(true);
    let _ = function.serve();
    function.ended();
    rig.device.assert_line(false);
    write16(&function, place::MSIX + 2, ENABLE);
    for vector in 0..2 {
        function.bar_write(2, 0x1000 + 16 * vector, &0xfee0_1000_u64.to_le_bytes());
        function.bar_write(2, 0x100c + 16 * vector, &[0; 4]);
    }
    let _ = read32(&function, place::VENDOR);
    write32(&function, place::VENDOR + 4, 1);
    function.bar_write(2, 0x3000, &[1; 8]);
    let _ = rig.device.signal(irq::MSIX, 1);
    let _ = function.serve();
    write16(&function, place::MSIX + 2, 0);
    write32(&function, place::MSI + 4, 0xfee0_1000);
    write16(&function, place::MSI + 2, 1);
    write16(&function, place::EXPRESS + 8, RESET);
    write16(&function, COMMAND, MEMORY | MASTER);
    iommu_core::RouteListener::routes_changed(&*function);
    Some(())
}

/// The calls of it, and how many of each; those that made the machine left out.
fn calls() -> BTreeMap<Call, usize> {
    let rig = rig();
    let before = rig.kernel.audit().calls;
    life(&rig).unwrap();
    let made = |(call, after)| (call, after - before.get(&call).copied().unwrap_or(0));
    rig.kernel.audit().calls.into_iter().map(made).filter(|(_, count)| *count > 0).collect()
}

/// The calls of it.
pub(crate) fn made() -> BTreeSet<Call> {
    calls().into_keys().collect()
}

/// `off`: the device's memory is off for certain, and so out of other devices' reach, whether mappings were taken back
/// or not.
fn check(rig: &Rig, off: bool, name: &str) {
    assert!(rig.kernel.audit().failed > 0, "{name}");
    assert_eq!((rig.slots.shown(), rig.ways.open()), (vec![], 0), "{name}");
    let reached = [0xc000_0000, 0xc001_0000].map(|at| rig.kernel.lookup_bar(0, at));
    assert!(!off || reached == [None; 2], "{name}: {reached:?}");
}

/// Each call failing in turn, once and for good from there on.
#[test]
fn every_failure_leaves_the_device_off() {
    let calls: usize = calls().values().sum();
    assert!(calls > 30, "{calls}");
    for after in 0..calls {
        for times in [1, usize::MAX] {
            let (rig, name) = (rig(), format!("call {after}, {times}"));
            rig.kernel.fail(Failure { times, ..Failure::nth(after) });
            let _ = life(&rig);
            check(&rig, times == 1, &name);
            // The last writes switch it off; if one of them is what failed, the other did.
            assert!(times > 1 || rig.device.command() & MASTER == 0, "{name}");
        }
    }
}

/// Each kind of call failing for good, the others going on. What is not to be reached any more is not.
#[test]
fn each_kind_of_call_may_fail_for_good() {
    for call in made() {
        for after in [0, 1, 2, 3, 5, 8] {
            let (rig, name) = (rig(), format!("{call:?} after {after}"));
            rig.kernel.fail(Failure { after, ..Failure::always(call, rustix::io::Errno::IO) });
            let _ = life(&rig);
            if rig.kernel.audit().failed > 0 {
                check(&rig, call != Call::RegionWrite, &name);
                // Nothing but a write, or a reset, switches a device off.
                let on = rig.device.command() & MASTER != 0;
                assert!(!on || call == Call::RegionWrite, "{name}");
            }
        }
    }
}
