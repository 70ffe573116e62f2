//! The selftest judged: against a model of the endpoint it passes, and a model with a flaw is found
//! out by the cases that are there for it.
//!
//! Runs anywhere; no guest is involved.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail the test")]

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

struct Run {
    success: bool,
    json: Value,
}

impl Run {
    fn new(flaw: &str, filters: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_svm-selftest"));
        command.args(["--json", "--patience", "5", "--operations", "300", &format!("--rehearse={flaw}")]);
        command.args(filters.iter().map(|filter| format!("--filter={filter}")));
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        // Other processes of a case may have printed lines before.
        let last = text.lines().last().unwrap_or_default();
        let json = serde_json::from_str(last).unwrap_or_else(|error| panic!("{flaw}: {error}: {text}"));
        Self { success: output.status.success(), json }
    }

    fn cases(&self, wanted: impl Fn(&Value) -> bool) -> BTreeSet<&str> {
        let results = self.json["results"].as_array().unwrap().iter();
        results.filter(|result| wanted(result)).map(|result| result["name"].as_str().unwrap()).collect()
    }

    fn failed(&self) -> BTreeSet<&str> {
        self.cases(|result| result["verdict"]["failed"].is_string())
    }
}

#[test]
fn a_good_endpoint_passes() {
    let run = Run::new("none", &[]);
    assert_eq!(run.failed(), BTreeSet::new(), "{:#}", run.json);
    assert!(run.success);
    assert!(run.json["totals"]["page_requests"].as_u64() > Some(1000));
}

#[test]
fn without_page_requests_exactly_their_cases_fail() {
    let run = Run::new("no-pri", &[]);
    let needing =
        run.cases(|result| result["needs_page_requests"] == true && result["verdict"]["skipped"].is_null());
    assert_eq!(run.failed(), needing);
    assert!(!run.success);
    assert!(needing.len() > 10 && needing.len() < run.cases(|_| true).len());
}

/// The rows of the README's table: a case, and how it was seen failing.
fn table() -> Vec<(&'static str, &'static str)> {
    let text = include_str!("../src/bin/svm-selftest/README.md");
    let (_, rows) = text.split_once("| case | seen failing |").unwrap();
    let cells = |line: &'static str| {
        let mut cells = line.split('|').map(str::trim);
        Some((cells.nth(1)?.trim_matches('`'), cells.next()?))
    };
    rows.lines().skip(2).take_while(|line| line.starts_with('|')).map(|line| cells(line).unwrap()).collect()
}

#[test]
fn the_table_has_every_case_and_no_other() {
    let output = Command::new(env!("CARGO_BIN_EXE_svm-selftest")).args(["--rehearse", "--list"]).output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    let cases: Vec<&str> = text.lines().map(|line| line.split(' ').next().unwrap()).collect();
    let rows: Vec<&str> = table().into_iter().map(|(case, _)| case).collect();
    assert_eq!(rows, cases);
}

/// Each row that a rehearsal can show, flaw by flaw.
#[test]
fn every_case_fails_by_its_flaw() {
    let flaw = |how: &'static str| how.strip_prefix("rehearsal: ").map(|flaw| flaw.trim_matches('`'));
    let rows: Vec<_> = table().into_iter().filter_map(|(case, how)| Some((flaw(how)?, case))).collect();
    let flaws: BTreeSet<&str> = rows.iter().map(|(flaw, _)| *flaw).collect();
    assert!(rows.len() > 60 && flaws.len() > 15, "{} rows, {} flaws", rows.len(), flaws.len());
    for flaw in flaws {
        let cases: Vec<&str> = rows.iter().filter(|row| row.0 == flaw).map(|row| row.1).collect();
        let run = Run::new(flaw, &cases);
        let failed = run.failed();
        let blind: Vec<&&str> = cases.iter().filter(|case| !failed.contains(**case)).collect();
        assert!(blind.is_empty(), "{flaw} is not seen by {blind:?}");
        assert!(!run.success);
    }
}

#[test]
fn what_cannot_run_says_so_in_one_line() {
    const SELFTEST: &str = env!("CARGO_BIN_EXE_svm-selftest");
    const IOMMUFD: &str = env!("CARGO_BIN_EXE_iommufd-test");
    let rows: &[(&str, &str, &[&str])] = &[
        ("no endpoint", SELFTEST, &["--filter", "no-operation"]),
        ("no such case", SELFTEST, &["--rehearse", "--filter", "no such case"]),
        ("no endpoint for iommufd", IOMMUFD, &["--filter", "identify"]),
        ("no such case of iommufd", IOMMUFD, &["--filter", "no such case"]),
    ];
    for (name, program, arguments) in rows {
        let output = Command::new(program).args(*arguments).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(2), "{name}: {text}");
        assert!(text.starts_with("Bail out! ") && text.lines().count() == 1, "{name}: {text}");
    }
}
