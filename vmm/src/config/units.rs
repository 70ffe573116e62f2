//! `--iommu`: the remapping units, and how a device lies behind one.

use iommu_vtd::{Platform, Profile};

use super::complaint::Complaint;
use crate::layout::MAX_UNITS;

/// Largest reserved region of one function, in MiB.
const MAX_RESERVED_MIB: u64 = 64;

/// A remapping unit to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct UnitSpec {
    /// Its name on the command line.
    pub(crate) id: String,
    /// What it offers: good for [`Profile::parse`].
    pub(crate) profile: String,
    /// Whether the guest learns which proximity domain it is near to. There is one: 0.
    pub(crate) affinity: bool,
    /// Whether the guest is asked not to use x2APIC.
    pub(crate) x2apic_opt_out: bool,
    /// Whether the guest is told that DMA is under control since power-on.
    pub(crate) platform_opt_in: bool,
}

/// How a device lies behind a unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Placement {
    /// Number of the unit; `None`: there is none.
    pub(crate) unit: Option<usize>,
    /// Memory that the device wants mapped one to one from the first moment, in bytes.
    pub(crate) reserved_bytes: u64,
    /// Whether it is told of as an integrated device with a device-TLB, and if so, whether it needs that.
    pub(crate) integrated: Option<bool>,
}

/// All units: `values` of `--iommu`, `off` among them only alone. The first is for all devices that name no other.
pub(super) fn parse_all(values: &[String]) -> Result<Vec<UnitSpec>, Complaint> {
    if values == ["off"] {
        return Ok(Vec::new());
    }
    if values.len() > MAX_UNITS {
        let thing = format!("--iommu given {} times", values.len());
        return Err(Complaint::new(thing, "too many", format_args!("give at most {MAX_UNITS}")));
    }
    let mut units: Vec<UnitSpec> = Vec::new();
    for (number, value) in values.iter().enumerate() {
        let unit = parse(value, format!("iommu{number}"))?;
        if units.iter().any(|other| other.id == unit.id) {
            let reason = format!("another unit has the id {}", unit.id);
            return Err(Complaint::new(format_args!("--iommu {value}"), reason, "give each its own id=NAME"));
        }
        units.push(unit);
    }
    Ok(units)
}

/// `PROFILE[,id=NAME][,node=0][,x2apic-opt-out=on][,dma-opt-in=on]`.
fn parse(value: &str, id: String) -> Result<UnitSpec, Complaint> {
    let complaint =
        |reason: &str, remedy: &str| Complaint::new(format_args!("--iommu {value}"), reason, remedy);
    if value.split(',').any(|item| item == "off") {
        return Err(complaint("off goes with no unit", "give --iommu off alone"));
    }
    let mut unit = UnitSpec {
        id,
        profile: String::new(),
        affinity: false,
        x2apic_opt_out: false,
        platform_opt_in: false,
    };
    let mut profile = Vec::new();
    for item in value.split(',') {
        let switch = |value: &str| match value {
            "on" => Ok(true),
            "off" => Ok(false),
            _ => Err(complaint(&format!("'{item}' is neither on nor off"), "give on or off")),
        };
        match item.split_once('=') {
            Some(("id", name)) if is_id(name) => unit.id = name.to_owned(),
            Some(("id", _)) => {
                return Err(complaint("the id is not of letters, digits and dashes", "give one that is"));
            }
            Some(("node", "0")) => unit.affinity = true,
            Some(("node", _)) => return Err(complaint("no such node", "give node=0: all is in one")),
            Some(("x2apic-opt-out", value)) => unit.x2apic_opt_out = switch(value)?,
            Some(("dma-opt-in", value)) => unit.platform_opt_in = switch(value)?,
            None if item == "on" => {}
            _ => profile.push(item),
        }
    }
    unit.profile = profile.join(",");
    // The widths are the host's and known later; no mix depends on them.
    let platform = Platform { host_address_width: 46, five_level: false };
    match Profile::parse(&unit.profile, platform) {
        Ok(_) => Ok(unit),
        Err(error) => Err(complaint(&error.reason(), &error.remedy())),
    }
}

fn is_id(id: &str) -> bool {
    !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

impl Placement {
    /// Takes `iommu=ID`, `rmrr-mib=N` and `satc=on|required` out of a device's `options`; the rest of them. `thing`
    /// is the device for messages.
    pub(super) fn take(
        options: &str,
        thing: &str,
        units: &[UnitSpec],
    ) -> Result<(Self, Vec<String>), Complaint> {
        let mut placement = Self { unit: (!units.is_empty()).then_some(0), ..Self::default() };
        let mut rest = Vec::new();
        for item in options.split(',').filter(|item| !item.is_empty()) {
            let complaint = |reason: &str, remedy: &str| {
                Complaint::new(format_args!("{thing} option '{item}'"), reason, remedy)
            };
            let Some((key @ ("iommu" | "rmrr-mib" | "satc"), value)) = item.split_once('=') else {
                rest.push(item.to_owned());
                continue;
            };
            if units.is_empty() {
                return Err(complaint("there is no unit", "leave out --iommu off"));
            }
            match key {
                "iommu" => {
                    placement.unit =
                        Some(find(value, units).map_err(|known| {
                            complaint("no unit has this id", &format!("give one of {known}"))
                        })?)
                }
                "rmrr-mib" => {
                    let mib = value.parse().ok().filter(|mib| (1..=MAX_RESERVED_MIB).contains(mib));
                    let wrong =
                        || complaint("not a number in range", &format!("give 1 to {MAX_RESERVED_MIB}"));
                    placement.reserved_bytes = mib.ok_or_else(wrong)? << 20;
                }
                _ => {
                    placement.integrated = Some(match value {
                        "on" => false,
                        "required" => true,
                        _ => return Err(complaint("unknown", "give on or required")),
                    });
                }
            }
        }
        Ok((placement, rest))
    }
}

/// The number of the unit `id`, or all ids.
fn find(id: &str, units: &[UnitSpec]) -> Result<usize, String> {
    let known = || units.iter().map(|unit| unit.id.as_str()).collect::<Vec<_>>().join(", ");
    units.iter().position(|unit| unit.id == id).ok_or_else(known)
}

/// Units after the first are for the devices that name them, so each must have some.
pub(super) fn check_used(
    units: &[UnitSpec],
    placements: impl Iterator<Item = Placement>,
) -> Result<(), Complaint> {
    let used: Vec<usize> = placements.filter_map(|placement| placement.unit).collect();
    match units.iter().enumerate().skip(1).find(|(number, _)| !used.contains(number)) {
        None => Ok(()),
        Some((_, unit)) => Err(Complaint::new(
            format_args!("--iommu id={}", unit.id),
            "no device is behind this unit",
            format_args!("give a device iommu={}, such as --svm iommu={}", unit.id, unit.id),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn units(values: &[&str]) -> Result<Vec<UnitSpec>, Complaint> {
        parse_all(&values.iter().map(|value| (*value).to_owned()).collect::<Vec<_>>())
    }

    fn unit(id: &str, profile: &str) -> UnitSpec {
        UnitSpec {
            id: id.into(),
            profile: profile.into(),
            affinity: false,
            x2apic_opt_out: false,
            platform_opt_in: false,
        }
    }

    /// (values, units)
    #[test]
    fn values_become_units() {
        let near = UnitSpec { affinity: true, ..unit("iommu0", "legacy,cm=on") };
        let flags = UnitSpec { x2apic_opt_out: true, platform_opt_in: true, ..unit("iommu0", "") };
        let rows: [(&[&str], Vec<UnitSpec>); 6] = [
            (&["off"], vec![]),
            (&["on"], vec![unit("iommu0", "")]),
            (&["full"], vec![unit("iommu0", "full")]),
            (&["legacy,node=0,cm=on"], vec![near]),
            (&["dma-opt-in=on,x2apic-opt-out=on"], vec![flags]),
            (
                &["id=a,scalable", "svm,aw-bits=57,id=b-2", "legacy"],
                vec![unit("a", "scalable"), unit("b-2", "svm,aw-bits=57"), unit("iommu2", "legacy")],
            ),
        ];
        for (values, expected) in rows {
            assert_eq!(units(values), Ok(expected), "{values:?}");
        }
    }

    /// (values, what is said)
    #[test]
    fn wrong_units_are_named_with_reason_and_remedy() {
        let rows: [(&[&str], &str); 11] = [
            (&["off", "legacy"], "--iommu off: off goes with no unit; give --iommu off alone"),
            (&["full,off"], "--iommu full,off: off goes with"),
            (&["full"; 9], "--iommu given 9 times: too many; give at most 8"),
            (&["full,id=a", "svm,id=a"], "--iommu svm,id=a: another unit has the id a; give each"),
            (&["id=iommu1", "full"], "--iommu full: another unit has the id iommu1"),
            (&["id=a b"], "the id is not of letters"),
            (&["node=1"], "no such node; give node=0"),
            (&["dma-opt-in=yes"], "'dma-opt-in=yes' is neither on nor off"),
            (&["modern"], "--iommu modern: no preset is called 'modern'; give one of legacy, scalable"),
            (&["colour=red"], "no option is called 'colour'; give one of scalable-mode"),
            (&["legacy,svm=on"], "svm needs scalable-mode=on; give scalable-mode=on too, or leave out svm"),
        ];
        for (values, expected) in rows {
            let complaint = units(values).unwrap_err().to_string();
            assert!(complaint.contains(expected), "{values:?}: {complaint}");
        }
    }

    /// (options, placement and rest, or what is said)
    #[test]
    fn devices_say_where_they_are() {
        let two = units(&["full", "legacy,id=old"]).unwrap();
        let placed = |unit, reserved_bytes, integrated, rest: &[&str]| {
            let rest: Vec<String> = rest.iter().map(|item| (*item).to_owned()).collect();
            Ok((Placement { unit: Some(unit), reserved_bytes, integrated }, rest))
        };
        for (options, expected) in [
            ("", placed(0, 0, None, &[])),
            ("a,iommu=old,b=c", placed(1, 0, None, &["a", "b=c"])),
            ("iommu=iommu0,rmrr-mib=2", placed(0, 2 << 20, None, &[])),
            ("satc=on", placed(0, 0, Some(false), &[])),
            ("satc=required,iommu=old", placed(1, 0, Some(true), &[])),
            ("iommu=new", Err("--x option 'iommu=new': no unit has this id; give one of iommu0, old")),
            ("rmrr-mib=0", Err("give 1 to 64")),
            ("rmrr-mib=65", Err("give 1 to 64")),
            ("satc=off", Err("give on or required")),
        ] {
            let taken = Placement::take(options, "--x", &two).map_err(|complaint| complaint.to_string());
            match expected {
                Ok(expected) => assert_eq!(taken, Ok(expected), "{options}"),
                Err(text) => assert!(taken.clone().unwrap_err().contains(text), "{options}: {taken:?}"),
            }
        }
        let none = Placement::take("a", "--x", &[]).unwrap();
        assert_eq!(none, (Placement::default(), vec!["a".to_owned()]));
        assert!(Placement::take("iommu=a", "--x", &[]).is_err());
    }

    #[test]
    fn a_unit_without_devices_is_refused() {
        let two = units(&["full", "legacy,id=old"]).unwrap();
        let behind = |unit| Placement { unit: Some(unit), ..Placement::default() };
        assert_eq!(check_used(&two, [behind(1)].into_iter()), Ok(()));
        assert_eq!(check_used(&two[..1], std::iter::empty()), Ok(()));
        let complaint = check_used(&two, [behind(0)].into_iter()).unwrap_err().to_string();
        assert!(complaint.starts_with("--iommu id=old: no device is behind this unit"), "{complaint}");
    }
}
