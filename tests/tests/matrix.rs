//! The boot matrix: kernels of several ages in every mode of the IOMMU. Each cell reaches userspace, moves bytes to
//! and from a disk through the unit, compares them, and ends with a kernel that does not complain of its IOMMU.
//!
//! A cell is named KERNEL/MODE/INTERRUPTS/CPUS. `SVMM_MATRIX=all` runs every cell, else a few that touch each mode
//! and each kind of interrupts once, with the lab's kernel. Stock kernels are where the environment says.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use svmm_tests::guest::Guest;
use svmm_tests::image::{BYTES, Image};

/// Kernels by name, with the variables that tell their image and initial file system.
const KERNELS: [(&str, &str, &str); 4] = [
    ("lab", "SVMM_KERNEL", "SVMM_GUEST_INITRD"),
    ("debian-6.1", "SVMM_DEBIAN_6_1", "SVMM_DEBIAN_6_1_INITRD"),
    ("debian-6.12", "SVMM_DEBIAN_6_12", "SVMM_DEBIAN_6_12_INITRD"),
    ("debian-newest", "SVMM_DEBIAN_NEWEST", "SVMM_DEBIAN_NEWEST_INITRD"),
];
/// Debian's kernels have the IOMMU off unless told otherwise.
const ON: &str = "intel_iommu=on,sm_on";

/// Options of the harness that take the next word.
const VALUED: [&str; 5] = ["--skip", "--color", "--format", "--test-threads", "--logfile"];

/// A mode of the unit, and what shows that Linux is in it.
#[derive(Clone, Copy)]
struct Mode {
    name: &'static str,
    /// Value of `--iommu`; what interrupts need is added.
    unit: &'static str,
    words: &'static str,
    /// The tables that Linux has to set, as svmm's log names them.
    tables: &'static str,
    /// The type of the disk's IOMMU group.
    group: &'static str,
}

const MODES: [Mode; 8] = [
    Mode { name: "legacy", unit: "legacy", words: "", tables: "Legacy", group: "DMA-FQ" },
    Mode { name: "second-stage", unit: "scalable", words: "", tables: "Scalable", group: "DMA-FQ" },
    Mode { name: "first-stage", unit: "svm", words: "no5lvl", tables: "Scalable", group: "DMA-FQ" },
    Mode { name: "five-level", unit: "svm", words: "", tables: "Scalable", group: "DMA-FQ" },
    Mode { name: "pass-through", unit: "full", words: "iommu=pt", tables: "Scalable", group: "identity" },
    Mode { name: "strict", unit: "full", words: "iommu.strict=1", tables: "Scalable", group: "DMA" },
    Mode { name: "lazy", unit: "full", words: "iommu.strict=0", tables: "Scalable", group: "DMA-FQ" },
    Mode { name: "caching", unit: "scalable,caching-mode=on", words: "", tables: "Scalable", group: "DMA" },
];

/// How interrupts travel.
#[derive(Clone, Copy)]
struct Interrupts {
    name: &'static str,
    /// Added to `--iommu`.
    unit: &'static str,
    words: &'static str,
    /// What the kernel has to say.
    says: Option<&'static str>,
}

const INTERRUPTS: [Interrupts; 3] = [
    Interrupts {
        name: "x2apic",
        unit: "intremap=on,eim=on",
        words: "",
        says: Some("DMAR-IR: Enabled IRQ remapping in x2apic mode"),
    },
    Interrupts {
        name: "xapic",
        unit: "intremap=on,eim=off",
        words: "nox2apic",
        says: Some("DMAR-IR: Enabled IRQ remapping in xapic mode"),
    },
    Interrupts { name: "direct", unit: "intremap=off", words: "", says: None },
];

struct Cell {
    kernel: (&'static str, &'static str, &'static str),
    mode: Mode,
    interrupts: Interrupts,
    cpus: u32,
}

impl Cell {
    fn name(&self) -> String {
        format!("{}/{}/{}/{}", self.kernel.0, self.mode.name, self.interrupts.name, self.cpus)
    }

    fn run(&self) -> Result<()> {
        let Self { kernel: (_, kernel, initrd), mode, interrupts, cpus } = self;
        let path = |variable: &str| {
            std::env::var_os(variable).map(PathBuf::from).context("a variable that names a kernel is not set")
        };
        let image = Image::new("matrix")?;
        let guest = Guest::new()
            .cpus(*cpus)
            .kernel(path(kernel)?, path(initrd)?)
            .without_svm()
            .option(&format!("--iommu={},{}", mode.unit, interrupts.unit))
            .option("--log=info")
            .disk(&format!("{},id=data", image.text()))
            .word(ON)
            .word(mode.words)
            .word(interrupts.words)
            .run(&format!("/bin/disk-check,group={},vda,{},data", mode.group, BYTES / 512));
        let outcome = guest.boot()?;
        let failed = outcome.tap()?.failed();
        ensure!(failed.is_empty() && outcome.code == 0, "{failed:?}: {}", outcome.tail());
        let log = outcome.kernel_log()?;
        let complaints = log.complaints();
        ensure!(complaints.is_empty(), "the kernel complains: {complaints:#?}");
        if let Some(text) = interrupts.says {
            ensure!(log.says(text), "the kernel does not say {text:?}\n{}", outcome.tail());
        }
        ensure!(!log.says("DMAR-IR: Enabled") || interrupts.says.is_some(), "interrupts are remapped");
        let tables = format!("translation on, {} tables", mode.tables);
        ensure!(outcome.stderr.contains(&tables), "svmm does not say {tables:?}\n{}", outcome.tail());
        ensure!(image.is_written(), "the file on the host differs");
        Ok(())
    }
}

/// All cells of the kernels that are there.
fn all() -> Vec<Cell> {
    let mut cells = Vec::new();
    for kernel in
        KERNELS.into_iter().filter(|(name, image, _)| *name == "lab" || std::env::var_os(image).is_some())
    {
        for mode in MODES {
            for interrupts in INTERRUPTS {
                cells.extend([1, 4].map(|cpus| Cell { kernel, mode, interrupts, cpus }));
            }
        }
    }
    cells
}

/// Each mode once; kinds of interrupts and numbers of CPUs take turns.
fn short() -> Vec<Cell> {
    let cell = |(index, mode)| Cell {
        kernel: KERNELS[0],
        mode,
        interrupts: INTERRUPTS[index % INTERRUPTS.len()],
        cpus: [1, 4][index % 2],
    };
    MODES.into_iter().enumerate().map(cell).collect()
}

fn main() -> ExitCode {
    let cells = if std::env::var("SVMM_MATRIX").is_ok_and(|which| which == "all") { all() } else { short() };
    let trial = |cell: Cell| {
        let name = cell.name();
        let run = move || cell.run().map_err(|error| Failed::from(format!("{error:#}")));
        Trial::test(name, run).with_ignored_flag(true)
    };
    let (filters, words) = split(std::env::args());
    let wanted =
        |cell: &Cell| filters.is_empty() || filters.iter().any(|filter| cell.name().contains(filter));
    // One guest at a time: where guests are emulated, the machine is small.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_iter(words) };
    let trials = cells.into_iter().filter(wanted).map(trial).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Several names may be given, as to Rust's own harness; this one takes a single name only. Options keep their values.
fn split(words: impl Iterator<Item = String>) -> (Vec<String>, Vec<String>) {
    let (mut filters, mut rest, mut value) = (Vec::new(), Vec::new(), true);
    for word in words {
        let option = word.starts_with('-');
        let list = if option || value { &mut rest } else { &mut filters };
        value = option && !word.contains('=') && VALUED.contains(&word.as_str());
        list.push(word);
    }
    (filters, rest)
}
