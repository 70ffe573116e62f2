//! Interrupts into the guest: messages by `KVM_SIGNAL_MSI`, and the routes from which KVM learns which vectors
//! the IOAPIC wants to hear the end of.
//!
//! Devices are given a sink, not this one by name: interrupt remapping goes between them and [`KvmMsi`]. The
//! VT-d unit's own events use [`KvmMsi`] directly, since they are never remapped (Rev 5.10 §5.1.1).

use std::sync::Arc;

use devices::ioapic::{PinRoute, RouteObserver};
use iommu_core::{Msi, MsiSink, SourceId};
use kvm_bindings::{KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_msi};
use kvm_ioctls::VmFd;
use parking_lot::Mutex;

use crate::layout::{LOCAL_APIC, gsi};

/// With 32-bit ids, `address_hi` holds destination bits 31:8; KVM refuses anything in 7:0.
const DESTINATION_HI: u32 = 0xffff_ff00;

/// Delivers messages as they are.
pub(crate) struct KvmMsi {
    vm: Arc<VmFd>,
}

impl KvmMsi {
    /// A sink into this machine.
    pub(crate) fn new(vm: Arc<VmFd>) -> Self {
        Self { vm }
    }
}

impl MsiSink for KvmMsi {
    fn send(&self, source: SourceId, msi: Msi) {
        let Some((low, high)) = split_address(msi.address) else {
            log::debug!("{source}: message to {:#x} is no interrupt", msi.address);
            return;
        };
        let message = kvm_msi { address_lo: low, address_hi: high, data: msi.data, ..Default::default() };
        if let Err(error) = self.vm.signal_msi(message) {
            log::debug!("{source}: message {:#x} to {:#x} not delivered: {error}", msi.data, msi.address);
        }
    }
}

/// The two halves as KVM takes them; `None` if the address is not in the interrupt range. **Pure.**
fn split_address(address: u64) -> Option<(u32, u32)> {
    let [b0, b1, b2, b3, b4, b5, b6, b7] = address.to_le_bytes();
    let low = u32::from_le_bytes([b0, b1, b2, b3]);
    let high = u32::from_le_bytes([b4, b5, b6, b7]);
    let inside = u64::from(low) & !(LOCAL_APIC.len - 1) == LOCAL_APIC.start;
    inside.then_some((low, high & DESTINATION_HI))
}

/// KVM's routing table, pin by pin. With the IOAPIC outside the kernel no interrupt takes these routes; KVM
/// computes from them which vectors leave the guest when the guest ends them.
pub(crate) struct IoapicRoutes {
    vm: Arc<VmFd>,
    pins: Mutex<[Option<Msi>; gsi::PINS as usize]>,
}

impl IoapicRoutes {
    /// No pin is routed.
    pub(crate) fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, pins: Mutex::new([None; gsi::PINS as usize]) }
    }

    /// Routes `pin` to `msi`, as it arrives after remapping, or nowhere. Without a change nothing is done:
    /// changing the table makes KVM wait for all CPUs. Pins beyond the last are ignored.
    fn set(&self, pin: u8, msi: Option<Msi>) {
        let mut pins = self.pins.lock();
        match pins.get_mut(usize::from(pin)) {
            Some(route) if *route != msi => *route = msi,
            _ => return,
        }
        let entries: Vec<_> = (0..).zip(pins.iter()).filter_map(|(pin, msi)| route(pin, (*msi)?)).collect();
        let result = KvmIrqRouting::from_entries(&entries).map_err(|error| format!("{error:?}"));
        let result =
            result.and_then(|table| self.vm.set_gsi_routing(&table).map_err(|error| error.to_string()));
        if let Err(error) = result {
            log::warn!("interrupt route of pin {pin} not set: {error}");
        }
    }
}

impl RouteObserver for IoapicRoutes {
    /// Only the ends of level-triggered interrupts are reported. A masked entry keeps its route: what it sent
    /// before is still to be ended.
    fn route_changed(&self, pin: u8, route: &PinRoute) {
        self.set(pin, route.level.then_some(route.msi));
    }
}

fn route(gsi: u32, msi: Msi) -> Option<kvm_irq_routing_entry> {
    let (low, high) = split_address(msi.address)?;
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi.address_lo = low;
    entry.u.msi.address_hi = high;
    entry.u.msi.data = msi.data;
    Some(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_interrupt_range_is_delivered_with_wide_destinations() {
        for (address, expected) in [
            (0xfee0_1000, Some((0xfee0_1000, 0))),
            (0xfeef_fffc, Some((0xfeef_fffc, 0))),
            (0x0001_2300_fee0_0000, Some((0xfee0_0000, 0x0001_2300))),
            (0x0000_00ff_fee0_0000, Some((0xfee0_0000, 0))),
            (0xfed0_0000, None),
            (0xfef0_0000, None),
            (0, None),
        ] {
            assert_eq!(split_address(address), expected, "{address:#x}");
        }
    }
}
