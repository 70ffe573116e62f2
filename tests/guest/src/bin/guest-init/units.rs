//! Which remapping unit has which device, as the kernel shows it.

use std::fs;
use std::path::{Path, PathBuf};

const UNITS: &str = "/sys/class/iommu";

/// One line per device: `unit ADDRESS has DEVICE`, then the regions that are mapped one to one for it:
/// `direct FIRST LAST`.
pub(crate) fn list() -> Vec<String> {
    let mut lines = Vec::new();
    for unit in entries(Path::new(UNITS)) {
        let address = fs::read_to_string(unit.join("intel-iommu/address")).unwrap_or_default();
        for device in entries(&unit.join("devices")) {
            let name = device.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let regions = fs::read_to_string(device.join("iommu_group/reserved_regions")).unwrap_or_default();
            lines.push(format!("unit {} has {name}{}", address.trim(), direct(&regions)));
        }
    }
    lines
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// The direct ones of `FIRST LAST TYPE` lines. Pure.
fn direct(regions: &str) -> String {
    regions.lines().filter_map(|line| line.strip_suffix(" direct")).map(|r| format!(" direct {r}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_direct_regions_are_told() {
        let regions = "0x1000 0x1fff direct\n0xfee00000 0xfeefffff msi\n0x5000 0x5fff direct\n";
        assert_eq!(direct(regions), " direct 0x1000 0x1fff direct 0x5000 0x5fff");
        assert_eq!(direct(""), "");
    }
}
