//! Opens devices, each unit's by the best way that the host has; whatever the host refuses becomes a complaint.

use std::collections::BTreeMap;

use iommu_core::{Capabilities, HostError, SourceId};
use vfio_bridge::caps::Offer;
use vfio_bridge::choice::{Bridge, Choice, choose};
use vfio_bridge::meter::Metered;

use super::doors::{HostDoors, Opened};
use super::refusal::Refusal;
use crate::config::{Complaint, Inherited, Placement, VfioSpec};
use crate::kvm::vfio::KvmVfio;
use crate::layout::slot;
use crate::memory::GuestRam;
use crate::start_report::{StartReport, Step};

/// A device that is taken in, and blocked.
pub(crate) struct Device {
    /// What logs call it.
    pub(crate) id: String,
    /// What the guest knows it by.
    pub(crate) source: SourceId,
    pub(crate) placement: Placement,
    pub(crate) offer: Offer,
    pub(crate) opened: Opened,
}

/// All assigned devices of a machine.
#[derive(Default)]
pub(crate) struct Devices {
    /// By the number of the unit that they are behind.
    pub(crate) hosts: BTreeMap<Option<usize>, Bridge>,
    pub(crate) devices: Vec<Device>,
    /// Counts what the host is asked, if it has an iommufd.
    pub(crate) meter: Option<Metered>,
}

/// What is opened with.
pub(crate) struct Opener<'a> {
    /// An open `/dev/iommu`, if it is not to be opened here.
    pub(crate) iommufd: Option<&'a Inherited>,
    /// Emulated endpoints; assigned ones follow them on the guest's bus.
    pub(crate) endpoints: usize,
    pub(crate) ram: &'a GuestRam,
    pub(crate) kvm: &'a KvmVfio,
    pub(crate) report: &'a StartReport,
}

impl Devices {
    /// Opens `specs`, and lets their IOMMU at the guest's memory.
    ///
    /// # Errors
    /// The host refused.
    pub(crate) fn open(specs: &[VfioSpec], opener: &Opener<'_>) -> Result<Self, Complaint> {
        let first = slot::FIRST_SVM.saturating_add(u8::try_from(opener.endpoints).unwrap_or(u8::MAX));
        let specs: BTreeMap<_, _> = (first..).map(|slot| SourceId::from_bdf(0, slot, 0)).zip(specs).collect();
        let named = specs.iter().map(|(source, spec)| (*source, &spec.device)).collect();
        let doors = HostDoors::new(named, opener.iommufd, Some(opener.kvm));
        let mut units: BTreeMap<Option<usize>, Vec<SourceId>> = BTreeMap::new();
        for (source, spec) in &specs {
            units.entry(spec.placement.unit).or_default().push(*source);
        }
        let mut all = Self::default();
        for (unit, sources) in units {
            let choice = all.choose(&sources, &specs, &doors)?;
            opener.report.done(Step::DevicesOpened);
            if !choice.has_memory {
                let added = choice.bridge.add_memory(opener.ram);
                added.map_err(|error| Refusal::of("guest memory", None, &error).complaint)?;
                opener.report.done(Step::MemoryPinned);
            }
            all.hosts.insert(unit, choice.bridge);
            for (source, offer) in choice.offers {
                let (Some(spec), Some(opened)) = (specs.get(&source), doors.take(source)) else { continue };
                let (id, placement) = (spec.id.clone(), spec.placement);
                all.devices.push(Device { id, source, placement, offer, opened });
            }
        }
        all.meter = doors.meter();
        Ok(all)
    }

    /// The way of one unit's devices.
    fn choose(
        &self,
        sources: &[SourceId],
        specs: &BTreeMap<SourceId, &VfioSpec>,
        doors: &HostDoors<'_>,
    ) -> Result<Choice, Complaint> {
        let first = sources.first().and_then(|source| specs.get(source));
        let wanted = first.map(|spec| spec.wanted).unwrap_or_default();
        let chosen = choose(wanted, sources, doors, self.hosts.values().next());
        let refusals = doors.refusals();
        chosen.map_err(|error| told(&error, specs, &doors.iommufd_name(), refusals))
    }

    /// What the hosts of the devices behind a unit can do; `None` without devices.
    pub(crate) fn capabilities(&self, unit: usize) -> Option<Capabilities> {
        self.hosts.get(&Some(unit)).map(|host| host.iommu().capabilities())
    }
}

/// The complaint about a refusal that no door noted: of a device that its object names, or of the iommufd.
fn told(
    error: &HostError,
    specs: &BTreeMap<SourceId, &VfioSpec>,
    iommufd: &str,
    noted: Vec<Refusal>,
) -> Complaint {
    let of = |source: &SourceId| error.object.starts_with(&format!("device {source}"));
    let spec = specs.iter().find(|(source, _)| of(source)).map(|(_, spec)| *spec);
    let thing = spec.map_or_else(|| iommufd.to_owned(), |spec| format!("--vfio {}", spec.device));
    let refusal = Refusal::of(&thing, spec.map(|spec| &spec.device), error);
    match spec {
        // Nothing but this failed, or it came first.
        Some(_) if noted.is_empty() => refusal.complaint,
        _ => Refusal::most_telling(noted).unwrap_or(refusal.complaint),
    }
}
