//! The command line, as clap reads it. What the values mean and whether they fit is [`crate::config`]'s.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use devices::svm::misbehaviour::Kind;

use crate::outcome::EXIT_CODES;

/// For the help text.
pub(crate) const EXAMPLES: &str = "\
Examples:
  A guest with a serial console on this terminal (leave with Ctrl-A x):
    svmm run --kernel bzImage --initrd initramfs.cpio --cmdline \"console=ttyS0\"

  Four CPUs, 6 GiB, the SVM endpoint with 8 queues; the guest program's status becomes the exit code:
    svmm run --kernel vmlinux --initrd initramfs.cpio.gz --cpus 4 \\
        --memory-mib 6144 --svm queues=8,depth=64,ats=on,pri=on \\
        --cmdline \"console=ttyS0 panic=-1\" --serial file:console.log

  Two disks, the second read-only, for the guest's virtio driver (/dev/vda, /dev/vdb):
    svmm run --kernel bzImage --initrd initramfs.cpio --disk data.img \\
        --disk base.img,readonly,id=base

  Two units: the first for an endpoint with five-level tables, the second, in legacy mode, for a disk:
    svmm run --kernel bzImage --initrd initramfs.cpio --iommu full,aw-bits=57 \\
        --iommu legacy,id=old --svm --disk data.img,iommu=old

  A unit in scalable mode without PASIDs, and one without interrupt remapping that caches what is absent:
    svmm run --kernel bzImage --iommu scalable,pasid-bits=0 --disk data.img
    svmm run --kernel bzImage --iommu svm,intremap=off,caching-mode=on,id=u0 \\
        --svm iommu=u0

  A DMA engine for the kernel's own driver, beside the endpoint:
    svmm run --kernel bzImage --initrd initramfs.cpio --svm --ioat channels=2

  A device-TLB that answers late once in 20 times, and three completions that get lost, the same in every run:
    svmm run --kernel bzImage --svm \\
      misbehave=late-invalidation:1/20@200,misbehave=lost-invalidation:3,seed=7

  A guest that is a host in turn: it can run svmm, and assign the endpoint to its own guest:
    svmm run --kernel bzImage --initrd host.cpio --memory-mib 2048 \\
        --nested --svm

  What would a guest get of a device of the host's, and why not more? Then give it the device:
    svmm doctor --vfio 0000:6a:01.0
    svmm run --kernel bzImage --initrd initramfs.cpio --vfio 0000:6a:01.0

  Can this host run guests, and how fast?
    svmm doctor";

/// Of `svmm doctor`.
const DOCTOR_EXIT_CODES: &str = "\
Exit codes:
  0  guests can run here; with --vfio, a guest can have the device
  1  not so
  2  wrong usage";

/// What `--iommu` takes.
fn units_help() -> String {
    let profile = iommu_vtd::profile::help().replace('\n', "\n  ");
    format!(
        "Presets and options of --iommu (a mix that no hardware could have is refused):\n  {profile}\n  \
         id=NAME: its name for iommu=ID of devices (iommu0, iommu1, ...)\n  \
         node=0: tell the guest the unit's proximity domain\n  \
         x2apic-opt-out=on|off: ask the guest not to use x2APIC\n  \
         dma-opt-in=on|off: tell the guest that DMA is under control since power-on"
    )
}

/// What `misbehave=` of `--svm` takes.
fn misbehaviour_help() -> String {
    let kinds = Kind::all().map(|kind| {
        let argument = kind.argument();
        let (low, high) = (argument.range.start(), argument.range.end());
        let note = match (low, high) {
            (0, 0) => String::new(),
            _ => format!(" (@{}, {low} to {high}; {})", argument.meaning, argument.default),
        };
        format!("\n  {}: {}{note}", kind.name(), kind.what())
    });
    format!("Kinds of misbehave= of --svm (@ARGUMENT, its range; unless given):{}", kinds.collect::<String>())
}

/// A virtual machine monitor in which shared virtual memory works.
#[derive(Debug, Parser)]
#[command(name = "svmm", version, after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub(crate) struct Cli {
    /// How much to log on standard error: off, error, warn, info, debug, trace, or RUST_LOG's syntax
    #[arg(
        long,
        global = true,
        value_name = "LEVEL",
        env = "RUST_LOG",
        default_value = "warn",
        hide_env = true
    )]
    pub(crate) log: String,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Boot a guest and stay until it ends
    #[command(after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{}\n\n{}\n\n{EXIT_CODES}", units_help(), misbehaviour_help()))]
    Run(Box<RunArgs>),
    /// Say what this host can do, and what to do about what is missing
    #[command(after_help = DOCTOR_EXIT_CODES)]
    Doctor(DoctorArgs),
}

/// Options of `svmm run`.
#[derive(Args, Clone, Debug)]
pub(crate) struct RunArgs {
    /// Linux kernel: bzImage, or ELF vmlinux (with PVH entry, or entered in 64-bit mode)
    #[arg(long, value_name = "PATH")]
    pub(crate) kernel: PathBuf,
    /// Initial file system: a cpio archive, compressed as the kernel can read
    #[arg(long, value_name = "PATH")]
    pub(crate) initrd: Option<PathBuf>,
    /// The whole kernel command line
    #[arg(long, value_name = "STRING", default_value = "console=ttyS0", allow_hyphen_values = true)]
    pub(crate) cmdline: String,
    /// Virtual CPUs, 1 to 64
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true)]
    pub(crate) cpus: u32,
    /// Distance of the CPUs' APIC ids. Ids from 255 on take an x2APIC, and interrupt remapping to reach them
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true)]
    pub(crate) apic_id_step: u32,
    /// Guest memory in MiB, a multiple of 2
    #[arg(long, value_name = "N", default_value_t = 512, allow_negative_numbers = true)]
    pub(crate) memory_mib: u64,
    /// Add an SVM endpoint. Options, comma-separated: queues=1 to 16 (8), depth=2 to 1024, a power of two (64),
    /// engines=1 to 16 (8), ats=on|off (on), pri=on|off (on), pasid-bits=1 to 20 (20), misbehave=KIND, KIND:COUNT or
    /// KIND:1/N to do something wrong always, COUNT times or once in N times, all of them with or without @ARGUMENT
    /// (may be repeated; the kinds are listed below), seed=N of its dice, and those of all devices: iommu=ID of its
    /// unit (the first), rmrr-mib=N of reserved memory that is mapped one to one, satc=on|required to list it as an
    /// integrated device with ATS.
    /// May be given up to 15 times
    #[arg(long, value_name = "OPTIONS", num_args = 0..=1, default_missing_value = "")]
    pub(crate) svm: Vec<String>,
    /// Add a DMA engine for a driver of the guest's kernel (Linux: ioatdma). Options, comma-separated: channels=1 to 4
    /// (1), transfer-kib=4 to 1024, a power of two: the longest copy of one descriptor (64), and those of all devices.
    /// May be given several times
    #[arg(long, value_name = "OPTIONS", num_args = 0..=1, default_missing_value = "")]
    pub(crate) ioat: Vec<String>,
    /// Assign a device of the host's that is bound to vfio-pci: its PCI address, its file below /dev/vfio/devices, or
    /// fd=N of that file, open; then its options: id=NAME, mode=auto|nested|shadow|container (auto: the best that the
    /// host has), and those of all devices. Without iommu=ID, such devices
    /// have a unit of their own, of the full profile as far as the host goes along. May be given several times
    #[arg(long, value_name = "DEVICE[,OPTION...]")]
    pub(crate) vfio: Vec<String>,
    /// The open /dev/iommu, if svmm itself may not open it: fd=N
    #[arg(long, value_name = "FD")]
    pub(crate) iommufd: Option<String>,
    /// Add a virtio disk: the path of a file or block device, then its options: readonly, id=NAME, and those of all
    /// devices. May be given up to 16 times; the file is locked while the guest runs
    #[arg(long = "disk", value_name = "PATH[,OPTION...]")]
    pub(crate) disks: Vec<String>,
    /// Add a DMA engine that is a device of the ACPI namespace instead of a PCI function, with the options of all
    /// devices. Linux takes it behind units in legacy mode only. May be given up to 4 times
    #[arg(long, value_name = "OPTIONS", num_args = 0..=1, default_missing_value = "")]
    pub(crate) acpi_dma: Vec<String>,
    /// A VT-d unit: PRESET[,OPTION=VALUE...], on (the preset full), or off. May be given up to 8 times; the first has every device that
    /// names no other. Presets and options are listed below
    #[arg(long, value_name = "PROFILE", default_value = "full")]
    pub(crate) iommu: Vec<String>,
    /// Let the guest run guests of its own, if KVM on this host nests: its CPUs have AMD's SVM or Intel's VMX
    #[arg(long)]
    pub(crate) nested: bool,
    /// Where the serial console goes: stdio, null, or file:PATH
    #[arg(long, value_name = "WHERE", default_value = "stdio")]
    pub(crate) serial: String,
    /// When the run ends, tell on one line of JSON what remapping units and assigned devices were asked to do, and
    /// after how many microseconds each step of the start was done: stderr, or file:PATH
    #[arg(long, value_name = "WHERE")]
    pub(crate) stats: Option<String>,
    /// The port on which a guest program gives svmm its exit status
    #[arg(long, value_enum, num_args = 0..=1, default_value_t = Switch::On, default_missing_value = "on")]
    pub(crate) exit_port: Switch,
}

/// Options of `svmm doctor`.
#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {
    /// Probe one thing only and print one line for scripts
    #[arg(long, value_enum)]
    pub(crate) probe: Option<Probe>,
    /// What a guest would get of a device, named as for `svmm run --vfio`; for what it would not get, the reason
    #[arg(long, value_name = "DEVICE", conflicts_with = "probe")]
    pub(crate) vfio: Option<String>,
    /// The open /dev/iommu, if svmm itself may not open it: fd=N
    #[arg(long, value_name = "FD", requires = "vfio")]
    pub(crate) iommufd: Option<String>,
}

/// What can be probed alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Probe {
    /// `kvm native|nested|emulating|absent|refused DETAILS`
    Kvm,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    /// Present.
    On,
    /// Absent.
    Off,
}

impl Switch {
    /// Whether it is on.
    pub(crate) fn is_on(self) -> bool {
        self == Self::On
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    /// What is to be copied is not wrapped by clap.
    #[test]
    fn command_lines_of_examples_fit() {
        for line in EXAMPLES.lines().filter(|line| line.starts_with("    ")) {
            assert!(line.len() <= 80, "{line}");
        }
    }

    /// The examples are command lines.
    #[test]
    fn examples_parse() {
        let unwrapped = EXAMPLES.replace("\\\n", "");
        let lines = unwrapped.lines().filter_map(|line| line.strip_prefix("    "));
        let mut count = 0;
        for line in lines.map(|line| line.replace("\"console=ttyS0 panic=-1\"", "console=ttyS0")) {
            assert!(Cli::try_parse_from(line.split_whitespace()).is_ok(), "{line}");
            count += 1;
        }
        assert!(count > 10, "{count}");
    }

    #[test]
    fn optional_values_may_be_left_out() {
        for (line, svm, exit_port) in [
            ("svmm run --kernel k", vec![], Switch::On),
            ("svmm run --kernel k --svm", vec![""], Switch::On),
            ("svmm run --kernel k --svm --exit-port", vec![""], Switch::On),
            ("svmm run --kernel k --svm=queues=2 --exit-port off", vec!["queues=2"], Switch::Off),
            ("svmm run --kernel k --svm queues=2,pri=off", vec!["queues=2,pri=off"], Switch::On),
            ("svmm run --kernel k --svm --svm iommu=b", vec!["", "iommu=b"], Switch::On),
        ] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            let Command::Run(run) = cli.command else { panic!("{line}") };
            assert_eq!(run.svm, svm, "{line}");
            assert_eq!(run.exit_port, exit_port, "{line}");
        }
    }
}
