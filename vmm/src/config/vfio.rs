//! `--vfio` and `--iommufd`: devices of the host that the guest gets.

use std::fmt;
use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;

use vfio_bridge::choice::Wanted;
use vfio_bridge::sys::inherited;

use super::complaint::Complaint;
use super::units::{Placement, UnitSpec};
use crate::layout::MAX_UNITS;
use crate::layout::slot::MAX_ENDPOINTS;

/// The name of the unit that assigned devices have to themselves.
const UNIT: &str = "assigned";

/// A file that this process was started with.
#[derive(Clone, Debug)]
pub(crate) struct Inherited {
    number: RawFd,
    file: Arc<OwnedFd>,
}

impl Inherited {
    /// Takes over file `number`, given with `thing`.
    fn take(number: &str, thing: &str) -> Result<Self, Complaint> {
        let number = number.parse().ok().filter(|number: &RawFd| *number > 2);
        let number =
            number.ok_or_else(|| Complaint::new(thing, "no number of an open file", "give 3 or more"))?;
        let file = inherited(number).map_err(|errno| {
            let remedy = "start svmm with that file open, and not closed on exec";
            Complaint::new(thing, std::io::Error::from(errno), remedy)
        })?;
        Ok(Self { number, file: Arc::new(file) })
    }

    /// One more descriptor of the file.
    ///
    /// # Errors
    /// The process has no room for it.
    pub(crate) fn file(&self) -> std::io::Result<OwnedFd> {
        self.file.try_clone()
    }
}

impl PartialEq for Inherited {
    /// The same number is the same file.
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Inherited {}

impl fmt::Display for Inherited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fd={}", self.number)
    }
}

/// How a device is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Named {
    /// By its address on the host, `DDDD:BB:DD.F` in lower case.
    Address(String),
    /// By its file below `/dev/vfio/devices`.
    Path(PathBuf),
    /// By a file that this process was started with.
    Inherited(Inherited),
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => f.write_str(address),
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Inherited(file) => write!(f, "{file}"),
        }
    }
}

/// A device to be assigned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VfioSpec {
    /// Which.
    pub(crate) device: Named,
    /// What logs call it.
    pub(crate) id: String,
    /// Its unit.
    pub(crate) placement: Placement,
    /// How it is to be translated; the same for all behind a unit.
    pub(crate) wanted: Wanted,
}

/// All devices. Those that name no unit get one of their own, which is added to `units`; without units they get none.
pub(super) fn parse_all(values: &[String], units: &mut Vec<UnitSpec>) -> Result<Vec<VfioSpec>, Complaint> {
    let named = |value: &String| value.split(',').any(|item| item.starts_with("iommu="));
    let own = !units.is_empty() && values.iter().any(|value| !named(value));
    let number = units.len();
    if own {
        let unit = UnitSpec { id: UNIT.to_owned(), ..UnitSpec::default() };
        if number >= MAX_UNITS {
            let reason = format!("assigned devices take one more than {MAX_UNITS} units");
            return Err(Complaint::new("--vfio", reason, "give them iommu=ID"));
        }
        if units.iter().any(|other| other.id == unit.id) {
            let reason = format!("devices without iommu=ID get a unit {UNIT}, and there is one");
            return Err(Complaint::new("--vfio", reason, format_args!("give iommu={UNIT}")));
        }
        units.push(unit);
    }
    let mut all: Vec<VfioSpec> = Vec::new();
    for value in values {
        let mut spec = parse(value, units)?;
        if own && !named(value) {
            spec.placement.unit = Some(number);
        }
        if all.iter().any(|other| other.device == spec.device) {
            return Err(Complaint::new(format_args!("--vfio {value}"), "given twice", "give it once"));
        }
        let beside = all.iter().find(|other| other.placement.unit == spec.placement.unit);
        if beside.is_some_and(|other| other.wanted != spec.wanted) {
            let reason = "another device of the same unit has another mode";
            return Err(Complaint::new(
                format_args!("--vfio {value}"),
                reason,
                "give all the same, or iommu=ID of another unit",
            ));
        }
        all.push(spec);
    }
    Ok(all)
}

/// `PATH|BDF|fd=N[,id=NAME][,mode=WAY]` and what all devices have.
fn parse(value: &str, units: &[UnitSpec]) -> Result<VfioSpec, Complaint> {
    let (device, options) = value.split_once(',').unwrap_or((value, ""));
    let device = parse_name(device)?;
    let (placement, rest) = Placement::take(options, "--vfio", units)?;
    let mut spec = VfioSpec { id: device.to_string(), device, placement, wanted: Wanted::Auto };
    for option in rest {
        match option.split_once('=') {
            Some(("id", name)) if !name.is_empty() => spec.id = name.to_owned(),
            Some(("mode", way)) => {
                spec.wanted = way.parse().map_err(|known| {
                    let thing = format_args!("--vfio option '{option}'").to_string();
                    Complaint::new(thing, "no such mode", format_args!("give {known}"))
                })?;
            }
            _ => {
                let thing = format_args!("--vfio option '{option}'").to_string();
                let remedy = "known are id=NAME, mode, iommu, rmrr-mib and satc";
                return Err(Complaint::new(thing, "unknown", remedy));
            }
        }
    }
    Ok(spec)
}

/// A device's name: its address, a path, or an open file's number.
///
/// # Errors
/// It is none of them.
pub(crate) fn parse_name(text: &str) -> Result<Named, Complaint> {
    if let Some(number) = text.strip_prefix("fd=") {
        return Inherited::take(number, &format!("--vfio {text}")).map(Named::Inherited);
    }
    if text.starts_with('/') {
        return Ok(Named::Path(text.into()));
    }
    address(text).map(Named::Address).ok_or_else(|| {
        let remedy = "give an address such as 0000:6a:01.0, /dev/vfio/devices/vfio0, or fd=N of an open one";
        Complaint::new(format_args!("--vfio {text}"), "names no device", remedy)
    })
}

/// `[DDDD:]BB:DD.F` with hexadecimal numbers, in full and in lower case. **Pure.**
fn address(text: &str) -> Option<String> {
    let text = text.to_ascii_lowercase();
    let (front, function) = text.rsplit_once('.')?;
    let mut parts = front.rsplit(':');
    let (device, bus) = (parts.next()?, parts.next()?);
    let domain = parts.next().unwrap_or("0000");
    let hex = |part: &str, len: usize| part.len() == len && part.bytes().all(|b| b.is_ascii_hexdigit());
    let long = (4..=8).contains(&domain.len()) && domain.bytes().all(|b| b.is_ascii_hexdigit());
    let good = parts.next().is_none() && long && hex(bus, 2) && hex(device, 2) && hex(function, 1);
    good.then(|| format!("{domain}:{bus}:{device}.{function}"))
}

/// `--iommufd fd=N`.
///
/// # Errors
/// It is none.
pub(crate) fn parse_iommufd(value: &str) -> Result<Inherited, Complaint> {
    let thing = format!("--iommufd {value}");
    match value.strip_prefix("fd=") {
        Some(number) => Inherited::take(number, &thing),
        None => Err(Complaint::new(thing, "no file", "give fd=N, the number of the open /dev/iommu")),
    }
}

/// Endpoints and DMA engines, of which there are `emulated`, share the device numbers that come before the disks'.
pub(super) fn check_room(emulated: usize, vfio: usize) -> Result<(), Complaint> {
    if emulated + vfio <= MAX_ENDPOINTS {
        return Ok(());
    }
    let thing = format!("--vfio given {vfio} times, --svm and --ioat {emulated}");
    Err(Complaint::new(thing, "too many", format_args!("give at most {MAX_ENDPOINTS} of all three")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd as _;

    fn units(ids: &[&str]) -> Vec<UnitSpec> {
        ids.iter().map(|id| UnitSpec { id: (*id).to_owned(), ..UnitSpec::default() }).collect()
    }

    fn strings(values: &[&str]) -> Vec<String> {
        values.iter().map(|value| (*value).to_owned()).collect()
    }

    /// (values, units before, (name, id, unit) of each, units after)
    #[test]
    fn devices_are_named_and_placed() {
        type Row<'a> = (&'a [&'a str], &'a [&'a str], Vec<(&'a str, &'a str, Option<usize>)>, usize);
        let full = "0000:6a:01.0";
        let open = std::fs::File::open("/dev/null").unwrap();
        let fd = &format!("fd={}", open.as_raw_fd())[..];
        let rows: [Row<'_>; 7] = [
            (&[], &["iommu0"], vec![], 1),
            (&["6A:01.0"], &["iommu0"], vec![(full, full, Some(1))], 2),
            (&["0000:6a:01.0,id=dsa"], &[], vec![(full, "dsa", None)], 0),
            (&["6a:01.0,iommu=iommu0"], &["iommu0"], vec![(full, full, Some(0))], 1),
            (
                &["6a:01.0", "/dev/vfio/devices/vfio3,id=b,iommu=a", fd],
                &["iommu0", "a"],
                vec![(full, full, Some(2)), ("/dev/vfio/devices/vfio3", "b", Some(1)), (fd, fd, Some(2))],
                3,
            ),
            (&["10000:00:1f.7"], &[], vec![("10000:00:1f.7", "10000:00:1f.7", None)], 0),
            (&[fd], &[], vec![(fd, fd, None)], 0),
        ];
        for (values, before, expected, after) in rows {
            let mut units = units(before);
            let specs = parse_all(&strings(values), &mut units).unwrap();
            let expected: Vec<_> =
                expected.iter().map(|(name, id, unit)| (name.to_string(), id.to_string(), *unit)).collect();
            let found: Vec<_> = specs
                .iter()
                .map(|spec| (spec.device.to_string(), spec.id.clone(), spec.placement.unit))
                .collect();
            assert_eq!((found, units.len()), (expected, after), "{values:?}");
        }
    }

    /// (values, units before, what is said)
    #[test]
    fn wrong_devices_are_named_with_reason_and_remedy() {
        let rows: [(&[&str], &[&str], &str); 14] = [
            (&["6a:01"], &[], "--vfio 6a:01: names no device; give an address such as"),
            (&[""], &[], "names no device"),
            (&["6a:01.g"], &[], "names no device"),
            (&["a:01.0"], &[], "names no device"),
            (&["0:0000:6a:01.0"], &[], "names no device"),
            (&["fd=2"], &[], "--vfio fd=2: no number of an open file; give 3 or more"),
            (&["fd=x"], &[], "give 3 or more"),
            (&["6a:01.0,id="], &[], "--vfio option 'id=': unknown; known are"),
            (
                &["6a:01.0,mode=fast"],
                &[],
                "'mode=fast': no such mode; give auto, nested, shadow or container",
            ),
            (&["6a:01.0,mode=shadow", "6a:02.0"], &["iommu0"], "has another mode; give all the same"),
            (&["6a:01.0,iommu=x"], &["iommu0"], "no unit has this id; give one of iommu0"),
            (&["6a:01.0", "0000:6A:01.0"], &[], "given twice"),
            (&["6a:01.0"], &["iommu0", "assigned"], "give iommu=assigned"),
            (&["6a:01.0"], &["a", "b", "c", "d", "e", "f", "g", "h"], "give them iommu=ID"),
        ];
        for (values, before, expected) in rows {
            let complaint = parse_all(&strings(values), &mut units(before)).unwrap_err().to_string();
            assert!(complaint.contains(expected), "{values:?}: {complaint}");
        }
        let open = std::fs::File::open("/dev/null").unwrap();
        let fd = format!("fd={}", open.as_raw_fd());
        assert_eq!(parse_iommufd(&fd).unwrap().to_string(), fd);
        for (value, expected) in [
            ("/dev/iommu", "give fd=N"),
            ("fd=", "give 3 or more"),
            ("5", "give fd=N"),
            ("fd=99999999", "not closed on exec"),
        ] {
            let complaint = parse_iommufd(value).unwrap_err().to_string();
            assert!(complaint.contains(expected), "{value}: {complaint}");
        }
        assert_eq!(check_room(14, 1), Ok(()));
        assert!(check_room(14, 2).unwrap_err().to_string().contains("give at most 15 of all three"));
    }
}
