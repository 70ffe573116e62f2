//! What a table must not say: the rules of chapter 8, and what makes guests reject the table as a whole.

use iommu_core::SourceId;

use super::scope::{DeviceScope, ScopeKind};
use super::table::{Dmar, Drhd};

/// Scopes of one structure at most, so that its length fits into 16 bits.
const MAX_SCOPES: usize = 512;
/// Bridges on the way to a device at most, so that a scope's length fits into 8 bits.
const MAX_HOPS: usize = 64;
/// Bytes of the name of a namespace device at most.
const MAX_NAME: usize = 255;

/// A table that guests would not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DmarError {
    /// No unit.
    #[error("a DMAR table needs a remapping unit")]
    NoUnit,
    /// Two units for what no other unit has.
    #[error("segment {0} has two units for all functions")]
    TwoForAll(u16),
    /// A unit for all functions that lists some.
    #[error("the unit for all functions of segment {0} lists functions or bridges")]
    ListsFunctions(u16),
    /// A device under two units, or twice under one.
    #[error("the device at {source_id:#06x} of segment {segment} is listed twice")]
    Twice {
        /// Segment.
        segment: u16,
        /// Where its path starts.
        source_id: u16,
    },
    /// A unit's register pages, or a reserved range, that do not start and end with pages.
    #[error("address {0:#x} is not aligned as it must be")]
    Alignment(u64),
    /// Two units' register pages.
    #[error("register pages at {0:#x} belong to two units")]
    Overlap(u64),
    /// A scope that names a namespace device without name.
    #[error("namespace device {0} has no name, or two")]
    Namespace(u8),
    /// A name that is no path of the ACPI namespace.
    #[error("the name of namespace device {0} is not an absolute path")]
    Name(u8),
    /// A structure without devices that must have some.
    #[error("a structure of type {0} names no device")]
    Empty(u16),
    /// A length that does not fit.
    #[error("too many devices, or too many bridges before one")]
    Long,
}

/// Whether guests take the table.
pub(super) fn check(dmar: &Dmar) -> Result<(), DmarError> {
    if dmar.units.is_empty() {
        return Err(DmarError::NoUnit);
    }
    dmar.units.iter().try_for_each(unit)?;
    for (index, one) in dmar.units.iter().enumerate() {
        dmar.units[..index].iter().try_for_each(|other| pair(one, other))?;
    }
    devices(dmar)?;
    for region in &dmar.reserved_memory {
        scopes(1, &region.scopes)?;
        let (start, end) = (*region.range.start(), *region.range.end());
        for address in [start, end.wrapping_add(1)] {
            aligned(address, 12)?;
        }
        if region.range.is_empty() {
            return Err(DmarError::Alignment(end));
        }
    }
    dmar.integrated.iter().try_for_each(|satc| scopes(5, &satc.scopes))?;
    dmar.root_ports.iter().try_for_each(|atsr| lengths(&atsr.root_ports))?;
    dmar.namespace.iter().try_for_each(|device| {
        let path = device.name.starts_with('\\') && !device.name.contains('\0');
        (path && device.name.len() <= MAX_NAME).then_some(()).ok_or(DmarError::Name(device.number))
    })
}

/// One unit for itself.
fn unit(unit: &Drhd) -> Result<(), DmarError> {
    if unit.register_pages_log2 > 15 {
        return Err(DmarError::Alignment(unit.register_base));
    }
    aligned(unit.register_base, 12 + unit.register_pages_log2)?;
    let pci = |scope: &DeviceScope| matches!(scope.kind(), ScopeKind::Endpoint | ScopeKind::SubHierarchy);
    if unit.include_pci_all {
        if unit.scopes.iter().any(pci) {
            return Err(DmarError::ListsFunctions(unit.segment));
        }
        return lengths(&unit.scopes);
    }
    scopes(0, &unit.scopes)
}

/// Two units side by side.
fn pair(one: &Drhd, other: &Drhd) -> Result<(), DmarError> {
    if one.include_pci_all && other.include_pci_all && one.segment == other.segment {
        return Err(DmarError::TwoForAll(one.segment));
    }
    let last = |unit: &Drhd| unit.register_base + ((0x1000 << unit.register_pages_log2) - 1);
    if one.register_base <= last(other) && other.register_base <= last(one) {
        return Err(DmarError::Overlap(one.register_base.max(other.register_base)));
    }
    Ok(())
}

/// Every device is under one unit, and every namespace device has one name.
fn devices(dmar: &Dmar) -> Result<(), DmarError> {
    let mut seen: Vec<(u16, &DeviceScope)> = Vec::new();
    for unit in &dmar.units {
        for scope in &unit.scopes {
            if seen.iter().any(|(segment, other)| *segment == unit.segment && same(other, scope)) {
                let SourceId(source_id) = scope.start();
                return Err(DmarError::Twice { segment: unit.segment, source_id });
            }
            seen.push((unit.segment, scope));
            if let ScopeKind::Namespace(number) = scope.kind() {
                let names = dmar.namespace.iter().filter(|device| device.number == number);
                if names.count() != 1 {
                    return Err(DmarError::Namespace(number));
                }
            }
        }
    }
    Ok(())
}

/// Whether both name one device: what is no PCI function has a number for its name.
fn same(one: &DeviceScope, other: &DeviceScope) -> bool {
    let pci = matches!(one.kind(), ScopeKind::Endpoint | ScopeKind::SubHierarchy);
    one == other || !pci && one.kind() == other.kind()
}

/// A structure that is about the devices it lists.
fn scopes(kind: u16, scopes: &[DeviceScope]) -> Result<(), DmarError> {
    if scopes.is_empty() {
        return Err(DmarError::Empty(kind));
    }
    lengths(scopes)
}

fn lengths(scopes: &[DeviceScope]) -> Result<(), DmarError> {
    let fit = scopes.len() <= MAX_SCOPES && scopes.iter().all(|scope| scope.depth() <= MAX_HOPS);
    // The largest structure: 512 scopes of 8 bytes, or few with long paths.
    let bytes: usize = scopes.iter().map(|scope| 8 + 2 * scope.depth()).sum();
    (fit && bytes <= usize::from(u16::MAX) - 24).then_some(()).ok_or(DmarError::Long)
}

fn aligned(address: u64, log2: u8) -> Result<(), DmarError> {
    (address.trailing_zeros() >= u32::from(log2)).then_some(()).ok_or(DmarError::Alignment(address))
}
