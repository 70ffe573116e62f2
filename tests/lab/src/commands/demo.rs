//! `cargo lab demo`: the main job, shown.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cache::Cache;
use crate::cli;
use crate::materials::{self, Initrd, Materials};
use crate::process::tail;
use crate::programs;
use crate::report::{Case, Levels, Report};
use crate::ui::{Progress, Table};
use crate::world::{Sink, Terminal, Word};

/// Run the selftest, then power off (see `tests/guest`, guest-init). Quiet, because each byte on a
/// serial port is several exits: in the cloud world a talkative boot takes 15 seconds longer.
const COMMAND_LINE: &str = "console=ttyS0 loglevel=3 svmm.run=/bin/svm-selftest";
/// A guest that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(600);
/// The same for three machines one inside the other.
const CHAIN_LIMIT: Duration = Duration::from_secs(600);
/// As the demo's own, for the guest that is a host: give the endpoint to `vfio-pci`, and boot a guest with it. The
/// first words are for the clocks of a hypervisor on an emulated CPU; see [`crate::world::cloud`].
const HOST_COMMAND_LINE: &str = "console=ttyS0 loglevel=3 panic=-1 mitigations=off tsc=reliable nohz=off highres=off \
    kvm.tsc_tolerance_ppm=50000 svmm.vfio \
    svmm.run=@host:--vfio=0000:00:01.0;--memory-mib=256;--stats=stderr;/bin/svm-selftest";
const HOST_MEMORY_MIB: &str = "1536";
/// With the console, and not past it, in every world.
const STATS: &str = "--stats=file:/proc/self/fd/1";
/// Stands before what the inner machine prints (see `tests/guest`, guest-init).
const INNER: &str = "inner| ";

/// Boots the guest under svmm, runs the selftest, prints its cases, one page request's way and what svmm counted.
///
/// # Errors
/// Something does not build, or the guest told of no case.
pub fn run(options: &cli::Demo) -> Result<bool> {
    let cache = Cache::open()?;
    let materials = Materials::prepare(&cache, Initrd::Tests)?;
    let mut workload = materials.workload();
    workload.commands = vec![match options.chain {
        false => {
            let mut words = Materials::svmm_run(&options.guest, COMMAND_LINE);
            words.push(STATS.into());
            words
        }
        true => {
            workload.files.extend(materials.of_host());
            host_run(&options.guest)
        }
    }];
    let limit = if options.chain { CHAIN_LIMIT } else { LIMIT };
    eprintln!("[lab] world: {}", materials.world);
    let log = cache.of_tree(&programs::workspace())?.join("demo-console.log");
    let mut console = Console::new(options.verbose, &log)?;
    let outcome = materials.world.run(&workload, Terminal::Output(&mut console), limit);
    let codes = outcome.with_context(|| format!("the guest's console is in {}", log.display()))?;
    if console.report.cases.is_empty() {
        bail!(
            "the guest told of no test case (svmm's exit codes {codes:?}); the end of {}:\n{}",
            log.display(),
            tail(&log)
        );
    }
    console.progress.done(&format!("console in {}", log.display()));
    show(&console.report, &codes);
    console.levels.figures().iter().for_each(|line| println!("  {line}"));
    let agree = !options.chain || show_levels(&console.levels, &console.report);
    Ok(console.report.passed() && codes == [0] && agree)
}

/// What both ends counted; whether it fits together.
fn show_levels(levels: &Levels, report: &Report) -> bool {
    println!("\n{}", levels.table());
    let mut agree = true;
    for (holds, text) in levels.rules(report.page_requests()) {
        println!("  {} {text}", if holds { "ok    " } else { "FAILED" });
        agree &= holds;
    }
    levels.times().iter().for_each(|line| println!("  {line}"));
    agree
}

/// The words of `svmm run` for a guest that assigns its endpoint to another.
fn host_run(guest: &cli::Guest) -> Vec<Word> {
    let svm = guest.svm.as_deref().map_or_else(|| "--svm".to_owned(), |options| format!("--svm={options}"));
    let extra = guest.cmdline.as_deref().unwrap_or_default();
    vec![
        Word::file(materials::SVMM),
        "run".into(),
        "--kernel".into(),
        Word::file(materials::HOST_KERNEL),
        "--initrd".into(),
        Word::file(materials::HOST_INITRD),
        "--memory-mib".into(),
        HOST_MEMORY_MIB.into(),
        "--nested".into(),
        STATS.into(),
        svm.into(),
        "--cmdline".into(),
        format!("{extra} {HOST_COMMAND_LINE}").trim().into(),
    ]
}

/// The guest's console: kept as it comes, so that a run that is broken off leaves it too; read line by line, and shown
/// when wanted.
struct Console {
    log: Option<File>,
    line: Vec<u8>,
    report: Report,
    levels: Levels,
    verbose: bool,
    progress: Progress,
}

impl Console {
    fn new(verbose: bool, log: &Path) -> Result<Self> {
        let log = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        Ok(Self {
            log: Some(log),
            line: Vec::new(),
            report: Report::default(),
            levels: Levels::default(),
            verbose,
            progress: Progress::start("guest: boot and svm-selftest"),
        })
    }

    fn end_line(&mut self) {
        let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).into_owned();
        let before = self.report.cases.len();
        let inner = line.strip_prefix(INNER);
        let line = inner.unwrap_or(&line);
        self.report.line(line);
        self.levels.line(line, inner.is_some());
        if let Some(case) = self.report.cases.get(before) {
            self.progress.note(&format!("{:<8} {}", verdict(case), case.name));
        }
    }
}

impl Sink for Console {
    fn take(&mut self, chunk: &[u8]) {
        if let Some(log) = &mut self.log
            && let Err(error) = log.write_all(chunk)
        {
            self.progress.note(&format!("the console is not kept any more: {error}"));
            self.log = None;
        }
        if self.verbose {
            let mut out = std::io::stderr();
            let _ = out.write_all(chunk);
            let _ = out.flush();
        }
        for byte in chunk {
            if *byte == b'\n' {
                self.end_line();
            } else {
                self.line.push(*byte);
            }
        }
    }

    fn tick(&mut self) {
        let cases = self.report.cases.len();
        self.progress.tick(|| match cases {
            0 => String::new(),
            _ => format!("{cases} cases"),
        });
    }
}

fn verdict(case: &Case) -> &'static str {
    match (case.passed, case.skipped) {
        (_, true) => "skipped",
        (true, _) => "ok",
        (false, _) => "FAILED",
    }
}

/// How long the case took.
fn milliseconds(case: &Case) -> String {
    let micro = case.figure("us").and_then(|us| us.parse::<f64>().ok());
    micro.map_or_else(|| "-".to_owned(), |us| format!("{:.1}", us / 1000.0))
}

fn show(report: &Report, codes: &[i32]) {
    let mut table = Table::new(&["case", "result", "page requests", "ms"]);
    for case in &report.cases {
        let figure = |key: &str| case.figure(key).unwrap_or("-");
        table.row(&[&case.name, verdict(case), figure("pr"), &milliseconds(case)]);
    }
    println!("\n{table}");
    for remark in &report.remarks {
        println!("  {remark}");
    }
    if let Some(timeline) = &report.timeline {
        println!("  One page request, from the device's miss to its retry:\n");
        println!("{}", timeline.draw(40));
    }
    for figure in &report.figures {
        println!("  {figure}");
    }
    let served = report.page_requests();
    let count = |wanted: &str| report.cases.iter().filter(|case| verdict(case) == wanted).count();
    println!(
        "  {} passed, {} failed, {} skipped, {served} page requests served",
        count("ok"),
        count("FAILED"),
        count("skipped"),
    );
    let planned = report.planned.unwrap_or(report.cases.len());
    if planned != report.cases.len() {
        println!("  the guest ended after {} of {planned} cases", report.cases.len());
    }
    if codes != [0] {
        println!("  svmm's exit code {codes:?}; `svmm run --help` tells what it means");
    }
    if let Some(reason) = &report.bail_out {
        println!("  the selftest gave up: {reason}");
    }
}
