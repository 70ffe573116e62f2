//! What is to be run, checked. Everything the user can get wrong is found here or while the machine is built.

use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use devices::svm::SvmConfig;
use devices::svm::spec::{DEPTH_LOG2, MAX_QUEUES};

use crate::boot::cpuid::Cpus;
use crate::cli::{RunArgs, Switch};
use crate::layout::low;

/// vCPUs at most: APIC ids stay below 255, and the 8-bit fields of CPUID hold their number.
pub(crate) const MAX_CPUS: u32 = 64;
/// Guest memory at most; the guest's physical address width may allow less.
pub(crate) const MAX_MEMORY_MIB: u64 = 1 << 20;
/// How often the host's memory may be promised to one guest: guests seldom touch all of theirs, but one that is
/// given the wrong number of digits takes the host down while it boots.
const OVERCOMMIT: u64 = 4;
/// Where a bzImage's setup header has `cmdline_size`. Versions before 2.06 lack it; those that have the 64-bit entry
/// that we need, from 2.12 on, do not.
const CMDLINE_SIZE: std::ops::Range<usize> = 0x238..0x23c;
/// What Linux for x86 takes if no setup header tells: its `COMMAND_LINE_SIZE` is 2048 with the NUL.
const ELF_CMDLINE_MAX: u64 = 2047;
/// Guest memory comes in pieces that huge pages can back.
const MEMORY_STEP_MIB: u64 = 2;

/// Something the user can put right: one line that names the thing, the reason and the remedy.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Complaint {
    /// The thing that is wrong.
    pub(crate) thing: String,
    /// What is wrong with it.
    pub(crate) reason: String,
    /// What to do.
    pub(crate) remedy: String,
}

impl Complaint {
    /// A complaint; control characters become spaces, so that it stays one line and does nothing to a terminal.
    pub(crate) fn new(
        thing: impl fmt::Display,
        reason: impl fmt::Display,
        remedy: impl fmt::Display,
    ) -> Self {
        let line = |text: String| text.replace(char::is_control, " ");
        Self {
            thing: line(thing.to_string()),
            reason: line(reason.to_string()),
            remedy: line(remedy.to_string()),
        }
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.thing, self.reason, self.remedy)
    }
}

/// The chain of an error's reasons on one line.
pub(crate) fn reasons(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let more = source.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        next = source.source();
    }
    text
}

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

/// One machine.
#[derive(Debug)]
pub(crate) struct Config {
    /// Kernel to boot.
    pub(crate) kernel: Kernel,
    /// Initial file system.
    pub(crate) initrd: Option<Initrd>,
    /// Kernel command line, no NUL in it, not longer than kernel and place take.
    pub(crate) cmdline: String,
    /// vCPUs, 1 to [`MAX_CPUS`].
    pub(crate) cpus: Cpus,
    /// RAM in bytes, a multiple of 2 MiB.
    pub(crate) memory_bytes: u64,
    /// The SVM endpoint, if there is to be one.
    pub(crate) svm: Option<SvmConfig>,
    /// Whether there is a VT-d unit.
    pub(crate) iommu: bool,
    /// Serial console.
    pub(crate) serial: SerialTarget,
    /// Whether the guest has an exit port.
    pub(crate) exit_port: bool,
}

impl TryFrom<RunArgs> for Config {
    type Error = Complaint;

    fn try_from(args: RunArgs) -> Result<Self, Complaint> {
        let kernel = open_kernel(&args.kernel)?;
        Ok(Self {
            cpus: check_cpus(args.cpus, args.apic_id_step)?,
            memory_bytes: check_memory(args.memory_mib)?,
            svm: check_svm(args.svm.as_deref(), args.iommu)?,
            cmdline: check_cmdline(args.cmdline, kernel.cmdline_max)?,
            kernel,
            initrd: args.initrd.as_deref().map(open_initrd).transpose()?,
            iommu: args.iommu.is_on(),
            serial: open_serial(&args.serial)?,
            exit_port: args.exit_port.is_on(),
        })
    }
}

fn check_cpus(count: u32, id_step: u32) -> Result<Cpus, Complaint> {
    if !(1..=MAX_CPUS).contains(&count) {
        let remedy = format_args!("give 1 to {MAX_CPUS}").to_string();
        return Err(Complaint::new(format_args!("--cpus {count}"), "out of range", remedy));
    }
    let cpus = Cpus { count, id_step };
    let most = Cpus::MAX_ID / (count - 1).max(1);
    if (1..=most).contains(&id_step) {
        return Ok(cpus);
    }
    let thing = format_args!("--apic-id-step {id_step}").to_string();
    let reason = format_args!("out of range for --cpus {count}").to_string();
    Err(Complaint::new(thing, reason, format_args!("give 1 to {most}")))
}

fn check_memory(mib: u64) -> Result<u64, Complaint> {
    let thing = format_args!("--memory-mib {mib}").to_string();
    if mib == 0 {
        return Err(Complaint::new(thing, "a guest needs memory", "give 64 or more for a Linux guest"));
    }
    if mib > MAX_MEMORY_MIB {
        return Err(Complaint::new(thing, "too large", format_args!("give at most {MAX_MEMORY_MIB}")));
    }
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    if let Some(host) = host_memory_mib(&meminfo).filter(|host| mib > host * OVERCOMMIT) {
        let reason = format!("too large for this host's {host} MiB");
        return Err(Complaint::new(thing, reason, format_args!("give at most {}", host * OVERCOMMIT)));
    }
    if !mib.is_multiple_of(MEMORY_STEP_MIB) {
        let remedy = format!("give a multiple of {MEMORY_STEP_MIB}, such as {}", mib + mib % MEMORY_STEP_MIB);
        return Err(Complaint::new(thing, "not aligned to a huge page", remedy));
    }
    Ok(mib << 20)
}

/// RAM and swap space in MiB, from `/proc/meminfo`. **Pure.**
fn host_memory_mib(meminfo: &str) -> Option<u64> {
    let field = |name: &str| -> Option<u64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    Some((field("MemTotal:")? + field("SwapTotal:").unwrap_or(0)) >> 10)
}

fn check_cmdline(cmdline: String, kernel_max: u64) -> Result<String, Complaint> {
    // The kernel takes these two for spaces, and so a script may break a long line.
    let control = |c: char| c.is_control() && !matches!(c, '\t' | '\n');
    if let Some(found) = cmdline.chars().find(|&c| control(c)) {
        let reason = format_args!("the command line contains the control character {found:?}").to_string();
        return Err(Complaint::new("--cmdline", reason, "give text without it"));
    }
    let max = kernel_max.min(low::CMDLINE.len - 1);
    if cmdline.len() as u64 > max {
        let reason =
            format_args!("the command line has {} bytes, this kernel takes {max}", cmdline.len()).to_string();
        return Err(Complaint::new("--cmdline", reason, format_args!("give at most {max} bytes")));
    }
    Ok(cmdline)
}

fn check_svm(options: Option<&str>, iommu: Switch) -> Result<Option<SvmConfig>, Complaint> {
    if options.is_some() && !iommu.is_on() {
        return Err(Complaint::new(
            "--svm",
            "the endpoint works behind the VT-d unit only",
            "give --iommu on",
        ));
    }
    options.map(parse_svm).transpose()
}

fn parse_svm(options: &str) -> Result<SvmConfig, Complaint> {
    let mut config = SvmConfig::default();
    for option in options.split(',').filter(|option| !option.is_empty()) {
        let complaint = |reason: &str, remedy: &str| {
            Complaint::new(format_args!("--svm option '{option}'"), reason, remedy)
        };
        let Some((key, value)) = option.split_once('=') else {
            return Err(complaint("no value", "write key=value, such as queues=8"));
        };
        let number = |max: u16| {
            let wanted: Option<u16> = value.parse().ok().filter(|n| (1..=max).contains(n));
            wanted.ok_or_else(|| complaint("not a number in range", &format!("give 1 to {max}")))
        };
        let switch = || match value {
            "on" => Ok(true),
            "off" => Ok(false),
            _ => Err(complaint("neither on nor off", "give on or off")),
        };
        match key {
            "queues" => config.queues = u8::try_from(number(MAX_QUEUES.into())?).unwrap_or(MAX_QUEUES),
            "depth" => {
                config.depth_log2 = depth_log2(value)
                    .ok_or_else(|| complaint("not a depth", "give a power of two from 2 to 1024"))?
            }
            "ats" => config.ats = switch()?,
            "pri" => config.pri = switch()?,
            _ => return Err(complaint("unknown", "known are queues, depth, ats and pri")),
        }
    }
    if config.pri && !config.ats {
        return Err(Complaint::new("--svm pri=on", "page requests need ATS", "give ats=on, or pri=off too"));
    }
    Ok(config)
}

/// The logarithm of a depth that queues can have. **Pure.**
fn depth_log2(value: &str) -> Option<u8> {
    let depth: u32 = value.parse().ok().filter(|depth: &u32| depth.is_power_of_two())?;
    let log2 = u8::try_from(depth.trailing_zeros()).ok()?;
    DEPTH_LOG2.contains(&log2).then_some(log2)
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
fn system_reason(error: &std::io::Error) -> String {
    let text = error.to_string().to_lowercase();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

fn open_kernel(path: &Path) -> Result<Kernel, Complaint> {
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

fn open_initrd(path: &Path) -> Result<Initrd, Complaint> {
    let (file, len) = open_regular(path, "--initrd", "the path of a cpio archive")?;
    Ok(Initrd { path: path.into(), file, len })
}

fn open_serial(target: &str) -> Result<SerialTarget, Complaint> {
    let thing = format_args!("--serial {target}").to_string();
    match target {
        "stdio" => Ok(SerialTarget::Stdio),
        "null" => Ok(SerialTarget::Null),
        _ => match target.strip_prefix("file:") {
            Some(path) if !path.is_empty() => File::create(path).map(SerialTarget::File).map_err(|error| {
                Complaint::new(thing, system_reason(&error), "give a path that can be written")
            }),
            _ => Err(Complaint::new(thing, "unknown", "give stdio, null or file:PATH")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn check(arguments: &[&str]) -> Result<Config, Complaint> {
        let mut line = vec!["svmm", "run"];
        line.extend(arguments);
        match crate::cli::Cli::try_parse_from(line).unwrap().command {
            crate::cli::Command::Run(run) => Config::try_from(*run),
            crate::cli::Command::Doctor(_) => unreachable!(),
        }
    }

    fn elf_head() -> Vec<u8> {
        let mut head = vec![0; 64];
        head[..5].copy_from_slice(b"\x7fELF\x02");
        head[18] = 62;
        head
    }

    #[test]
    fn wrong_values_are_named_with_reason_and_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str, content: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let (kernel, empty, text) = (path("k", &elf_head()), path("empty", b""), path("text", b"hello"));
        let here = folder.path().to_str().unwrap();
        for (name, arguments, expected) in [
            ("kernel missing", vec!["--kernel", "/nowhere/k"], "no such file"),
            ("kernel folder", vec!["--kernel", here], "is a directory"),
            ("kernel empty", vec!["--kernel", &empty], "is empty"),
            ("kernel text", vec!["--kernel", &text], "not a Linux kernel"),
            ("kernel device", vec!["--kernel", "/dev/null"], "not a regular file"),
            (
                "initrd missing",
                vec!["--kernel", &kernel, "--initrd", "/nowhere/i"],
                "--initrd /nowhere/i: no such",
            ),
            ("initrd empty", vec!["--kernel", &kernel, "--initrd", &empty], "is empty"),
            ("no memory", vec!["--kernel", &kernel, "--memory-mib", "0"], "needs memory"),
            ("odd memory", vec!["--kernel", &kernel, "--memory-mib", "255"], "such as 256"),
            ("much memory", vec!["--kernel", &kernel, "--memory-mib", "18446744073709551615"], "too large"),
            ("no CPU", vec!["--kernel", &kernel, "--cpus", "0"], "give 1 to 64"),
            ("many CPUs", vec!["--kernel", &kernel, "--cpus", "65"], "give 1 to 64"),
            ("no step", vec!["--kernel", &kernel, "--apic-id-step", "0"], "give 1 to 32767"),
            (
                "ids that Linux does not take",
                vec!["--kernel", &kernel, "--cpus", "4", "--apic-id-step", "10923"],
                "give 1 to 10922",
            ),
            ("serial", vec!["--kernel", &kernel, "--serial", "tty"], "stdio, null or file:PATH"),
            ("serial file", vec!["--kernel", &kernel, "--serial", "file:/nowhere/x"], "no such file"),
            ("svm key", vec!["--kernel", &kernel, "--svm", "size=1"], "known are"),
            ("svm value", vec!["--kernel", &kernel, "--svm", "queues=17"], "1 to 16"),
            ("svm depth", vec!["--kernel", &kernel, "--svm", "depth=48"], "power of two"),
            ("svm depth 1", vec!["--kernel", &kernel, "--svm", "depth=1"], "power of two"),
            ("svm alone", vec!["--kernel", &kernel, "--svm", "--iommu", "off"], "give --iommu on"),
            ("svm switch", vec!["--kernel", &kernel, "--svm", "ats=yes"], "on or off"),
            ("svm pri without ats", vec!["--kernel", &kernel, "--svm", "ats=off"], "need ATS"),
        ] {
            let complaint = check(&arguments).expect_err(name).to_string();
            assert!(complaint.contains(expected), "{name}: {complaint}");
            assert!(
                !complaint.contains('\n') && complaint.contains("; give ") || complaint.contains("; known"),
                "{name}: {complaint}"
            );
        }
    }

    #[test]
    fn host_memory_is_ram_and_swap() {
        for (meminfo, expected) in [
            ("MemTotal:  2048 kB\nMemFree: 1 kB\nSwapTotal: 1024 kB\n", Some(3)),
            ("MemTotal:  2048 kB\n", Some(2)),
            ("", None),
        ] {
            assert_eq!(host_memory_mib(meminfo), expected, "{meminfo:?}");
        }
    }

    #[test]
    fn good_values_pass() {
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("k");
        std::fs::write(&kernel, elf_head()).unwrap();
        let kernel = kernel.to_str().unwrap();
        let config = check(&["--kernel", kernel, "--svm", "queues=2,pri=off", "--cpus", "64"]).unwrap();
        assert_eq!(config.svm, Some(SvmConfig { queues: 2, pri: false, ..SvmConfig::default() }));
        assert_eq!((config.cpus.count, config.memory_bytes), (64, 512 << 20));
        assert_eq!(config.kernel.format, KernelFormat::Elf);
    }

    #[test]
    fn a_command_line_is_one_that_the_kernel_takes() {
        let long = |len: usize| "x".repeat(len);
        for (name, cmdline, max, expected) in [
            ("empty", String::new(), 0, None),
            ("as long as can be", long(2047), 2047, None),
            ("one too long", long(2048), 2047, Some("give at most 2047 bytes")),
            ("bytes count, not characters", "é".repeat(8), 15, Some("has 16 bytes")),
            ("longer than its place", long(0x1_0000), u64::MAX, Some("give at most 65535 bytes")),
            ("broken and indented", "a\n\tb é".into(), 99, None),
            ("NUL", "a\0b".into(), 99, Some(r"character '\0'; give")),
            ("escape", "\x1b[2J".into(), 99, Some(r"character '\u{1b}'; give")),
            ("control character beyond ASCII", "a\u{9b}".into(), 99, Some(r"character '\u{9b}'; give")),
        ] {
            let checked = check_cmdline(cmdline.clone(), max);
            match expected {
                None => assert_eq!(checked.as_ref(), Ok(&cmdline), "{name}"),
                Some(expected) => {
                    let complaint = checked.expect_err(name).to_string();
                    assert!(complaint.contains(expected), "{name}: {complaint}");
                }
            }
        }
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
