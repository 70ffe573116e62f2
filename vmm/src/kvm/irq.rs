//! Interrupts into the guest: messages by `KVM_SIGNAL_MSI`, and the routes from which KVM learns which vectors
//! the IOAPIC wants to hear the end of.
//!
//! Devices are given a sink, not this one by name: interrupt remapping stands between them and [`KvmMsi`]. The
//! VT-d unit's own events use [`KvmMsi`] directly, since they are never remapped (Rev 5.10 §5.1.1).

use std::sync::Arc;

use devices::ioapic::{PinRoute, RouteObserver};
use iommu_core::{InterruptRemapper, Msi, MsiSink, RouteListener, SourceId};
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

/// Who takes KVM's routing table: KVM.
pub(crate) trait RoutingTable: Send + Sync {
    /// Replaces all routes by these.
    fn replace(&self, routes: &[kvm_irq_routing_entry]) -> Result<(), String>;
}

impl RoutingTable for Arc<VmFd> {
    fn replace(&self, routes: &[kvm_irq_routing_entry]) -> Result<(), String> {
        let table = KvmIrqRouting::from_entries(routes).map_err(|error| format!("{error:?}"))?;
        self.set_gsi_routing(&table).map_err(|error| error.to_string())
    }
}

/// What the IOAPIC's pins send, and what KVM knows of it.
#[derive(Default)]
struct Pins {
    /// Messages of level-triggered entries, as the IOAPIC sends them.
    sent: [Option<Msi>; gsi::PINS as usize],
    /// Those of them that arrive level-triggered, as they arrive. This is KVM's table.
    routed: [Option<Msi>; gsi::PINS as usize],
}

/// KVM's routing table, pin by pin. With the IOAPIC outside the kernel no interrupt takes these routes; KVM
/// computes from them which vectors leave the guest when the guest ends them.
///
/// A local APIC ends what reached it: so the routes are those after remapping, and are resolved anew when
/// remapping changes. An interrupt that remapping made edge-triggered has no end to be told of; the guest ends it
/// at the IOAPIC's own register.
pub(crate) struct IoapicRoutes {
    table: Box<dyn RoutingTable>,
    source: SourceId,
    remapper: Option<Arc<dyn InterruptRemapper>>,
    pins: Mutex<Pins>,
}

impl IoapicRoutes {
    /// No pin is routed. Messages are sent as `source` and go through `remapper`, if there is one; whoever
    /// constructs this adds it there as a listener.
    pub(crate) fn new(
        table: impl RoutingTable + 'static,
        source: SourceId,
        remapper: Option<Arc<dyn InterruptRemapper>>,
    ) -> Self {
        Self { table: Box::new(table), source, remapper, pins: Mutex::default() }
    }

    /// The pins whose level-triggered interrupt reaches local APICs as `vector`.
    pub(crate) fn pins_of(&self, vector: u8) -> Vec<u8> {
        let pins = self.pins.lock();
        let arrives = |msi: &Option<Msi>| msi.is_some_and(|msi| msi.data.to_le_bytes()[0] == vector);
        (0..).zip(&pins.routed).filter(|(_, msi)| arrives(msi)).map(|(pin, _)| pin).collect()
    }

    /// Brings KVM's table up to date. Without a change nothing is done: changing the table makes KVM wait for all
    /// CPUs.
    fn update(&self, pins: &mut Pins) {
        let routed = pins.sent.map(|msi| self.arriving(msi?).filter(is_level));
        if routed == pins.routed {
            return;
        }
        pins.routed = routed;
        let entries: Vec<_> = (0..).zip(routed).filter_map(|(pin, msi)| route(pin, msi?)).collect();
        if let Err(error) = self.table.replace(&entries) {
            log::warn!("interrupt routes not set: {error}");
        }
    }

    fn arriving(&self, msi: Msi) -> Option<Msi> {
        match &self.remapper {
            Some(remapper) => remapper.resolve(self.source, msi),
            None => Some(msi),
        }
    }
}

impl RouteObserver for IoapicRoutes {
    /// Only the ends of level-triggered interrupts are reported. A masked entry keeps its route: what it sent
    /// before is still to be ended. Pins beyond the last are ignored.
    fn route_changed(&self, pin: u8, route: &PinRoute) {
        let mut pins = self.pins.lock();
        if let Some(sent) = pins.sent.get_mut(usize::from(pin)) {
            *sent = route.level.then_some(route.msi);
            self.update(&mut pins);
        }
    }
}

impl RouteListener for IoapicRoutes {
    fn routes_changed(&self) {
        self.update(&mut self.pins.lock());
    }
}

/// Trigger mode of a message's data: level.
fn is_level(msi: &Msi) -> bool {
    msi.data & 1 << 15 != 0
}

/// A route by number; `None` if the message is no interrupt. **Pure.**
pub(crate) fn route(gsi: u32, msi: Msi) -> Option<kvm_irq_routing_entry> {
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
    use devices::bus::BusDevice;
    use devices::ioapic::IoApic;
    use iommu_core::testkit::RecordingMsi;
    use iommu_vtd::{Capability, Profile, Unit, UnitConfig};
    use vm_memory::Bytes;

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

    const SOURCE: SourceId = SourceId::from_bdf(0xff, 0, 0);

    /// Notes (GSI, address, data) of every table.
    #[derive(Default)]
    struct Notes(Mutex<Vec<Vec<(u32, u64, u32)>>>);
    impl RoutingTable for Arc<Notes> {
        fn replace(&self, routes: &[kvm_irq_routing_entry]) -> Result<(), String> {
            let read = |entry: &kvm_irq_routing_entry| {
                // SAFETY: all entries of these tests are messages.
                let msi = unsafe { entry.u.msi };
                (entry.gsi, u64::from(msi.address_hi) << 32 | u64::from(msi.address_lo), msi.data)
            };
            self.0.lock().push(routes.iter().map(read).collect());
            Ok(())
        }
    }

    /// Turns every message into one, or blocks all.
    #[derive(Default)]
    struct Fixed(Mutex<Option<Msi>>);
    impl InterruptRemapper for Fixed {
        fn deliver(&self, _: SourceId, _: Msi, _: &dyn MsiSink) {}
        fn resolve(&self, source: SourceId, _: Msi) -> Option<Msi> {
            assert_eq!(source, SOURCE);
            *self.0.lock()
        }
        fn add_listener(&self, _: std::sync::Weak<dyn RouteListener>) {}
    }

    fn pin(vector: u32, level: bool) -> PinRoute {
        let msi = Msi { address: 0xfee0_1000, data: 0x4000 | u32::from(level) << 15 | vector };
        PinRoute { msi, level, masked: false }
    }

    #[test]
    fn only_level_triggered_pins_are_routed_and_only_when_they_change() {
        let notes = Arc::new(Notes::default());
        let routes = IoapicRoutes::new(notes.clone(), SOURCE, None);
        routes.route_changed(4, &pin(0x31, false));
        routes.route_changed(5, &pin(0x31, true));
        routes.route_changed(5, &pin(0x31, true));
        routes.route_changed(gsi::PINS, &pin(0x31, true));
        routes.routes_changed();
        assert_eq!(*notes.0.lock(), [[(5, 0xfee0_1000, 0xc031)]]);
        assert_eq!((routes.pins_of(0x31), routes.pins_of(0x32)), (vec![5], vec![]));
        routes.route_changed(5, &pin(0x31, false));
        assert_eq!(notes.0.lock().last(), Some(&vec![]));
    }

    #[test]
    fn routes_are_those_after_remapping() {
        let (notes, remapper) = (Arc::new(Notes::default()), Arc::new(Fixed::default()));
        let routes = IoapicRoutes::new(notes.clone(), SOURCE, Some(remapper.clone()));
        let becomes = |msi| {
            *remapper.0.lock() = msi;
            routes.routes_changed();
            notes.0.lock().last().cloned()
        };
        routes.route_changed(9, &pin(9, true));
        assert_eq!(*notes.0.lock(), Vec::<Vec<_>>::new(), "blocked");
        let high = 0x0001_0100_fee0_200c;
        assert_eq!(becomes(Some(Msi { address: high, data: 0xc051 })), Some(vec![(9, high, 0xc051)]));
        assert_eq!((routes.pins_of(0x51), routes.pins_of(9)), (vec![9], vec![]));
        assert_eq!(becomes(Some(Msi { address: high, data: 0x4051 })), Some(vec![]), "edge after remapping");
        assert_eq!(routes.pins_of(0x51), Vec::<u8>::new());
    }

    /// An IOAPIC behind a unit that remaps, as [`crate::machine`] puts them together.
    struct Behind {
        ram: Arc<crate::memory::GuestRam>,
        unit: Arc<Unit<crate::memory::GuestRam>>,
        ioapic: Arc<IoApic>,
        routes: Arc<IoapicRoutes>,
        notes: Arc<Notes>,
        arrived: Arc<RecordingMsi>,
    }

    const TABLE: u64 = 0x10_0000;
    const IRE: u32 = 1 << 25;

    impl Behind {
        fn new() -> Self {
            let ram = crate::memory::allocate(4 << 20).unwrap();
            let capability = Capability::new(&Profile::full(46)).unwrap();
            let arrived = Arc::new(RecordingMsi::default());
            let config = UnitConfig { capability, source: SourceId(0) };
            let unit = Arc::new(Unit::new(&config, (*ram).clone(), arrived.clone()));
            let notes = Arc::new(Notes::default());
            let routes = Arc::new(IoapicRoutes::new(notes.clone(), SOURCE, Some(unit.clone())));
            let listener: std::sync::Weak<IoapicRoutes> = Arc::downgrade(&routes);
            unit.add_listener(listener);
            let sink = Arc::new(iommu_core::RemappedMsi::new(unit.clone(), arrived.clone()));
            let ioapic = IoApic::new(SOURCE, sink, Some(routes.clone()));
            let behind = Self { ram, unit, ioapic, routes, notes, arrived };
            behind.unit.mmio_write(0xb8, &(TABLE | 1 << 11 | 0xf).to_le_bytes());
            behind.unit.mmio_write(0x18, &(1u32 << 24).to_le_bytes());
            behind.unit.mmio_write(0x18, &IRE.to_le_bytes());
            behind
        }

        fn set_entry(&self, index: u64, entry: u128) {
            self.ram.write_obj(entry, vm_memory::GuestAddress(TABLE + 16 * index)).unwrap();
        }

        fn program(&self, pin: u8, entry: u64) {
            for (index, half) in [(0x11 + 2 * pin, entry >> 32), (0x10 + 2 * pin, entry & 0xffff_ffff)] {
                self.ioapic.write(0, &[index]);
                self.ioapic.write(0x10, &u32::try_from(half).unwrap().to_le_bytes());
            }
        }

        fn arrivals(&self) -> Vec<u32> {
            self.arrived
                .sent
                .lock()
                .drain(..)
                .map(|(source, msi)| {
                    assert_eq!(source, SOURCE);
                    msi.data
                })
                .collect()
        }
    }

    /// Index 5 in remappable format, level, with pin 9 as the vector that the EOI register is matched against.
    const PIN: u8 = 9;
    const REMAPPABLE: u64 = 5 << 49 | 1 << 48 | 1 << 15 | 9;
    /// Present, for the IOAPIC only, vector 51h, to CPU 1.
    const ENTRY: u128 = 1 << 82 | 0xff00 << 64 | 1 << 32 | 0x51 << 16 | 1;

    /// Linux: an edge-triggered table entry for a level-triggered pin, ended at the EOI register.
    #[test]
    fn a_level_pin_with_an_edge_entry_ends_at_the_eoi_register() {
        let behind = Behind::new();
        behind.set_entry(5, ENTRY);
        behind.program(PIN, REMAPPABLE);
        let line = behind.ioapic.line(PIN).unwrap();
        line.set(true);
        assert_eq!(behind.arrivals(), [0x4051]);
        assert_eq!(behind.notes.0.lock().len(), 0, "no end is reported for an edge");
        behind.ioapic.write(0x40, &[0x51]);
        assert_eq!(behind.arrivals(), [0; 0], "the vector of the table entry is not the pin's");
        behind.ioapic.write(0x40, &[PIN]);
        assert_eq!(behind.arrivals(), [0x4051], "still asserted");
        line.set(false);
        behind.ioapic.write(0x40, &[PIN]);
        assert_eq!(behind.arrivals(), [0; 0]);
    }

    /// The manual: a level-triggered entry, whose end the local APIC reports by the vector that it saw.
    #[test]
    fn a_level_entry_ends_by_the_vector_that_arrived() {
        let behind = Behind::new();
        behind.set_entry(5, ENTRY | 1 << 4);
        behind.program(PIN, REMAPPABLE);
        behind.ioapic.line(PIN).unwrap().set(true);
        assert_eq!(behind.arrivals(), [0xc051]);
        assert_eq!(behind.notes.0.lock().last(), Some(&vec![(9, 0xfee0_1000, 0xc051)]));
        assert_eq!((behind.routes.pins_of(0x51), behind.routes.pins_of(PIN)), (vec![PIN], vec![]));
        behind.ioapic.eoi_pin(PIN);
        assert_eq!(behind.arrivals(), [0xc051], "still asserted");
        behind.unit.mmio_write(0x18, &[0; 4]);
        let unmapped = vec![(9, 0xfee0_00b0, 0xc009)];
        assert_eq!(behind.notes.0.lock().last(), Some(&unmapped), "remapping off");
    }

    #[test]
    fn an_entry_for_another_source_keeps_the_pin_silent() {
        let behind = Behind::new();
        behind.set_entry(5, ENTRY ^ 1 << 64);
        behind.program(PIN, REMAPPABLE);
        behind.ioapic.line(PIN).unwrap().set(true);
        assert_eq!(behind.arrivals(), [0; 0]);
        let mut status = [0; 4];
        behind.unit.mmio_read(0x34, &mut status);
        assert_eq!(status[0] & 2, 2, "a fault is recorded");
    }
}
