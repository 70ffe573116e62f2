//! Device scopes (8.3.1): which devices a structure of the table is about.

use iommu_core::SourceId;

/// What a device scope names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScopeKind {
    /// One PCI function. Virtual functions are never listed: their physical function stands for them.
    Endpoint,
    /// A PCI bridge and all behind it.
    SubHierarchy,
    /// An I/O APIC with its id in the MADT. Linux gives up interrupt remapping if one of the MADT is in no scope.
    IoApic(u8),
    /// An HPET with its number in the HPET table.
    Hpet(u8),
    /// A device of the ACPI namespace with its number in an [`super::Andd`].
    Namespace(u8),
}

impl ScopeKind {
    /// Type and enumeration id.
    const fn encoding(self) -> (u8, u8) {
        match self {
            Self::Endpoint => (1, 0),
            Self::SubHierarchy => (2, 0),
            Self::IoApic(id) => (3, id),
            Self::Hpet(number) => (4, number),
            Self::Namespace(number) => (5, number),
        }
    }
}

/// One device, and the name under which its requests reach the unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceScope {
    kind: ScopeKind,
    start: SourceId,
    hops: Vec<(u8, u8)>,
}

impl DeviceScope {
    /// A device whose requests carry `source`. For what is no PCI function, `source` is one that no function has;
    /// not 0 for an I/O APIC, which Linux takes for "not found".
    #[must_use]
    pub const fn new(kind: ScopeKind, source: SourceId) -> Self {
        Self { kind, start: source, hops: Vec::new() }
    }

    /// The same behind bridges: `start` of [`Self::new`] is then the first bridge, and each hop is (device 0 to 31,
    /// function 0 to 7) on the bus behind the one before; bits above are not looked at.
    #[must_use]
    pub fn behind(mut self, hops: impl IntoIterator<Item = (u8, u8)>) -> Self {
        self.hops.extend(hops);
        self
    }

    /// What it names.
    #[must_use]
    pub const fn kind(&self) -> ScopeKind {
        self.kind
    }

    /// Where the path starts: the device itself if there are no hops.
    #[must_use]
    pub const fn start(&self) -> SourceId {
        self.start
    }

    /// How many bridges are passed.
    pub(super) fn depth(&self) -> usize {
        self.hops.len()
    }

    /// Type, length, flags, reserved, enumeration id, start bus, path. The checks of the table see to it that the
    /// length fits.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let (kind, id) = self.kind.encoding();
        let devfn = self.start.devfn();
        let mut bytes = vec![kind, 0, 0, 0, id, self.start.bus(), devfn >> 3, devfn & 7];
        bytes.extend(self.hops.iter().flat_map(|(device, function)| [device & 0x1f, function & 7]));
        bytes[1] = u8::try_from(bytes.len()).unwrap_or(u8::MAX);
        bytes
    }
}
