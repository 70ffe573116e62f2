//! Memory of assigned devices in the guest's address space.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use devices::bus::BusRange;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use parking_lot::Mutex;
use vfio_bridge::function::{MemorySlots, Shown};
use vfio_bridge::memory::DeviceMemory;

/// The first slot that is not RAM's.
const FIRST: u32 = 8;
/// Slots at most: as many as any KVM has had since 2016.
const LIMIT: u32 = 509;

/// Numbers of slots that are in use.
#[derive(Default)]
struct Numbers(BTreeSet<u32>);

impl Numbers {
    fn take(&mut self) -> Option<u32> {
        let number = (FIRST..LIMIT).find(|number| !self.0.contains(number))?;
        self.0.insert(number);
        Some(number)
    }
}

/// Slots of one machine.
pub(crate) struct KvmSlots(Arc<Inner>);

struct Inner {
    vm: Arc<VmFd>,
    /// Where devices may be: nothing else of the machine is there.
    window: BusRange,
    numbers: Mutex<Numbers>,
}

impl KvmSlots {
    /// Slots for memory in `window`, where there is no RAM and no emulated device but those of PCI.
    pub(crate) fn new(vm: Arc<VmFd>, window: BusRange) -> Self {
        Self(Arc::new(Inner { vm, window, numbers: Mutex::default() }))
    }
}

impl Inner {
    fn set(&self, slot: u32, start: u64, memory: &DeviceMemory, len: u64) -> io::Result<()> {
        let request = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: start,
            memory_size: len,
            userspace_addr: memory.host_address(),
        };
        // SAFETY: the range is one mapping, of no Rust object, and stays mapped as long as the slot is set: `Slot`
        // holds it.
        Ok(unsafe { self.vm.set_user_memory_region(request) }?)
    }
}

/// Whether memory of `len` bytes can be at `start`. **Pure.**
fn fits(window: &BusRange, start: u64, len: u64) -> bool {
    let inside = start.checked_sub(window.start).and_then(|at| at.checked_add(len));
    start.is_multiple_of(4096) && inside.is_some_and(|end| end <= window.len)
}

impl MemorySlots for KvmSlots {
    fn show(&self, guest_address: u64, memory: &Arc<DeviceMemory>) -> io::Result<Shown> {
        if !fits(&self.0.window, guest_address, memory.len_bytes()) {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        let number = self.0.numbers.lock().take().ok_or(io::ErrorKind::QuotaExceeded)?;
        let slot = Slot { number, start: guest_address, memory: memory.clone(), of: self.0.clone() };
        // If this fails, dropping the slot does no harm: KVM finds nothing to remove.
        slot.of.set(number, guest_address, memory, memory.len_bytes())?;
        Ok(Box::new(slot))
    }
}

/// One that is set.
struct Slot {
    number: u32,
    start: u64,
    memory: Arc<DeviceMemory>,
    of: Arc<Inner>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        match self.of.set(self.number, self.start, &self.memory, 0) {
            Ok(()) => {}
            // It was never set.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => {
                log::warn!("a device's memory stays in the guest: {error}");
                // Then it stays mapped as well, and the number taken.
                std::mem::forget(self.memory.clone());
                return;
            }
        }
        self.of.numbers.lock().0.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (name, start, length, fits)
    #[test]
    fn memory_stays_inside_the_window() {
        let window = BusRange { start: 0xc000_0000, len: 0x2000_0000 };
        for (name, start, len, expected) in [
            ("first", 0xc000_0000, 0x1000, true),
            ("all", 0xc000_0000, 0x2000_0000, true),
            ("last", 0xdfff_f000, 0x1000, true),
            ("before", 0xbfff_f000, 0x1000, false),
            ("across the end", 0xdfff_f000, 0x2000, false),
            ("not aligned", 0xc000_0800, 0x1000, false),
            ("wraps", u64::MAX - 0xfff, 0x1000, false),
        ] {
            assert_eq!(fits(&window, start, len), expected, "{name}");
        }
    }

    /// What a host's KVM says to a device's memory.
    #[test]
    fn memory_is_shown_where_nothing_else_is() {
        use vfio_bridge::function_file::FunctionFile as _;
        use vfio_bridge::testkit::{FakeFunction, FakeKernel, Model};
        let Ok(kvm) = kvm_ioctls::Kvm::new() else {
            eprintln!("skipped: no KVM");
            return;
        };
        let vm = Arc::new(kvm.create_vm().unwrap());
        let window = BusRange { start: 0xc000_0000, len: 0x10_0000 };
        let slots = KvmSlots::new(vm, window);
        let device = FakeFunction::new(&FakeKernel::new(), Model::endpoint());
        let bar = device.region(2).unwrap();
        let memory = Arc::new(device.map(&bar, 0..0x2000).unwrap());
        let first = slots.show(0xc000_0000, &memory).unwrap();
        let second = slots.show(0xc000_2000, &memory).unwrap();
        for (name, start) in
            [("the same place", 0xc000_0000), ("half of it", 0xc000_1000), ("outside", 0x1000)]
        {
            assert!(slots.show(start, &memory).is_err(), "{name}");
        }
        drop(first);
        let again = slots.show(0xc000_0000, &memory).unwrap();
        drop((second, again));
        assert!(slots.0.numbers.lock().0.is_empty(), "every slot is free");
        assert_eq!(Arc::strong_count(&memory), 1);
    }

    #[test]
    fn numbers_are_given_again() {
        let mut numbers = Numbers::default();
        let all: Vec<_> = std::iter::from_fn(|| numbers.take()).collect();
        assert_eq!((all.first(), all.len()), (Some(&FIRST), 501));
        numbers.0.remove(&20);
        assert_eq!((numbers.take(), numbers.take()), (Some(20), None));
    }
}
