//! What is to be run, checked. Everything the user can get wrong is found here or while the machine is built.

mod complaint;
mod disk;
mod files;
mod ioat;
mod namespace;
mod svm;
mod units;
mod vfio;

use crate::cli::RunArgs;
use crate::cpus::Cpus;
use crate::layout::{LOW_RAM_LIMIT, low};

pub(crate) use complaint::{Complaint, reasons};
pub(crate) use disk::DiskFile;
pub(crate) use files::{Initrd, Kernel, KernelFormat, SerialTarget, StatsTarget};
pub(crate) use ioat::IoatSpec;
pub(crate) use svm::SvmSpec;
pub(crate) use units::{Placement, UnitSpec};
pub(crate) use vfio::{Inherited, Named, VfioSpec, parse_iommufd, parse_name};

/// vCPUs at most: APIC ids stay below 255, and the 8-bit fields of CPUID hold their number.
pub(crate) const MAX_CPUS: u32 = 64;
/// Guest memory at most; the guest's physical address width may allow less.
pub(crate) const MAX_MEMORY_MIB: u64 = 1 << 20;
/// How often the host's memory may be promised to one guest: guests seldom touch all of theirs, but one that is
/// given the wrong number of digits takes the host down while it boots.
const OVERCOMMIT: u64 = 4;
/// Guest memory comes in pieces that huge pages can back.
const MEMORY_STEP_MIB: u64 = 2;

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
    /// Remapping units. The first has all devices that name no other.
    pub(crate) units: Vec<UnitSpec>,
    /// SVM endpoints, at most [`crate::layout::slot::MAX_ENDPOINTS`].
    pub(crate) svm: Vec<SvmSpec>,
    /// DMA engines for the guest's kernel; together with the endpoints, at most that many.
    pub(crate) ioat: Vec<IoatSpec>,
    /// Assigned devices; together with both, at most that many.
    pub(crate) vfio: Vec<VfioSpec>,
    /// An open `/dev/iommu`, if it is not to be opened.
    pub(crate) iommufd: Option<Inherited>,
    /// Disks, at most [`crate::layout::slot::MAX_DISKS`].
    pub(crate) disks: Vec<DiskFile>,
    /// DMA engines that are no PCI functions, at most [`crate::layout::MAX_DMA_ENGINES`].
    pub(crate) namespace: Vec<Placement>,
    /// Whether the guest may run guests.
    pub(crate) nested: bool,
    /// Serial console.
    pub(crate) serial: SerialTarget,
    /// Where the numbers go when the run ends.
    pub(crate) stats: Option<StatsTarget>,
    /// Whether the guest has an exit port.
    pub(crate) exit_port: bool,
}

impl TryFrom<RunArgs> for Config {
    type Error = Complaint;

    fn try_from(args: RunArgs) -> Result<Self, Complaint> {
        let mut units = units::parse_all(&args.iommu)?;
        // Before any file is opened: these may name some by number.
        let iommufd = args.iommufd.as_deref().map(vfio::parse_iommufd).transpose()?;
        let vfio = vfio::parse_all(&args.vfio, &mut units)?;
        let kernel = files::open_kernel(&args.kernel)?;
        vfio::check_room(args.svm.len() + args.ioat.len(), vfio.len())?;
        let config = Self {
            cpus: check_cpus(args.cpus, args.apic_id_step)?,
            memory_bytes: check_memory(args.memory_mib)?,
            svm: svm::parse_all(&args.svm, &units)?,
            ioat: ioat::parse_all(&args.ioat, &units)?,
            vfio,
            iommufd,
            disks: disk::open_all(&args.disks, &units)?,
            namespace: namespace::parse_all(&args.acpi_dma, &units)?,
            units,
            cmdline: check_cmdline(args.cmdline, kernel.cmdline_max)?,
            kernel,
            nested: args.nested,
            initrd: args.initrd.as_deref().map(files::open_initrd).transpose()?,
            serial: files::open_serial(&args.serial)?,
            stats: args.stats.as_deref().map(files::open_stats).transpose()?,
            exit_port: args.exit_port.is_on(),
        };
        config.check_placements()?;
        Ok(config)
    }
}

impl Config {
    /// Where all devices are.
    fn placements(&self) -> impl Iterator<Item = Placement> {
        let svm = self.svm.iter().map(|endpoint| endpoint.placement);
        let ioat = self.ioat.iter().map(|engine| engine.placement);
        let disks = self.disks.iter().map(|disk| disk.placement);
        let vfio = self.vfio.iter().map(|device| device.placement);
        svm.chain(ioat).chain(vfio).chain(disks).chain(self.namespace.iter().copied())
    }

    fn check_placements(&self) -> Result<(), Complaint> {
        units::check_used(&self.units, self.placements())?;
        let reserved: u64 = self.placements().map(|placement| placement.reserved_bytes).sum();
        let low = self.memory_bytes.min(LOW_RAM_LIMIT);
        if reserved > low / 2 {
            return Err(Complaint::new(
                format_args!("rmrr-mib of {} in all", reserved >> 20),
                "more than half of the low memory",
                "give less, or raise --memory-mib",
            ));
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::files::tests::elf_head;
    use super::*;
    use clap::Parser;
    use devices::svm::SvmConfig;

    fn check(arguments: &[&str]) -> Result<Config, Complaint> {
        let mut line = vec!["svmm", "run"];
        line.extend(arguments);
        match crate::cli::Cli::try_parse_from(line).unwrap().command {
            crate::cli::Command::Run(run) => Config::try_from(*run),
            crate::cli::Command::Doctor(_) => unreachable!(),
        }
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
            ("stats", vec!["--kernel", &kernel, "--stats", "stdout"], "stderr or file:PATH"),
            ("stats file", vec!["--kernel", &kernel, "--stats", "file:/nowhere/x"], "no such file"),
            ("svm key", vec!["--kernel", &kernel, "--svm", "size=1"], "known are"),
            ("svm value", vec!["--kernel", &kernel, "--svm", "queues=17"], "1 to 16"),
            ("svm depth", vec!["--kernel", &kernel, "--svm", "depth=48"], "power of two"),
            ("svm depth 1", vec!["--kernel", &kernel, "--svm", "depth=1"], "power of two"),
            ("svm alone", vec!["--kernel", &kernel, "--svm", "--iommu", "off"], "give --iommu on"),
            ("svm unit", vec!["--kernel", &kernel, "--svm=iommu=x"], "one of iommu0"),
            ("idle unit", vec!["--kernel", &kernel, "--iommu", "svm", "--iommu", "legacy,id=x"], "id=x"),
            (
                "much reserved",
                vec!["--kernel", &kernel, "--memory-mib", "64", "--svm", "rmrr-mib=33"],
                "give less",
            ),
            ("DMA engine", vec!["--kernel", &kernel, "--acpi-dma", "queues=1"], "known are"),
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
    fn examples_of_the_help_text_are_right() {
        let text = crate::cli::EXAMPLES.replace("\\\n", " ").replace('"', "'");
        let commands: Vec<&str> = text.lines().filter(|line| line.starts_with("    svmm run")).collect();
        assert!(commands.len() > 5);
        for command in commands {
            // What stands in quotes is one word; no other holds a blank.
            let words = command.split('\'').enumerate().flat_map(|(index, part)| match index % 2 {
                0 => part.split_whitespace().collect(),
                _ => vec![part],
            });
            let crate::cli::Command::Run(run) = crate::cli::Cli::try_parse_from(words).unwrap().command
            else {
                panic!("{command}");
            };
            let units = units::parse_all(&run.iommu).unwrap();
            svm::parse_all(&run.svm, &units).unwrap();
            ioat::parse_all(&run.ioat, &units).unwrap();
            for disk in &run.disks {
                let (_, options) = disk.split_once(',').unwrap_or((disk, ""));
                Placement::take(options, "--disk", &units).unwrap();
            }
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
        let endpoint = SvmConfig { queues: 2, pri: false, ..SvmConfig::default() };
        let placement = Placement { unit: Some(0), ..Placement::default() };
        assert_eq!(config.svm, [SvmSpec { config: endpoint, placement }]);
        assert_eq!((config.units.len(), config.namespace.len()), (1, 0));
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
}
