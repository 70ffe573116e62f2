//! Runs cases one after the other and reports each as it ends.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::time::Instant;

use anyhow::Result;

use crate::bench::{Bench, Skip};
use crate::cases::{Case, Needs};
use crate::endpoint::{Counters, Endpoint};
use crate::model::Random;
use crate::report::{self, Verdict};

/// What to run and how to tell.
pub(crate) struct Plan {
    /// The cases in order, repetitions included.
    pub(crate) cases: Vec<Case>,
    /// Seed of all random numbers.
    pub(crate) seed: u64,
    /// One JSON object at the end instead of TAP.
    pub(crate) json: bool,
}

/// Runs the plan; true if no case failed.
pub(crate) fn run(endpoint: &dyn Endpoint, plan: &Plan) -> Result<bool> {
    let started = Instant::now();
    let say = |text: &str| {
        if !plan.json {
            print!("{text}");
        }
    };
    say(&format!("TAP version 14\n1..{}\n", plan.cases.len()));
    let mut results = Vec::new();
    for (index, case) in plan.cases.iter().enumerate() {
        let result = run_case(endpoint, case, plan.seed.wrapping_add(index as u64))?;
        say(&result.tap(index + 1));
        results.push(result);
    }
    let totals = report::totals(&results, plan.seed, started.elapsed());
    say(&format!("# totals {totals}\n"));
    if plan.json {
        let totals: serde_json::Value = serde_json::from_str(&totals)?;
        println!("{}", serde_json::json!({ "results": results, "totals": totals }));
    }
    Ok(results.iter().all(|result| !matches!(result.verdict, Verdict::Failed(_))))
}

fn run_case(endpoint: &dyn Endpoint, case: &Case, seed: u64) -> Result<report::Result> {
    tell_kernel(&format!("begin {}{}", case.name, if case.provokes { " provokes" } else { "" }));
    let registers = endpoint.peek()?;
    let before = Counters::read(registers.as_ref());
    let mut bench = Bench { endpoint, random: Random::new(seed), notes: Vec::new() };
    let started = Instant::now();
    let outcome = (case.run)(&mut bench);
    let elapsed = started.elapsed();
    let after = Counters::read(registers.as_ref());
    tell_kernel(&format!("end {}", case.name));
    let verdict = match outcome {
        Ok(()) => Verdict::Passed,
        Err(error) => match error.downcast_ref::<Skip>() {
            Some(skip) => Verdict::Skipped(skip.to_string()),
            None => Verdict::Failed(format!("{error:#}")),
        },
    };
    Ok(report::Result {
        name: case.name.to_owned(),
        verdict,
        page_requests: after.page_requests.wrapping_sub(before.page_requests),
        microseconds: u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX),
        needs_page_requests: case.needs == Needs::PageRequests,
        notes: bench.notes,
    })
}

/// Leaves a line in the kernel log, so that what the kernel says can be laid at a case's door.
/// Without the right to do so, nothing is left.
fn tell_kernel(line: &str) {
    if let Ok(mut log) = OpenOptions::new().write(true).open("/dev/kmsg") {
        let _ = log.write_all(format!("<6>svm-selftest: {line}\n").as_bytes());
    }
}
