//! The remapping units of a machine: which device is behind which, and what the guest is told about it.

use std::ops::Range;
use std::sync::{Arc, Weak};

use devices::bus::{Bus, BusError, BusRange};
use iommu_core::{Capabilities, Dma, Endpoint, InterruptRemapper, MsiSink, NoTranslation, SourceId};
use iommu_vtd::dmar::{Andd, DeviceScope, Dmar, DmarError, Drhd, Rmrr, Satc, ScopeKind};
use iommu_vtd::{Capability, Platform, Profile, ProfileError};

use crate::boot::cpuid::Paging;
use crate::config::{Complaint, Placement, UnitSpec, reasons};
use crate::iommu::Iommu;
use crate::layout::{IOAPIC_ID, LOW_RAM_LIMIT, VTD, VTD_PAGE, requester};
use crate::memory::GuestRam;
use crate::stats::Stats;

/// One unit, and whom it has.
struct Member {
    spec: UnitSpec,
    iommu: Iommu,
    /// All devices that were placed behind it.
    scopes: Vec<DeviceScope>,
}

/// All units. Devices are placed behind them one after the other; then the guest can be told.
pub(crate) struct Units {
    members: Vec<Member>,
    ram: Arc<GuestRam>,
    /// Where interrupts go in the end.
    direct: Arc<dyn MsiSink>,
    reserved_memory: Vec<Rmrr>,
    /// What of the low memory they take: its end.
    reserved: Range<u64>,
    integrated: Vec<Satc>,
    namespace: Vec<Andd>,
}

/// What a device gets: its ways out.
pub(crate) struct Behind {
    /// Its memory.
    pub(crate) dma: Dma<GuestRam>,
    /// Where its interrupts go.
    pub(crate) interrupts: Arc<dyn MsiSink>,
    source: SourceId,
    unit: Option<Iommu>,
}

impl Behind {
    /// The unit that it is behind, if any.
    pub(crate) fn iommu(&self) -> Option<&Iommu> {
        self.unit.as_ref()
    }

    /// Names the device to its unit, if it has one, as what has a device-TLB and makes page requests.
    pub(crate) fn attach(&self, endpoint: Weak<dyn Endpoint>) {
        if let Some(iommu) = &self.unit {
            iommu.unit().attach_endpoint(self.source, endpoint);
        }
    }
}

/// What a machine with units is made from.
pub(crate) struct Surroundings {
    /// Guest memory.
    pub(crate) ram: Arc<GuestRam>,
    /// Its size in bytes.
    pub(crate) memory_bytes: u64,
    /// Width of the CPUs' physical addresses in bits.
    pub(crate) physical_bits: u8,
    /// The CPUs' table formats.
    pub(crate) paging: Paging,
    /// Where interrupts go in the end.
    pub(crate) direct: Arc<dyn MsiSink>,
    /// What the host can do for assigned devices behind the units; none for a unit without.
    pub(crate) hosts: Vec<Option<Capabilities>>,
}

/// What a unit offers: its profile, as far as the host of its devices goes along.
fn offer(spec: &UnitSpec, platform: Platform, host: Option<&Capabilities>) -> Result<Capability, Complaint> {
    let wrong = |error: ProfileError| match host {
        // Checked before, but for what CPUs have.
        None => Complaint::new("machine", reasons(&error), "please report it"),
        Some(_) => Complaint::new(
            format_args!("--iommu id={}", spec.id),
            format_args!("nothing is left of it that the host carries out: {}", error.reason()),
            "give the unit another profile, or assigned devices a unit of their own",
        ),
    };
    let profile = profile(spec, platform, host).map_err(wrong)?;
    Capability::new(&profile).map_err(wrong)
}

fn profile(
    spec: &UnitSpec,
    platform: Platform,
    host: Option<&Capabilities>,
) -> Result<Profile, ProfileError> {
    let profile = Profile::parse(&spec.profile, platform)?;
    let Some(host) = host else { return Ok(profile) };
    let (profile, dropped) = profile.behind(host);
    for dropped in dropped {
        log::info!("--iommu id={}: no {}: {}", spec.id, dropped.feature, dropped.reason);
    }
    Ok(profile)
}

impl Units {
    /// The units of `specs`, with no devices yet.
    ///
    /// # Errors
    /// The CPUs have widths that no unit has, or a host carries out nothing that its unit could offer.
    pub(crate) fn new(specs: Vec<UnitSpec>, around: Surroundings) -> Result<Self, Complaint> {
        let platform = Platform {
            host_address_width: around.physical_bits.into(),
            five_level: around.paging.five_level,
        };
        let member = |(number, spec): (usize, UnitSpec)| {
            let host = around.hosts.get(number).and_then(Option::as_ref);
            let capability = offer(&spec, platform, host)?;
            let iommu = Iommu::new(capability, &around.ram, around.direct.clone());
            Ok::<_, Complaint>(Member { spec, iommu, scopes: Vec::new() })
        };
        let low_end = around.memory_bytes.min(LOW_RAM_LIMIT);
        Ok(Self {
            members: specs.into_iter().enumerate().map(member).collect::<Result<_, _>>()?,
            ram: around.ram,
            direct: around.direct,
            reserved_memory: Vec::new(),
            reserved: low_end..low_end,
            integrated: Vec::new(),
            namespace: Vec::new(),
        })
    }

    /// The way of the IOAPIC's messages: the first unit has it.
    pub(crate) fn for_ioapic(&self) -> (Option<Arc<dyn InterruptRemapper>>, Arc<dyn MsiSink>) {
        match self.members.first() {
            Some(first) => (first.iommu.remapper(), first.iommu.interrupts(self.direct.clone())),
            None => (None, self.direct.clone()),
        }
    }

    /// A unit by its number.
    pub(crate) fn iommu(&self, number: usize) -> Option<Iommu> {
        self.members.get(number).map(|member| member.iommu.clone())
    }

    /// Places a PCI function.
    pub(crate) fn place(&mut self, source: SourceId, placement: &Placement) -> Behind {
        self.place_scope(DeviceScope::new(ScopeKind::Endpoint, source), placement)
    }

    /// Places a device of the ACPI namespace, `path` its full name there.
    pub(crate) fn place_named(&mut self, source: SourceId, path: String, placement: &Placement) -> Behind {
        let number = u8::try_from(self.namespace.len()).unwrap_or(u8::MAX);
        if placement.unit.is_some() {
            self.namespace.push(Andd { number, name: path });
        }
        self.place_scope(DeviceScope::new(ScopeKind::Namespace(number), source), placement)
    }

    fn place_scope(&mut self, scope: DeviceScope, placement: &Placement) -> Behind {
        let source = scope.start();
        let member = placement.unit.and_then(|number| self.members.get_mut(number));
        let Some(member) = member else {
            let ram = GuestRam::clone(&self.ram);
            let dma = Dma::new(source, ram, Arc::new(NoTranslation), Arc::default());
            return Behind { dma, interrupts: self.direct.clone(), source, unit: None };
        };
        member.scopes.push(scope.clone());
        let iommu = member.iommu.clone();
        if let Some(required) = placement.integrated {
            match self.integrated.iter_mut().find(|satc| satc.required == required) {
                Some(satc) => satc.scopes.push(scope.clone()),
                None => self.integrated.push(Satc { segment: 0, required, scopes: vec![scope.clone()] }),
            }
        }
        if placement.reserved_bytes > 0 {
            let end = self.reserved.start;
            self.reserved.start -= placement.reserved_bytes.min(end);
            let range = self.reserved.start..=end - 1;
            self.reserved_memory.push(Rmrr { segment: 0, range, scopes: vec![scope] });
        }
        Behind {
            dma: iommu.dma(source),
            interrupts: iommu.interrupts(self.direct.clone()),
            source,
            unit: Some(iommu),
        }
    }

    /// The end of the low memory, which devices want for themselves: start inclusive, end exclusive.
    pub(crate) fn reserved(&self) -> Range<u64> {
        self.reserved.clone()
    }

    /// Whether the guest is to learn of proximity domains.
    pub(crate) fn have_affinity(&self) -> bool {
        self.members.iter().any(|member| member.spec.affinity)
    }

    /// Those of the CPUs' table formats `cpus` that all units with a first stage walk: guests give their tables to
    /// the units, too.
    pub(crate) fn paging(&self, cpus: Paging) -> Paging {
        let first_stages = self.members.iter().map(|member| member.iommu.unit().capability());
        first_stages.filter(|capability| capability.ecap().fsts()).fold(cpus, |common, capability| Paging {
            five_level: common.five_level && capability.fs5lp(),
            gib_pages: common.gib_pages && capability.fs1gp(),
        })
    }

    /// The DMAR table after its ACPI header; `None` without units.
    ///
    /// # Errors
    /// None that a user could bring about.
    pub(crate) fn dmar(&self) -> Result<Option<Vec<u8>>, DmarError> {
        if self.members.is_empty() {
            return Ok(None);
        }
        let any = |has: fn(&UnitSpec) -> bool| self.members.iter().any(|member| has(&member.spec));
        let dmar = Dmar {
            units: self.members.iter().enumerate().map(|(number, member)| drhd(number, member)).collect(),
            reserved_memory: self.reserved_memory.clone(),
            integrated: self.integrated.clone(),
            namespace: self.namespace.clone(),
            x2apic_opt_out: any(|spec| spec.x2apic_opt_out),
            platform_opt_in: any(|spec| spec.platform_opt_in),
            ..Dmar::default()
        };
        dmar.body().map(Some)
    }

    /// Lets all units tell what they did.
    pub(crate) fn count_into(&self, stats: &mut Stats) {
        for member in &self.members {
            let iommu = member.iommu.clone();
            let numbers = move || serde_json::to_value(iommu.unit().counts()).unwrap_or_default();
            stats.add("units", member.spec.id.clone(), numbers);
        }
    }

    /// Puts the register pages where the guest is told that they are.
    ///
    /// # Errors
    /// Something else is there.
    pub(crate) fn insert_into(&self, bus: &mut Bus) -> Result<(), BusError> {
        for (number, member) in self.members.iter().enumerate() {
            let range = BusRange { start: register_base(number), len: VTD_PAGE };
            bus.insert(range, Arc::new(member.iommu.clone()))?;
        }
        Ok(())
    }
}

fn register_base(number: usize) -> u64 {
    VTD.start + VTD_PAGE * number as u64
}

/// The first unit has all PCI functions that no other lists, and the IOAPIC.
fn drhd(number: usize, member: &Member) -> Drhd {
    let first = number == 0;
    let listed = member.scopes.iter().filter(|scope| !first || scope.kind() != ScopeKind::Endpoint);
    let ioapic = first.then(|| DeviceScope::new(ScopeKind::IoApic(IOAPIC_ID), requester::IOAPIC));
    let scopes = ioapic.into_iter().chain(listed.cloned()).collect();
    Drhd {
        include_pci_all: first,
        proximity: member.spec.affinity.then_some(0),
        ..Drhd::for_all(member.iommu.unit().capability(), register_base(number), scopes)
    }
}

#[cfg(test)]
mod tests;
