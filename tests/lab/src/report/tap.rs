//! Test Anything Protocol lines on a guest's console, among other text.
//!
//! `ok 3 - fresh mapping # pr=7 us=12500` is a case with figures; `Bail out!` ends a run.

use super::Timeline;

/// Starts the line with the sums over all cases, which is no remark on the last one.
const TOTALS: &str = "# totals ";

/// One case of a selftest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// What it checks.
    pub name: String,
    /// Whether it passed.
    pub passed: bool,
    /// Whether it was skipped.
    pub skipped: bool,
    /// `key=value` pairs after the `#`.
    pub figures: Vec<(String, String)>,
}

impl Case {
    /// The value of a figure.
    #[must_use]
    pub fn figure(&self, key: &str) -> Option<&str> {
        let found = self.figures.iter().find(|(name, _)| name == key);
        found.map(|(_, value)| value.as_str())
    }
}

/// All that a run told.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The cases in order.
    pub cases: Vec<Case>,
    /// How many cases were announced.
    pub planned: Option<usize>,
    /// One page request from end to end.
    pub timeline: Option<Timeline>,
    /// Page requests of the whole run.
    total: Option<u64>,
    /// Why the run was given up.
    pub bail_out: Option<String>,
    /// Remarks after cases that failed.
    pub remarks: Vec<String>,
    /// What was measured over the whole run.
    pub figures: Vec<String>,
}

impl Report {
    /// Whether every announced case ran and passed.
    #[must_use]
    pub fn passed(&self) -> bool {
        let whole = self.planned.is_none_or(|planned| planned == self.cases.len());
        let good = self.cases.iter().all(|case| case.passed);
        whole && good && !self.cases.is_empty() && self.bail_out.is_none()
    }

    /// Page requests that the device sent, also between cases; while the run is not at its end, those of the cases so
    /// far.
    #[must_use]
    pub fn page_requests(&self) -> u64 {
        let cases = || self.cases.iter().filter_map(|case| case.figure("pr")?.parse::<u64>().ok()).sum();
        self.total.unwrap_or_else(cases)
    }

    /// Takes in one line of the console.
    pub fn line(&mut self, line: &str) {
        let line = line.trim_end();
        if let Some(plan) = line.strip_prefix("1..") {
            let count = plan.split(' ').next().unwrap_or_default();
            self.planned = count.parse().ok();
        } else if let Some(json) = line.strip_prefix("# timeline ") {
            self.timeline = Timeline::parse(json).or_else(|| self.timeline.take());
        } else if let Some(reason) = line.strip_prefix("Bail out!") {
            self.bail_out = Some(reason.trim().to_owned());
        } else if let Some(case) = parse_case(line) {
            self.cases.push(case);
        } else if let Some(json) = line.strip_prefix(TOTALS) {
            let totals = serde_json::from_str::<serde_json::Value>(json).unwrap_or_default();
            self.total = totals.get("page_requests").and_then(serde_json::Value::as_u64);
        } else if let Some(figure) = line.strip_prefix("# figure ") {
            self.figures.push(figure.to_owned());
        } else if let Some(remark) = line.strip_prefix("# ")
            && let Some(case) = self.cases.last().filter(|case| !case.passed)
        {
            self.remarks.push(format!("{}: {remark}", case.name));
        }
    }
}

fn parse_case(line: &str) -> Option<Case> {
    let (passed, rest) = match line.strip_prefix("not ok ") {
        Some(rest) => (false, rest),
        None => (true, line.strip_prefix("ok ")?),
    };
    let (number, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    number.parse::<u32>().ok()?;
    let (name, directive) = rest.split_once(" # ").unwrap_or((rest, ""));
    let figures = directive
        .split_whitespace()
        .filter_map(|word| word.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    Some(Case {
        name: name.trim_start_matches("- ").trim().to_owned(),
        passed,
        skipped: directive.to_ascii_uppercase().starts_with("SKIP"),
        figures,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(text: &str) -> Report {
        let mut report = Report::default();
        text.lines().for_each(|line| report.line(line));
        report
    }

    #[test]
    fn cases_are_found_among_kernel_messages() {
        let report = report(
            "[    1.0] Run /init\nTAP version 14\n1..3\n\
             ok 1 - bind # pr=0 ms=1\r\nnot ok 2 - fresh # pr=7 ms=12.5\n# byte 5 differs\n\
             # totals {\"page_requests\":9}\n\
             ok 3 - pri off # SKIP no PRI\nok then\n# figure 8 inv_iotlb\n",
        );
        assert_eq!(report.cases.len(), 3);
        assert_eq!(report.cases[1].figure("pr"), Some("7"));
        assert_eq!(report.cases[1].name, "fresh");
        assert!(report.cases[2].skipped);
        assert_eq!(report.remarks, ["fresh: byte 5 differs"]);
        assert_eq!(
            (report.figures.as_slice(), report.page_requests()),
            (["8 inv_iotlb".to_owned()].as_slice(), 9)
        );
        assert!(!report.passed());
    }

    #[test]
    fn a_run_that_stops_early_has_not_passed() {
        assert!(report("1..1\nok 1 - a\n").passed());
        assert!(!report("1..2\nok 1 - a\n").passed());
        assert!(!report("1..1\nok 1 - a\nBail out! no device\n").passed());
        assert!(!report("").passed());
    }
}
