//! `--disk`: what is to be opened, opened and locked.

use std::fs::{File, TryLockError};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use devices::virtio::blk::spec::{ID_BYTES, SECTOR};

use super::complaint::Complaint;
use super::files::system_reason;
use super::units::{Placement, UnitSpec};
use crate::layout::slot::MAX_DISKS;

/// A disk that can be read, and written unless it is read-only. It is locked against other processes.
#[derive(Debug)]
pub(crate) struct DiskFile {
    /// Open as `read_only` says.
    pub(crate) file: File,
    /// Length in bytes: whole sectors, not 0.
    pub(crate) len: u64,
    /// The guest cannot write.
    pub(crate) read_only: bool,
    /// Its name in the guest.
    pub(crate) id: String,
    /// Its unit, if there is one.
    pub(crate) placement: Placement,
}

/// A value of `--disk`, read but not looked at.
#[derive(Debug, PartialEq, Eq)]
struct Wish {
    path: PathBuf,
    read_only: bool,
    id: Option<String>,
}

/// Opens all disks.
pub(super) fn open_all(values: &[String], units: &[UnitSpec]) -> Result<Vec<DiskFile>, Complaint> {
    if values.len() > MAX_DISKS {
        let thing = format_args!("--disk given {} times", values.len()).to_string();
        return Err(Complaint::new(thing, "too many", format_args!("give at most {MAX_DISKS}")));
    }
    let mut disks: Vec<DiskFile> = Vec::new();
    for (number, value) in values.iter().enumerate() {
        let (path, options) = value.split_once(',').unwrap_or((value, ""));
        let (placement, options) = Placement::take(options, "--disk", units)?;
        let wish = parse(path, &options.join(","))?;
        let id = wish.id.clone().unwrap_or_else(|| format!("disk{number}"));
        if disks.iter().any(|disk| disk.id == id) {
            let reason = format_args!("another disk has the id {id}").to_string();
            return Err(Complaint::new(format_args!("--disk {value}"), reason, "give each its own id=NAME"));
        }
        disks.push(DiskFile { placement, ..open(&wish, id)? });
    }
    Ok(disks)
}

/// `PATH[,readonly][,id=NAME]`, the path and the rest. **Pure.**
fn parse(path: &str, options: &str) -> Result<Wish, Complaint> {
    let complaint = |reason: &str, remedy: &str| {
        Complaint::new(format_args!("--disk {path},{options}"), reason, format_args!("give {remedy}"))
    };
    if path.is_empty() {
        return Err(complaint("no path", "PATH[,readonly][,id=NAME]"));
    }
    let mut wish = Wish { path: path.into(), read_only: false, id: None };
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            None if option == "readonly" => wish.read_only = true,
            Some(("id", id)) if is_id(id) => wish.id = Some(id.to_owned()),
            Some(("id", _)) => {
                let reason = format!("the id is not of 1 to {ID_BYTES} printable ASCII characters");
                return Err(complaint(&reason, "one that is"));
            }
            _ => {
                let reason = format!("unknown option '{option}'");
                return Err(complaint(
                    &reason,
                    "readonly, id=NAME, iommu=ID, rmrr-mib=N or satc=on, and a path without a comma",
                ));
            }
        }
    }
    Ok(wish)
}

fn is_id(id: &str) -> bool {
    (1..=ID_BYTES).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
}

fn open(wish: &Wish, id: String) -> Result<DiskFile, Complaint> {
    let path: &Path = &wish.path;
    let complaint = |reason: String, remedy: &str| {
        Complaint::new(format_args!("--disk {}", path.display()), reason, format_args!("give {remedy}"))
    };
    const IMAGE: &str = "the path of a disk image, such as `truncate -s 64M PATH` makes one";
    // Asked before opening: opening a FIFO would wait for a writer.
    let metadata = std::fs::metadata(path).map_err(|error| complaint(system_reason(&error), IMAGE))?;
    if metadata.is_dir() {
        return Err(complaint("is a directory".into(), IMAGE));
    }
    if !metadata.is_file() && !metadata.file_type().is_block_device() {
        return Err(complaint("is neither a regular file nor a block device".into(), IMAGE));
    }
    let opened = File::options().read(true).write(!wish.read_only).open(path);
    let access = match wish.read_only {
        true => "a path that can be read",
        false => "a path that can be read and written, or add ,readonly",
    };
    let mut file = opened.map_err(|error| complaint(system_reason(&error), access))?;
    let locked = if wish.read_only { file.try_lock_shared() } else { file.try_lock() };
    match locked {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let reason = "in use: another disk or process has locked it".to_owned();
            return Err(complaint(reason, "another, stop that process, or add ,readonly to both"));
        }
        // A file system without locks has nobody to keep out either.
        Err(TryLockError::Error(error)) => log::warn!("--disk {}: not locked: {error}", path.display()),
    }
    // A block device has no length of its own in its metadata.
    let len = file.seek(SeekFrom::End(0)).map_err(|error| complaint(system_reason(&error), IMAGE))?;
    if len == 0 {
        return Err(complaint("is empty".into(), IMAGE));
    }
    if !len.is_multiple_of(SECTOR) {
        let reason = format!("its {len} bytes are no multiple of {SECTOR}");
        return Err(complaint(
            reason,
            "a file of whole sectors; `truncate -s %512 PATH` fills up the last one",
        ));
    }
    Ok(DiskFile { file, len, read_only: wish.read_only, id, placement: Placement::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_value(value: &str) -> Result<Wish, Complaint> {
        let (path, options) = value.split_once(',').unwrap_or((value, ""));
        parse(path, options)
    }

    #[test]
    fn values_are_taken_apart() {
        let wish = |path: &str, read_only, id: Option<&str>| {
            Ok(Wish { path: path.into(), read_only, id: id.map(str::to_owned) })
        };
        for (value, expected) in [
            ("a.img", wish("a.img", false, None)),
            ("/x/a b,readonly", wish("/x/a b", true, None)),
            ("a,id=root,readonly", wish("a", true, Some("root"))),
            ("a,", wish("a", false, None)),
            ("a,id=12345678901234567890", wish("a", false, Some("12345678901234567890"))),
            (",readonly", Err("no path")),
            ("", Err("no path")),
            ("a,ro", Err("unknown option 'ro'")),
            ("a,readonly=yes", Err("unknown option 'readonly=yes'")),
            ("a,b.img", Err("a path without a comma")),
            ("a,id=", Err("printable")),
            ("a,id=123456789012345678901", Err("1 to 20")),
            ("a,id=\u{e9}", Err("ASCII")),
        ] {
            match (parse_value(value).map_err(|complaint| complaint.to_string()), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{value}"),
                (Err(found), Err(expected)) => assert!(found.contains(expected), "{value}: {found}"),
                (found, expected) => panic!("{value}: {found:?} instead of {expected:?}"),
            }
        }
    }

    #[test]
    fn what_cannot_be_a_disk_is_named_with_reason_and_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str, len: usize| {
            let path = folder.path().join(name);
            std::fs::write(&path, vec![0; len]).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let (good, other, odd, empty) =
            (path("good", 1024), path("other", 512), path("odd", 513), path("e", 0));
        let shared = format!("{good},readonly");
        let held = File::open(&other).unwrap();
        held.try_lock_shared().unwrap();
        let rows: [(&str, Vec<&str>, Option<&str>); 12] = [
            ("one", vec![&good], None),
            ("two", vec![&good, "/dev/null"], Some("neither a regular file")),
            ("missing", vec!["/nowhere/x"], Some("--disk /nowhere/x: no such file")),
            ("folder", vec!["/tmp"], Some("is a directory")),
            ("empty", vec![&empty], Some("is empty")),
            ("odd", vec![&odd], Some("its 513 bytes")),
            ("twice", vec![&good, &good], Some("in use")),
            ("twice, one read-only", vec![&good, &shared], Some("in use")),
            ("both read-only", vec![&shared, &shared], None),
            ("locked by somebody", vec![&other], Some("in use")),
            ("one id", vec!["/dev/null,id=disk1", "/dev/null"], Some("neither")),
            ("too many", vec![&good; 17], Some("at most 16")),
        ];
        for (name, values, expected) in rows {
            let values: Vec<String> = values.into_iter().map(str::to_owned).collect();
            let opened = open_all(&values, &[]).map_err(|complaint| complaint.to_string());
            match (opened, expected) {
                (Ok(disks), None) => {
                    assert_eq!((disks[0].len, disks[0].id.as_str()), (1024, "disk0"), "{name}")
                }
                (Err(found), Some(expected)) => {
                    assert!(found.contains(expected) && found.contains("; give "), "{name}: {found}");
                }
                (opened, _) => panic!("{name}: {opened:?}"),
            }
        }
        let same = [format!("{good},id=x"), format!("{shared},id=x")];
        let complaint = open_all(&same, &[]).expect_err("one id").to_string();
        assert!(complaint.contains("another disk has the id x"), "{complaint}");
    }
}
