//! `cargo lab test`: everything CI runs, as steps with a verdict and a time each.

mod steps;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::cache::Cache;
use crate::cli;
use crate::guests;
use crate::materials::{Initrd, KernelInBackground, Materials};
use crate::ui::Table;
use crate::ui::progress::human;
use steps::{GUEST, STEPS, Step};

/// All guest tests of a program, on a busy host too.
const GUEST_LIMIT: Duration = Duration::from_secs(30 * 60);

/// How one step ended.
struct Outcome {
    step: &'static Step,
    passed: bool,
    remark: String,
    time: Duration,
}

/// Runs the chosen steps; a failing step does not stop the others.
///
/// # Errors
/// An unknown step is named.
pub fn run(options: &cli::Test) -> Result<bool> {
    let steps = choose(options)?;
    if options.list {
        steps.iter().for_each(|step| println!("{:<10} {}", step.name, step.about));
        return Ok(true);
    }
    let cache = Cache::open()?;
    let wants_guest = steps.iter().any(|step| step.name == GUEST);
    let mut kernel = wants_guest.then(|| KernelInBackground::start(&cache));
    let mut outcomes = Vec::new();
    for step in steps {
        eprintln!("\n[lab] === {}: {}", step.name, step.about);
        let started = Instant::now();
        let outcome = match kernel.take_if(|_| step.name == GUEST) {
            Some(kernel) => guest_tests(&cache, kernel, &options.filters),
            None => steps::run(step),
        };
        let (passed, remark) = match outcome {
            Ok(passed) => (passed, String::new()),
            Err(error) => {
                eprintln!("[lab] error: {error:#}");
                let first = error.to_string();
                (false, first.lines().next().unwrap_or_default().to_owned())
            }
        };
        outcomes.push(Outcome { step, passed, remark, time: started.elapsed() });
    }
    show(&outcomes);
    Ok(outcomes.iter().all(|outcome| outcome.passed))
}

/// The guest tests whose names hold one of `filters`; all when there is none.
fn guest_tests(cache: &Cache, kernel: KernelInBackground, filters: &[String]) -> Result<bool> {
    let tests = guests::holding(guests::programs()?, filters)?;
    let materials = Materials::prepare_with(cache, Initrd::Tests, kernel)?;
    eprintln!("[lab] world: {}", materials.world);
    guests::run(&materials, guests::workload(&materials), &tests, filters, GUEST_LIMIT)
}

fn choose(options: &cli::Test) -> Result<Vec<&'static Step>> {
    let mut only = options.only.clone();
    if only.is_empty() && !options.filters.is_empty() {
        only.push(GUEST.to_owned());
    }
    for name in only.iter().chain(&options.skip) {
        if !STEPS.iter().any(|step| step.name == name) {
            bail!("there is no step {name}; `cargo lab test --list` names them");
        }
    }
    let wanted = |step: &&Step| {
        let named = |list: &[String]| list.iter().any(|name| name == step.name);
        (only.is_empty() || named(&only)) && !named(&options.skip)
    };
    Ok(STEPS.iter().filter(wanted).collect())
}

fn show(outcomes: &[Outcome]) {
    let mut table = Table::new(&["step", "result", "time", "remark"]);
    let mut total = Duration::ZERO;
    for outcome in outcomes {
        total += outcome.time;
        let verdict = if outcome.passed { "ok" } else { "FAILED" };
        table.row(&[outcome.step.name, verdict, &human(outcome.time), &outcome.remark]);
    }
    println!("\n{table}");
    let failed = outcomes.iter().filter(|outcome| !outcome.passed).count();
    match failed {
        0 => println!("  all {} steps passed in {}", outcomes.len(), human(total)),
        _ => println!("  {failed} of {} steps FAILED after {}", outcomes.len(), human(total)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(filters: &[&str], only: &[&str], skip: &[&str]) -> cli::Test {
        let owned = |words: &[&str]| words.iter().map(ToString::to_string).collect();
        cli::Test { filters: owned(filters), only: owned(only), skip: owned(skip), list: false }
    }

    #[test]
    fn steps_are_chosen_by_name() {
        let names = |options: &cli::Test| -> Vec<&str> {
            choose(options).unwrap().iter().map(|step| step.name).collect()
        };
        assert_eq!(names(&options(&[], &["fmt"], &[])), ["fmt"]);
        assert_eq!(names(&options(&["page"], &[], &[])), [GUEST]);
        assert_eq!(names(&options(&[], &[], &[GUEST])).len(), STEPS.len() - 1);
        assert!(choose(&options(&[], &["nonsense"], &[])).is_err());
    }
}
