//! What the programs that run cases share: options, cases, and the way from the one to the other.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Args;

use crate::suite::{self, Entry, Plan, Work};
use crate::wait;

/// Options of every such program.
#[derive(Args)]
#[group(id = "common")]
pub struct Options {
    /// Run only cases whose names hold one of these; may be given several times
    #[arg(long, value_name = "TEXT")]
    filter: Vec<String>,
    /// Leave out the cases that need page requests, for an endpoint without PRI
    #[arg(long)]
    no_pri: bool,
    /// List the cases and end
    #[arg(long)]
    list: bool,
    /// Run everything this many times
    #[arg(long, value_name = "N", default_value_t = 1)]
    repeat: usize,
    /// Seed of all random numbers
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Print one JSON object instead of TAP
    #[arg(long)]
    json: bool,
    /// How long one descriptor may take
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    patience: u64,
}

/// Whether a case can pass when the endpoint has no PRI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Works on what is there already, or wants its faults reported at once.
    Translation,
    /// Needs page requests.
    PageRequests,
}

/// One case; `F` is the function that does its work.
#[derive(Clone, Copy)]
pub struct Case<F> {
    /// Its one name.
    pub name: &'static str,
    /// What it needs of the endpoint.
    pub needs: Needs,
    /// Whether the kernel has reason to log a DMAR fault or a refused page request meanwhile.
    pub provokes: bool,
    /// The case itself.
    pub run: F,
}

impl<F: Copy> Case<F> {
    /// A case that gives the kernel no reason to complain.
    pub const fn new(name: &'static str, needs: Needs, run: F) -> Self {
        Self { name, needs, provokes: false, run }
    }

    /// The same, and the kernel has reason to complain.
    #[must_use]
    pub const fn provoking(mut self) -> Self {
        self.provokes = true;
        self
    }
}

impl Options {
    /// The cases to run; `None`: they were to be listed, and are. What waits for the device is as patient as asked for
    /// from now on.
    ///
    /// # Errors
    /// No case is wanted.
    pub fn choose<F>(&self, all: Vec<Case<F>>) -> Result<Option<Vec<Case<F>>>> {
        wait::set_patience(self.patience);
        let named = |case: &Case<F>| {
            self.filter.is_empty() || self.filter.iter().any(|text| case.name.contains(text))
        };
        let possible = |case: &Case<F>| !(self.no_pri && case.needs == Needs::PageRequests);
        let chosen: Vec<_> = all.into_iter().filter(|case| named(case) && possible(case)).collect();
        if self.list {
            for case in &chosen {
                println!("{}{}", case.name, if case.needs == Needs::PageRequests { " [pri]" } else { "" });
            }
            return Ok(None);
        }
        ensure!(!chosen.is_empty(), "no case is called like that; --list lists them");
        Ok(Some(chosen))
    }

    /// Whether TAP is wanted, in which lines of other kinds may stand.
    #[must_use]
    pub fn is_tap(&self) -> bool {
        !self.json
    }

    /// Runs the chosen cases; `work` makes the work of one. True if none failed.
    ///
    /// # Errors
    /// The device's page requests cannot be counted.
    pub fn run<'a, F>(
        &self,
        program: &str,
        chosen: &[Case<F>],
        work: impl Fn(&Case<F>) -> Work<'a>,
        page_requests: &dyn Fn() -> Result<u64>,
    ) -> Result<bool> {
        let entry = |case: &Case<F>| Entry {
            name: case.name,
            needs_page_requests: case.needs == Needs::PageRequests,
            provokes: case.provokes,
            work: work(case),
        };
        let entries = (0..self.repeat).flat_map(|_| chosen.iter()).map(entry).collect();
        suite::run(&Plan { program, entries, seed: self.seed, json: self.json, page_requests })
    }
}

/// The exit status: 0 all passed, 1 some failed, 2 could not run.
pub fn exit_code(outcome: Result<bool>) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("Bail out! {error:#}");
            ExitCode::from(2)
        }
    }
}

/// A name that is not plain, or that two cases have.
pub fn bad_name<F>(cases: &[Case<F>]) -> Option<&'static str> {
    let mut names: Vec<_> = cases.iter().map(|case| case.name).collect();
    names.sort_unstable();
    let twice = names.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0]);
    let plain = |byte: u8| byte.is_ascii_lowercase() || b"-0123456789".contains(&byte);
    twice.or_else(|| names.into_iter().find(|name| !name.bytes().all(plain)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_judged() {
        let rows: [(&[&'static str], Option<&str>); 4] = [
            (&["a", "b-2"], None),
            (&["b", "a", "b"], Some("b")),
            (&["a", "A"], Some("A")),
            (&["a_b"], Some("a_b")),
        ];
        for (names, expected) in rows {
            let cases: Vec<_> = names.iter().map(|name| Case::new(name, Needs::Translation, ())).collect();
            assert_eq!(bad_name(&cases), expected, "{names:?}");
        }
    }
}
