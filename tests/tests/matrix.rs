//! The boot matrix: kernels of several ages in every mode of the IOMMU. Each cell reaches userspace, moves bytes to
//! and from a disk through the unit, compares them, and ends with a kernel that does not complain of its IOMMU.
//!
//! A cell is named KERNEL/MODE/INTERRUPTS/CPUS. `SVMM_MATRIX=all` runs every cell, else a few that touch each mode
//! and each kind of interrupts once, with the lab's kernel. Stock kernels are where the environment says.
//! `SVMM_MATRIX_UNIT` is added to every cell's unit: taking a capability away shows which cells depend on it.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use svmm_tests::guest::{Guest, Outcome};
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
    /// What translates for the disk, in the words of the same log.
    stage: &'static str,
    /// The type of the disk's IOMMU group.
    group: &'static str,
}

const FIRST: &str = "first stage of 4 levels";
const SECOND: &str = "second stage of 4 levels";

/// Widths are given, because those of the presets follow the CPU.
const MODES: [Mode; 8] = [
    Mode {
        name: "legacy",
        unit: "legacy,aw-bits=48",
        words: "",
        tables: "Legacy",
        stage: SECOND,
        group: "DMA-FQ",
    },
    Mode {
        name: "second-stage",
        unit: "scalable,aw-bits=48",
        words: "",
        tables: "Scalable",
        stage: SECOND,
        group: "DMA-FQ",
    },
    Mode {
        name: "first-stage",
        unit: "full,aw-bits=48",
        words: "",
        tables: "Scalable",
        stage: FIRST,
        group: "DMA-FQ",
    },
    Mode {
        name: "five-level",
        unit: "svm,aw-bits=57",
        words: "",
        tables: "Scalable",
        stage: "first stage of 5 levels",
        group: "DMA-FQ",
    },
    Mode {
        name: "pass-through",
        unit: "full,aw-bits=48",
        words: "iommu=pt",
        tables: "Scalable",
        stage: "pass-through",
        group: "identity",
    },
    Mode {
        name: "strict",
        unit: "full,aw-bits=48",
        words: "iommu.strict=1",
        tables: "Scalable",
        stage: FIRST,
        group: "DMA",
    },
    Mode {
        name: "lazy",
        unit: "full,aw-bits=48",
        words: "iommu.strict=0",
        tables: "Scalable",
        stage: FIRST,
        group: "DMA-FQ",
    },
    Mode {
        name: "caching",
        unit: "scalable,aw-bits=48,caching-mode=on",
        words: "",
        tables: "Scalable",
        stage: SECOND,
        group: "DMA",
    },
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
        let extra = std::env::var("SVMM_MATRIX_UNIT").unwrap_or_default();
        let outcome = Guest::new()
            .cpus(*cpus)
            .kernel(path(kernel)?, path(initrd)?)
            .without_svm()
            .option(&format!("--iommu={},{}{extra}", mode.unit, interrupts.unit))
            .option("--log=info,iommu_vtd::cache=debug")
            .disk(&format!("{},id=data", image.text()))
            .word(ON)
            .word(mode.words)
            .word(interrupts.words)
            .run(&format!("/bin/disk-check,group={},vda,{},data", mode.group, BYTES / 512))
            .boot()?;
        let up = outcome.boot_ms().unwrap_or_default();
        eprintln!("# {}: {} s, up after {up} ms", self.name(), outcome.elapsed.as_secs());
        self.judge(&outcome)?;
        ensure!(image.is_written(), "the file on the host differs");
        Ok(())
    }

    fn judge(&self, outcome: &Outcome) -> Result<()> {
        let failed = outcome.tap()?.failed();
        ensure!(failed.is_empty() && outcome.code == 0, "{failed:?}: {}", outcome.tail());
        let log = outcome.kernel_log()?;
        let complaints = [log.complaints(), log.warnings("DMAR")].concat();
        ensure!(complaints.is_empty(), "the kernel complains: {complaints:#?}");
        let says = self.interrupts.says;
        if let Some(text) = says {
            ensure!(log.says(text), "the kernel does not say {text:?}\n{}", outcome.tail());
        }
        ensure!(!log.says("DMAR-IR: Enabled") || says.is_some(), "interrupts are remapped");
        let tables = format!("translation on, {} tables", self.mode.tables);
        ensure!(outcome.stderr.contains(&tables), "svmm does not say {tables:?}\n{}", outcome.tail());
        // The disk is the only device that has tables.
        let mut stages = outcome.stderr.lines().filter(|line| line.contains(" iommu_vtd::cache]")).peekable();
        ensure!(stages.peek().is_some(), "nothing was translated\n{}", outcome.tail());
        let expected = format!(": {}", self.mode.stage);
        match stages.find(|line| !line.ends_with(&expected)) {
            Some(line) => bail!("not by a {}: {line}", self.mode.stage),
            None => Ok(()),
        }
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
