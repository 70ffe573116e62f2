//! `--acpi-dma`: DMA engines that are devices of the ACPI namespace, not PCI functions.

use super::complaint::Complaint;
use super::units::{Placement, UnitSpec};

/// Engines at most: as many pages of the memory map are kept for them.
pub(crate) const MAX_NAMESPACE_DEVICES: usize = 4;

/// All engines.
pub(super) fn parse_all(values: &[String], units: &[UnitSpec]) -> Result<Vec<Placement>, Complaint> {
    if values.len() > MAX_NAMESPACE_DEVICES {
        let thing = format!("--acpi-dma given {} times", values.len());
        return Err(Complaint::new(thing, "too many", format_args!("give at most {MAX_NAMESPACE_DEVICES}")));
    }
    let parse = |value: &String| {
        let (placement, rest) = Placement::take(value, "--acpi-dma", units)?;
        match rest.first() {
            None => Ok(placement),
            Some(option) => Err(Complaint::new(
                format_args!("--acpi-dma option '{option}'"),
                "unknown",
                "known are iommu, rmrr-mib and satc",
            )),
        }
    };
    values.iter().map(parse).collect()
}
