//! The kernel's own driver of a DMA engine, `ioatdma`, behind the unit in each of its modes: the driver binds, copies
//! of the kernel's `dmatest` by several threads are byte-exact, and the kernel does not complain.
//!
//! A cell is named `dmatest/MODE`. `SVMM_MATRIX=all` runs all of them, else two that differ most.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use svmm_tests::guest::{Guest, Outcome};

/// Threads of dmatest on each channel.
const THREADS: usize = 4;
const CHANNELS: usize = 2;

/// A mode of the unit.
#[derive(Clone, Copy)]
struct Mode {
    name: &'static str,
    /// Value of `--iommu`.
    unit: &'static str,
    words: &'static str,
    /// What translates for the engine, as svmm's log names it.
    stage: &'static str,
    /// The type of the engine's IOMMU group.
    group: &'static str,
    /// Whether it runs each time.
    short: bool,
}

const FIRST: &str = "first stage of 4 levels";

const MODES: [Mode; 5] = [
    Mode {
        name: "second-stage",
        unit: "scalable,aw-bits=48",
        words: "iommu.strict=1",
        stage: "second stage of 4 levels",
        group: "DMA",
        short: true,
    },
    Mode {
        name: "first-stage",
        unit: "full,aw-bits=48",
        words: "",
        stage: FIRST,
        group: "DMA-FQ",
        short: false,
    },
    Mode {
        name: "pass-through",
        unit: "full,aw-bits=48",
        words: "iommu=pt",
        stage: "pass-through",
        group: "identity",
        short: false,
    },
    Mode {
        name: "strict",
        unit: "full,aw-bits=48",
        words: "iommu.strict=1",
        stage: FIRST,
        group: "DMA",
        short: false,
    },
    Mode {
        name: "lazy",
        unit: "full,aw-bits=48",
        words: "iommu.strict=0",
        stage: FIRST,
        group: "DMA-FQ",
        short: true,
    },
];

impl Mode {
    fn run(&self) -> Result<()> {
        let outcome = Guest::new()
            .cpus(2)
            .without_svm()
            .option(&format!("--iommu={}", self.unit))
            .option(&format!("--ioat=channels={CHANNELS},transfer-kib=4"))
            .option("--log=info,iommu_vtd::cache=debug")
            .word(self.words)
            .run(&format!("/bin/dma-test,--threads,{THREADS},--channels,{CHANNELS},--group,{}", self.group))
            .boot()?;
        self.judge(&outcome)
    }

    fn judge(&self, outcome: &Outcome) -> Result<()> {
        let tap = outcome.tap()?;
        ensure!(tap.failed().is_empty() && outcome.code == 0, "{:?}: {}", tap.failed(), outcome.tail());
        let summaries: Vec<_> =
            outcome.console.lines().filter_map(|line| line.strip_prefix("# dma")).collect();
        for summary in &summaries {
            eprintln!("# {}: dma{summary}", self.name);
        }
        ensure!(summaries.len() == THREADS * CHANNELS, "{} threads told of their work", summaries.len());
        let complaints = outcome.kernel_log()?.complaints().join("\n");
        ensure!(complaints.is_empty(), "the kernel complains: {complaints}");
        // The engine is the only device that has tables.
        let mut stages = outcome.stderr.lines().filter(|line| line.contains(" iommu_vtd::cache]")).peekable();
        ensure!(stages.peek().is_some(), "nothing was translated\n{}", outcome.tail());
        let other = stages.find(|line| !line.ends_with(&format!(": {}", self.stage)));
        ensure!(other.is_none(), "not by a {}: {other:?}", self.stage);
        eprintln!("# {}: {} s", self.name, outcome.elapsed.as_secs());
        Ok(())
    }
}

fn main() -> ExitCode {
    let all = std::env::var("SVMM_MATRIX").is_ok_and(|which| which == "all");
    let trial = |mode: Mode| {
        let run = move || mode.run().map_err(|error| Failed::from(format!("{error:#}")));
        Trial::test(format!("dmatest/{}", mode.name), run).with_ignored_flag(true)
    };
    // One guest at a time: where guests are emulated, the machine is small.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    let trials = MODES.into_iter().filter(|mode| all || mode.short).map(trial).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
