//! How many CPUs a machine has, and their APIC ids.

/// The CPUs of a machine: one package, no hyper-threads. APIC ids are multiples of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cpus {
    /// How many, 1 to 64.
    pub(crate) count: u32,
    /// The distance of their APIC ids, from 1 on.
    pub(crate) id_step: u32,
}

impl Cpus {
    /// The largest APIC id that Linux takes.
    pub(crate) const MAX_ID: u32 = 0x7fff;
    /// The smallest APIC id that only an x2APIC has.
    pub(crate) const FIRST_WIDE_ID: u32 = 255;

    /// All APIC ids, ascending.
    pub(crate) fn ids(self) -> impl Iterator<Item = u32> {
        (0..self.count).map(move |index| index.saturating_mul(self.id_step))
    }

    /// The last of them.
    pub(crate) fn last_id(self) -> u32 {
        (self.count - 1).saturating_mul(self.id_step)
    }

    /// The place of the CPU with this APIC id.
    pub(crate) fn place(self, apic_id: u32) -> Place {
        Place { apic_id, cpus: self.count, last_id: self.last_id() }
    }
}

/// The place of one CPU among all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// APIC id, at most `last_id`.
    pub(crate) apic_id: u32,
    /// CPUs in the machine, 1 to 64.
    pub(crate) cpus: u32,
    /// The largest APIC id of the machine, `cpus - 1` or more, at most [`Cpus::MAX_ID`].
    pub(crate) last_id: u32,
}

impl Place {
    /// The place of the only CPU.
    pub(crate) const ALONE: Self = Self { apic_id: 0, cpus: 1, last_id: 0 };

    /// Bits of an APIC id that tell the CPUs of the package apart.
    pub(crate) fn id_bits(self) -> u32 {
        (self.last_id + 1).next_power_of_two().trailing_zeros()
    }
}
