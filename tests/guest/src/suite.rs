//! Runs cases one after the other and reports each as it ends.

use std::fmt;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::time::Instant;

use anyhow::Result;

use crate::diagnosis;
use crate::report::{self, Verdict};

/// A case's work: it gets the seed of its random numbers and a place for lines that go to whoever reads the
/// output, without the leading `# `.
pub type Work<'a> = Box<dyn Fn(u64, &mut Vec<String>) -> Result<()> + 'a>;

/// One case, ready to run.
pub struct Entry<'a> {
    /// Its one name.
    pub name: &'a str,
    /// Whether it cannot pass without page requests.
    pub needs_page_requests: bool,
    /// Whether the kernel has reason to log a DMAR fault or a refused page request meanwhile.
    pub provokes: bool,
    /// The case itself. An error that is a [`Skip`] says that it does not apply.
    pub work: Work<'a>,
}

/// What to run and how to tell.
pub struct Plan<'a> {
    /// Who runs it, for the kernel log.
    pub program: &'a str,
    /// The cases in order, repetitions included.
    pub entries: Vec<Entry<'a>>,
    /// Seed of all random numbers.
    pub seed: u64,
    /// One JSON object at the end instead of TAP.
    pub json: bool,
    /// Page requests of the device so far.
    pub page_requests: &'a dyn Fn() -> Result<u64>,
}

/// Why a case does not apply here.
#[derive(Debug)]
pub struct Skip(pub &'static str);

impl fmt::Display for Skip {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.0)
    }
}

impl std::error::Error for Skip {}

/// Runs the plan; true if no case failed.
///
/// # Errors
/// The device's counters cannot be read.
pub fn run(plan: &Plan<'_>) -> Result<bool> {
    let started = Instant::now();
    let say = |text: &str| {
        if !plan.json {
            print!("{text}");
        }
    };
    say(&format!("TAP version 14\n1..{}\n", plan.entries.len()));
    let before = (plan.page_requests)()?;
    let mut results = Vec::new();
    for (index, entry) in plan.entries.iter().enumerate() {
        let result = run_entry(plan, entry, plan.seed.wrapping_add(index as u64))?;
        say(&result.tap(index + 1));
        results.push(result);
    }
    let page_requests = (plan.page_requests)()?.wrapping_sub(before);
    let totals = report::totals(&results, page_requests, plan.seed, started.elapsed());
    say(&format!("# totals {totals}\n"));
    if plan.json {
        let totals: serde_json::Value = serde_json::from_str(&totals)?;
        println!("{}", serde_json::json!({ "results": results, "totals": totals }));
    }
    Ok(results.iter().all(|result| !matches!(result.verdict, Verdict::Failed(_))))
}

fn run_entry(plan: &Plan<'_>, entry: &Entry<'_>, seed: u64) -> Result<report::Result> {
    let tell = |line: &str| tell_kernel(&format!("{}: {line}", plan.program));
    tell(&format!("begin {}{}", entry.name, if entry.provokes { " provokes" } else { "" }));
    let before = (plan.page_requests)()?;
    let mut notes = Vec::new();
    let started = Instant::now();
    let outcome = (entry.work)(seed, &mut notes);
    let elapsed = started.elapsed();
    let after = (plan.page_requests)()?;
    if entry.provokes {
        diagnosis::wait_for_faults();
    }
    tell(&format!("end {}", entry.name));
    let verdict = match outcome {
        Ok(()) => Verdict::Passed,
        Err(error) => match error.downcast_ref::<Skip>() {
            Some(skip) => Verdict::Skipped(skip.to_string()),
            None => {
                notes.extend(diagnosis::lines());
                Verdict::Failed(format!("{error:#}"))
            }
        },
    };
    Ok(report::Result {
        name: entry.name.to_owned(),
        verdict,
        page_requests: after.wrapping_sub(before),
        microseconds: u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX),
        needs_page_requests: entry.needs_page_requests,
        notes,
    })
}

/// Leaves a line in the kernel log, so that what the kernel says can be laid at a case's door.
/// Without the right to do so, nothing is left.
fn tell_kernel(line: &str) {
    if let Ok(mut log) = OpenOptions::new().write(true).open("/dev/kmsg") {
        let _ = log.write_all(format!("<6>{line}\n").as_bytes());
    }
}
