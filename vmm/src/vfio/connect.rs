//! Puts assigned functions into the machine, behind their units.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use devices::ioapic::IoApic;
use devices::pci::PciRoot;
use iommu_core::{Domain, DomainId, HostError, SourceId};
use vfio_bridge::choice::Bridge;
use vfio_bridge::function::{AssignedFunction, Connections, HostSide, Shown};
use vfio_bridge::memory::SharedMemory;

use super::doors::Opened;
use super::open::{Device, Devices};
use super::refusal::Refusal;
use super::served::{Function, PageRequests, Served};
use crate::config::{Complaint, reasons};
use crate::iommu::Iommu;
use crate::kvm::routing::{KvmShortcuts, Routing};
use crate::kvm::slots::KvmSlots;
use crate::layout::{PCI_MMIO32, gsi};
use crate::units::Units;

/// Ways into the guest.
pub(crate) struct Connector {
    slots: Arc<KvmSlots>,
    shortcuts: Arc<KvmShortcuts>,
    /// Where interrupt lines lead.
    ioapic: Arc<IoApic>,
}

impl Connector {
    pub(crate) fn new(
        slots: KvmSlots,
        routing: Arc<Routing>,
        vm: Arc<kvm_ioctls::VmFd>,
        ioapic: Arc<IoApic>,
    ) -> Self {
        Self { slots: Arc::new(slots), shortcuts: Arc::new(KvmShortcuts::new(routing, vm)), ioapic }
    }

    /// Puts all devices on the bus; what the event loop is to serve.
    ///
    /// # Errors
    /// The host refused.
    pub(crate) fn connect(
        &self,
        devices: Devices,
        units: &mut Units,
        root: &mut PciRoot,
    ) -> Result<Vec<Served>, Complaint> {
        let mut served = Vec::new();
        for (unit, host) in &devices.hosts {
            if let Some(iommu) = unit.and_then(|number| units.iommu(number)) {
                host.set_mappings(iommu.mappings());
            }
        }
        for device in devices.devices {
            let Some(host) = devices.hosts.get(&device.placement.unit) else { continue };
            served.push(Served::Function(self.connect_one(device, host, units, root)?));
        }
        for (unit, host) in devices.hosts {
            let iommu = unit.and_then(|number| units.iommu(number));
            if let (Some(queue), Some(iommu)) = (host.fault_queue(), iommu) {
                served.push(Served::PageRequests(PageRequests { queue, host, iommu, failures: 0 }));
            }
        }
        Ok(served)
    }

    fn connect_one(
        &self,
        device: Device,
        host: &Bridge,
        units: &mut Units,
        root: &mut PciRoot,
    ) -> Result<Function, Complaint> {
        let Device { id, source, placement, offer, opened: Opened { function, member } } = device;
        let thing = format!("--vfio {id}");
        let refused = |error: &_| Refusal::of(&thing, None, error).complaint;
        let behind = units.place(source, &placement);
        let iommu = behind.iommu().cloned();
        let pin = gsi::of_inta(source.devfn() >> 3);
        let connections = Connections {
            source,
            file: Arc::new(function),
            slots: self.slots.clone(),
            interrupts: behind.interrupts.clone(),
            remapper: iommu.as_ref().and_then(Iommu::remapper),
            shortcuts: self.shortcuts.clone(),
            line: self.ioapic.line(pin),
            host: Arc::new(UnitSide { host: host.clone(), iommu: iommu.clone() }),
        };
        let function = AssignedFunction::new(&offer, connections).map_err(|error| refused(&error))?;
        let done: Weak<AssignedFunction> = Arc::downgrade(&function);
        self.ioapic.on_end(pin, done);
        check_room(&thing, function.bar_lengths(), PCI_MMIO32.len)?;
        match &iommu {
            Some(iommu) => {
                let stopped: Weak<AssignedFunction> = Arc::downgrade(&function);
                let told = AtomicBool::new(false);
                let stop = move |error: &iommu_core::HostError| {
                    // It may be called as often as the guest likes.
                    if !told.swap(true, Ordering::Relaxed) {
                        log::error!("{}; the device is stopped until it is reset", reasons(error));
                    }
                    if let Some(function) = stopped.upgrade() {
                        function.stop_dma();
                    }
                };
                iommu.unit().attach_host(source, host.iommu(), stop).map_err(|error| refused(&error))?;
            }
            None => {
                let all = Domain::PassThrough { id: DomainId(0) };
                host.iommu().set_domain(source, None, &all).map_err(|error| refused(&error))?;
            }
        }
        root.insert(source.devfn() >> 3, 0, function.clone())
            .map_err(|error| Complaint::new(&thing, error, "please report it"))?;
        tell(&id, source, &offer);
        Ok(Function { id, function, host: host.clone(), iommu, member })
    }
}

/// Whether BARs of these sizes have their places in a window of `room` bytes, beside nothing else.
fn check_room(thing: &str, lengths: impl Iterator<Item = u64>, room: u64) -> Result<(), Complaint> {
    let all = lengths.fold(0u64, u64::saturating_add);
    if all <= room {
        return Ok(());
    }
    let reason = format!(
        "the device has {} MiB of memory, and guests have room for {}",
        all.div_ceil(1 << 20),
        room >> 20
    );
    Err(Complaint::new(thing, reason, "give a device with less"))
}

/// Logs what the guest will not have, and why.
fn tell(id: &str, source: SourceId, offer: &vfio_bridge::caps::Offer) {
    log::info!("--vfio {id}: the guest's {source}, PASIDs of {} bits", offer.capabilities.pasid_bits);
    for missing in &offer.missing {
        log::info!("--vfio {id}: no {:?}: {}", missing.feature, missing.reason);
    }
}

/// The IOMMU's side of functions behind one unit, or behind none.
struct UnitSide {
    host: Bridge,
    iommu: Option<Iommu>,
}

impl HostSide for UnitSide {
    fn around_reset(&self, source: SourceId, reset: &mut dyn FnMut()) {
        let Some(iommu) = &self.iommu else { return reset() };
        iommu.unit().hold_host(source);
        reset();
        if let Err(error) = self.host.device_was_reset(source, iommu.unit()) {
            log::warn!("{source}: page requests from before its reset: {}", reasons(&error));
        }
        iommu.unit().release_host(source);
    }

    fn share(&self, guest_address: u64, memory: &SharedMemory) -> Result<Shown, HostError> {
        self.host.share(guest_address, memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_with_too_much_memory_is_refused() {
        const MIB: u64 = 1 << 20;
        assert_eq!(check_room("x", [256 * MIB, 256 * MIB].into_iter(), 512 * MIB), Ok(()));
        let complaint =
            check_room("--vfio x", [512 * MIB, 4096].into_iter(), 512 * MIB).unwrap_err().to_string();
        let expected = "--vfio x: the device has 513 MiB of memory, and guests have room for 512; give";
        assert!(complaint.starts_with(expected), "{complaint}");
        assert!(check_room("x", [u64::MAX, 1].into_iter(), 512 * MIB).is_err());
    }
}
