//! The files that a machine starts from, and its console: opened, and looked at.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::complaint::Complaint;

/// Where a bzImage's setup header has `cmdline_size`. Versions before 2.06 lack it; those that have the 64-bit entry
/// that we need, from 2.12 on, do not.
const CMDLINE_SIZE: std::ops::Range<usize> = 0x238..0x23c;
/// What Linux for x86 takes if no setup header tells: its `COMMAND_LINE_SIZE` is 2048 with the NUL.
const ELF_CMDLINE_MAX: u64 = 2047;
/// How a kernel file is to be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KernelFormat {
    /// Compressed image with the Linux setup header.
    BzImage,
    /// 64-bit ELF for x86.
    Elf,
}

/// A kernel that can be read and looks like one.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// For messages.
    pub(crate) path: PathBuf,
    /// Open for reading, at its start.
    pub(crate) file: File,
    /// Its format.
    pub(crate) format: KernelFormat,
    /// The longest command line that it takes, in bytes without the final NUL.
    pub(crate) cmdline_max: u64,
}

/// An initramfs that can be read.
#[derive(Debug)]
pub(crate) struct Initrd {
    /// For messages.
    pub(crate) path: PathBuf,
    /// Open for reading.
    pub(crate) file: File,
    /// Length in bytes, not 0.
    pub(crate) len: u64,
}

/// Where the serial console goes.
#[derive(Debug)]
pub(crate) enum SerialTarget {
    /// Standard input and output.
    Stdio,
    /// Nowhere, and nothing comes in.
    Null,
    /// Into a file; nothing comes in.
    File(File),
}

/// Where the numbers go when the run ends.
#[derive(Debug)]
pub(crate) enum StatsTarget {
    /// Standard error.
    Stderr,
    /// Into a file.
    File(File),
}

fn open_regular(path: &Path, option: &str, what: &str) -> Result<(File, u64), Complaint> {
    let complaint = |reason: String| {
        Complaint::new(format_args!("{option} {}", path.display()), reason, format_args!("give {what}"))
    };
    // Asked before opening: opening a FIFO would wait for a writer.
    let metadata = std::fs::metadata(path).map_err(|error| complaint(system_reason(&error)))?;
    if metadata.is_dir() {
        return Err(complaint("is a directory".into()));
    }
    if !metadata.is_file() {
        return Err(complaint("is not a regular file".into()));
    }
    let file = File::open(path).map_err(|error| complaint(system_reason(&error)))?;
    if metadata.len() == 0 {
        return Err(complaint("is empty".into()));
    }
    Ok((file, metadata.len()))
}

/// The system's words for an error, without the number.
pub(super) fn system_reason(error: &std::io::Error) -> String {
    let text = error.to_string().to_lowercase();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

pub(super) fn open_kernel(path: &Path) -> Result<Kernel, Complaint> {
    let what = "the path of a bzImage or of an ELF vmlinux for x86-64";
    let (mut file, _) = open_regular(path, "--kernel", what)?;
    let mut head = Vec::new();
    let read = (&mut file).take(0x300).read_to_end(&mut head).and_then(|_| file.seek(SeekFrom::Start(0)));
    let complaint = |reason: String| {
        Complaint::new(format_args!("--kernel {}", path.display()), reason, format_args!("give {what}"))
    };
    read.map_err(|error| complaint(system_reason(&error)))?;
    let format = kernel_format(&head).map_err(|reason| complaint(reason.into()))?;
    let cmdline_max = cmdline_max(&head, format);
    Ok(Kernel { path: path.into(), file, format, cmdline_max })
}

/// Tells the format from a file's first bytes. **Pure.**
fn kernel_format(head: &[u8]) -> Result<KernelFormat, &'static str> {
    if head.starts_with(b"\x7fELF") {
        // e_ident[EI_CLASS] 64-bit, e_machine EM_X86_64.
        return match (head.get(4), head.get(18..20)) {
            (Some(2), Some([62, 0])) => Ok(KernelFormat::Elf),
            _ => Err("is ELF, but not for x86-64"),
        };
    }
    if head.get(0x202..0x206) == Some(b"HdrS") {
        return Ok(KernelFormat::BzImage);
    }
    Err("is not a Linux kernel")
}

/// The longest command line that a kernel takes, in bytes without the final NUL, from the file's first bytes.
/// **Pure.**
fn cmdline_max(head: &[u8], format: KernelFormat) -> u64 {
    let size: Option<[u8; 4]> = head.get(CMDLINE_SIZE).and_then(|bytes| bytes.try_into().ok());
    match (format, size) {
        (KernelFormat::BzImage, Some(size)) => u32::from_le_bytes(size).into(),
        // Too short for a setup header: it will not load either.
        (KernelFormat::BzImage, None) => 0,
        (KernelFormat::Elf, _) => ELF_CMDLINE_MAX,
    }
}

pub(super) fn open_initrd(path: &Path) -> Result<Initrd, Complaint> {
    let (file, len) = open_regular(path, "--initrd", "the path of a cpio archive")?;
    Ok(Initrd { path: path.into(), file, len })
}

pub(super) fn open_serial(target: &str) -> Result<SerialTarget, Complaint> {
    let thing = format_args!("--serial {target}").to_string();
    match target {
        "stdio" => Ok(SerialTarget::Stdio),
        "null" => Ok(SerialTarget::Null),
        _ => match target.strip_prefix("file:") {
            Some(path) if !path.is_empty() => create(path, thing).map(SerialTarget::File),
            _ => Err(Complaint::new(thing, "unknown", "give stdio, null or file:PATH")),
        },
    }
}

pub(super) fn open_stats(target: &str) -> Result<StatsTarget, Complaint> {
    let thing = format_args!("--stats {target}").to_string();
    match (target, target.strip_prefix("file:")) {
        ("stderr", _) => Ok(StatsTarget::Stderr),
        (_, Some(path)) if !path.is_empty() => create(path, thing).map(StatsTarget::File),
        _ => Err(Complaint::new(thing, "unknown", "give stderr or file:PATH")),
    }
}

fn create(path: &str, thing: String) -> Result<File, Complaint> {
    File::create(path)
        .map_err(|error| Complaint::new(thing, system_reason(&error), "give a path that can be written"))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The first bytes of a kernel.
    pub(in crate::config) fn elf_head() -> Vec<u8> {
        let mut head = vec![0; 64];
        head[..5].copy_from_slice(b"\x7fELF\x02");
        head[18] = 62;
        head
    }

    #[test]
    fn the_kernel_file_says_how_long_a_command_line_it_takes() {
        let mut bz = vec![0; 0x300];
        bz[CMDLINE_SIZE].copy_from_slice(&4095u32.to_le_bytes());
        for (name, head, format, expected) in [
            ("bzImage", &bz[..], KernelFormat::BzImage, 4095),
            ("cut bzImage", &bz[..0x23b], KernelFormat::BzImage, 0),
            ("ELF", &bz[..], KernelFormat::Elf, 2047),
        ] {
            assert_eq!(cmdline_max(head, format), expected, "{name}");
        }
    }

    #[test]
    fn formats_are_told_apart() {
        let mut bz = vec![0; 0x300];
        bz[0x202..0x206].copy_from_slice(b"HdrS");
        assert_eq!(kernel_format(&bz), Ok(KernelFormat::BzImage));
        assert_eq!(kernel_format(&elf_head()), Ok(KernelFormat::Elf));
        let mut arm = elf_head();
        arm[18] = 183;
        for head in [&arm[..], b"", b"\x7fELF", &[0; 0x205]] {
            assert!(kernel_format(head).is_err(), "{head:?}");
        }
    }
}
