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
        command.args(["--json", "--patience", "5", &format!("--rehearse={flaw}")]);
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
    let needing = run.cases(|result| result["needs_page_requests"] == true);
    assert_eq!(run.failed(), needing);
    assert!(!run.success);
    assert!(needing.len() > 10 && needing.len() < run.cases(|_| true).len());
}

#[test]
fn every_flaw_is_found() {
    let rows: &[(&str, &[&str])] = &[
        ("stale", &["discard-source", "discard-destination", "move-mapping"]),
        (
            "ignores-rights",
            &["read-only-destination", "protect-takes-write-away", "no-block-respects-rights"],
        ),
        ("loses-byte", &["copy-resident", "demand-fault", "soak"]),
        ("wrong-crc", &["crc-32c", "soak"]),
        ("counts-twice", &["demand-fault", "discard-destination", "all-queues-at-once"]),
        ("forgets-part", &["partial-fault", "partial-fault-without-block"]),
        ("one-worker", &["waiting-queue-holds-up-no-other"]),
        ("always-blocks", &["no-block-reports-at-once"]),
        ("chatty", &["interrupt-per-descriptor"]),
        ("silent-abort", &["abort-ends-everything"]),
        ("short-batch", &["batch-does-each"]),
        ("sunny-batch", &["batch-tells-first-failure", "fence-stops-after-failure"]),
        ("counts-twice", &["batch-array-faults-in"]),
        ("always-blocks", &["batch-array-not-there"]),
        ("no-fences", &["fence-stops-after-failure", "drain-tells-failures"]),
        ("always-accepts", &["shared-queue-tells-when-full", "shared-queue-serves-windows"]),
        ("mixes-windows", &["shared-queue-serves-windows"]),
        ("hasty-commands", &["drain-of-a-queue"]),
        ("asks-for-one", &["ahead-asks-in-groups"]),
        ("asks-for-all", &["ahead-leaves-out-what-is-there"]),
        ("one-for-all", &["ahead-of-the-end"]),
        ("lazy-prefetch", &["prefetch-brings-pages-in", "prefetch-without-waiting"]),
        ("strict-prefetch", &["prefetch-of-nothing"]),
        ("sees-everything", &["second-process-is-separate", "unmapped-source"]),
    ];
    for (flaw, cases) in rows {
        let run = Run::new(flaw, cases);
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
