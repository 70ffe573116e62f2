//! The table of `svm-misbehaviour`'s README has every case.
//!
//! Runs anywhere; no guest is involved.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::process::Command;

fn listed() -> Vec<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_svm-misbehaviour")).arg("--list").output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    text.lines().filter_map(|line| Some(line.split(' ').next()?.to_owned())).collect()
}

#[test]
fn the_table_has_every_case_and_no_other() {
    let text = include_str!("../src/bin/svm-misbehaviour/README.md");
    let (_, rows) = text.split_once("| case | `--flaw honest` | `--flaw another` |\n").unwrap();
    let case = |line: &str| line.split('|').nth(1).map(|cell| cell.trim().trim_matches('`').to_owned());
    let rows: Vec<_> =
        rows.lines().skip(1).take_while(|line| line.starts_with('|')).filter_map(case).collect();
    assert_eq!(rows, listed());
}
