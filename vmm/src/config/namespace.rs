//! `--acpi-dma`: DMA engines that are devices of the ACPI namespace, not PCI functions.

use super::complaint::Complaint;
use super::units::{Placement, UnitSpec};
use crate::layout::MAX_DMA_ENGINES;

/// All engines.
pub(super) fn parse_all(values: &[String], units: &[UnitSpec]) -> Result<Vec<Placement>, Complaint> {
    if values.len() > MAX_DMA_ENGINES {
        let thing = format!("--acpi-dma given {} times", values.len());
        return Err(Complaint::new(thing, "too many", format_args!("give at most {MAX_DMA_ENGINES}")));
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
