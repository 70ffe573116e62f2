//! Requests, each of which depends on one cached thing, and the entry in memory to cut that thing off.

use iommu_core::{Access, Gpa, Iova, Pasid, Port, Request, SourceId, Translator};

use crate::driver::{Machine, Memory};

/// A request and the entry that it needs.
pub(crate) struct Probe {
    pub(crate) name: &'static str,
    pub(crate) source: SourceId,
    pub(crate) pasid: Option<Pasid>,
    pub(crate) address: u64,
    /// The word to clear.
    pub(crate) entry: Gpa,
}

impl Probe {
    pub(crate) fn new(name: &'static str, pasid: u32, address: u64, entry: Gpa) -> Self {
        let source = crate::driver::ENDPOINT;
        Self { name, source, pasid: Some(Pasid::truncate(pasid)), address, entry }
    }

    /// Whether the request goes ahead.
    pub(crate) fn goes(&self, machine: &Machine) -> bool {
        let request = Request::untranslated(self.source, self.pasid, Iova(self.address), Access::Read);
        machine.unit.translate(&request).is_ok()
    }

    fn goes_through(&self, port: &mut Port<Memory>) -> bool {
        port.session(self.pasid).translate(Iova(self.address), Access::Read).is_ok()
    }
}

fn cut(machine: &Machine, probes: &[Probe]) {
    for probe in probes {
        machine.set_word(probe.entry.0, 0);
    }
}

/// Fills the unit's caches, cuts all entries off, invalidates, and names those that are still cached.
pub(crate) fn survivors(machine: &Machine, probes: &[Probe], invalidate: impl FnOnce()) -> Vec<&'static str> {
    for probe in probes {
        assert!(probe.goes(machine), "{} at first", probe.name);
    }
    cut(machine, probes);
    for probe in probes {
        assert!(probe.goes(machine), "{} is cached", probe.name);
    }
    invalidate();
    probes.iter().filter(|probe| probe.goes(machine)).map(|probe| probe.name).collect()
}

/// The same for the IOTLBs of ports, one for each probe.
pub(crate) fn survivors_in_ports(
    machine: &Machine,
    probes: &[Probe],
    invalidate: impl FnOnce(),
) -> Vec<&'static str> {
    let mut ports: Vec<_> = probes.iter().map(|probe| machine.dma_of(probe.source).port()).collect();
    for (probe, port) in probes.iter().zip(&mut ports) {
        assert!(probe.goes_through(port), "{} at first", probe.name);
    }
    cut(machine, probes);
    invalidate();
    let left = probes
        .iter()
        .zip(&mut ports)
        .filter_map(|(probe, port)| probe.goes_through(port).then_some(probe.name));
    left.collect()
}

/// All names but these, in order.
pub(crate) fn all_but(probes: &[Probe], gone: &[&str]) -> Vec<&'static str> {
    for name in gone {
        assert!(probes.iter().any(|probe| probe.name == *name), "there is no probe {name}");
    }
    probes.iter().map(|probe| probe.name).filter(|name| !gone.contains(name)).collect()
}
