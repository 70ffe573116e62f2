//! Reading a guest's console: the selftest's TAP and the kernel log.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

/// One case of the selftest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// Its name.
    pub name: String,
    /// Whether it passed, or was skipped.
    pub passed: bool,
    /// Whether it was skipped.
    pub skipped: bool,
    /// Page requests that the device sent meanwhile.
    pub page_requests: u64,
}

/// The selftest's sums.
#[derive(Clone, Debug, Deserialize)]
pub struct Totals {
    /// Cases that ran.
    pub cases: usize,
    /// Page requests of all cases.
    pub page_requests: u64,
    /// Names of the cases that need page requests to pass.
    pub need_page_requests: BTreeSet<String>,
}

/// One page request: microseconds since the device's miss.
#[derive(Clone, Debug, Deserialize)]
pub struct Timeline {
    /// The page, in hexadecimal.
    pub address: String,
    /// Always 0.
    pub miss: f64,
    /// Handed to the IOMMU.
    pub sent: f64,
    /// Visible in the guest's queue.
    pub queued: f64,
    /// Answered.
    pub response: f64,
    /// Translated.
    pub retry: f64,
}

/// A whole run of the selftest.
#[derive(Clone, Debug)]
pub struct Tap {
    /// All cases in order.
    pub cases: Vec<Case>,
    /// The sums.
    pub totals: Totals,
    /// One page request, if the run made one.
    pub timeline: Option<Timeline>,
}

impl Tap {
    /// Finds a run in a console's text, among other lines. Pure.
    ///
    /// # Errors
    /// There is none, it was given up, or it is not whole.
    pub fn parse(console: &str) -> Result<Self> {
        let (_, text) = console.split_once("TAP version 14\n").context("the selftest did not start")?;
        if let Some((_, reason)) = text.split_once("Bail out! ") {
            bail!("the selftest gave up: {}", reason.lines().next().unwrap_or_default());
        }
        let planned = text.lines().find_map(|line| line.strip_prefix("1..")).context("there is no plan")?;
        let cases: Vec<Case> = text.lines().filter_map(parse_case).collect();
        let planned: usize = planned.trim().parse()?;
        ensure!(cases.len() == planned, "the selftest reported {} of {planned} cases", cases.len());
        let json = |prefix: &str| text.lines().find_map(|line| line.strip_prefix(prefix));
        let totals = json("# totals ").context("there are no totals")?;
        let totals = serde_json::from_str(totals).context("the totals are strange")?;
        let timeline = json("# timeline ").map(serde_json::from_str).transpose()?;
        Ok(Self { cases, totals, timeline })
    }

    /// A case by its name.
    ///
    /// # Errors
    /// There is none.
    pub fn case(&self, name: &str) -> Result<&Case> {
        self.cases.iter().find(|case| case.name == name).with_context(|| format!("there is no case {name}"))
    }

    /// Names of the cases that failed.
    #[must_use]
    pub fn failed(&self) -> BTreeSet<String> {
        self.cases.iter().filter(|case| !case.passed).map(|case| case.name.clone()).collect()
    }

    /// Names of the cases that were skipped.
    #[must_use]
    pub fn skipped(&self) -> BTreeSet<String> {
        self.cases.iter().filter(|case| case.skipped).map(|case| case.name.clone()).collect()
    }
}

fn parse_case(line: &str) -> Option<Case> {
    let (passed, rest) = match line.strip_prefix("not ok ") {
        Some(rest) => (false, rest),
        None => (true, line.strip_prefix("ok ")?),
    };
    let (number, rest) = rest.split_once(" - ")?;
    number.parse::<usize>().ok()?;
    let (name, remarks) = rest.split_once(" # ")?;
    let figure = remarks.split(' ').find_map(|word| word.strip_prefix("pr="));
    let page_requests = figure.and_then(|digits| digits.parse().ok()).unwrap_or(0);
    let skipped = remarks.starts_with("SKIP");
    Some(Case { name: name.to_owned(), passed, skipped, page_requests })
}

/// Lines of a guest's kernel log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelLog {
    lines: Vec<String>,
}

/// What the kernel says when something is wrong with it or with its devices.
const ALARMS: [&str; 9] = [
    "WARNING:",
    "BUG:",
    "Oops",
    "INFO: task",
    "INFO: rcu",
    "soft lockup",
    "general protection",
    "[Firmware Bug]",
    "Kernel panic",
];
/// What the IOMMU driver says of a fault, of a page request that cannot be, and of a queue that
/// does not answer.
const FAULTS: [&str; 8] = [
    "handling fault status",
    "[fault reason",
    "Address is not canonical",
    "Invalid page request",
    "Page request in Privilege Mode",
    "QI HEAD",
    "Invalidation Queue Error",
    "Device-TLB Invalidation",
];

/// Programs that say in the log which case begins and ends.
const TELLERS: [&str; 4] = ["svm-selftest: ", "iommufd-test: ", "bridge-test: ", "svm-misbehaviour: "];

impl KernelLog {
    /// Takes what the guest's init printed between its markers. Pure.
    ///
    /// # Errors
    /// The markers are not there.
    pub fn parse(console: &str) -> Result<Self> {
        let (_, rest) = console.split_once("guest-init: klog begin\n").context("there is no kernel log")?;
        let (log, _) = rest.split_once("guest-init: klog end").context("the kernel log is cut off")?;
        Ok(Self { lines: log.lines().map(str::to_owned).collect() })
    }

    /// Whether a line holds this text.
    #[must_use]
    pub fn says(&self, text: &str) -> bool {
        self.lines.iter().any(|line| line.contains(text))
    }

    /// Lines at the level of a warning, or worse, that hold this text.
    #[must_use]
    pub fn warnings(&self, text: &str) -> Vec<&str> {
        let level = |line: &str| line.strip_prefix('<')?.split_once('>')?.0.parse::<u32>().ok();
        // The facility is above the lowest three bits.
        let warns = |line: &&str| line.contains(text) && level(line).is_some_and(|level| level % 8 <= 4);
        self.lines.iter().map(String::as_str).filter(warns).collect()
    }

    /// Lines that should not be there: every alarm, and the IOMMU's complaints outside of cases that
    /// provoke them.
    #[must_use]
    pub fn complaints(&self) -> Vec<&str> {
        let mut provoked = false;
        let mut complaints = Vec::new();
        for line in &self.lines {
            if let Some((_, event)) = TELLERS.iter().find_map(|teller| line.split_once(teller)) {
                // The driver may print a fault a moment after the case that made it.
                provoked = event.ends_with(" provokes") || (provoked && event.starts_with("end "));
                continue;
            }
            let holds = |words: &[&str]| words.iter().any(|word| line.contains(word));
            if holds(&ALARMS) || (!provoked && holds(&FAULTS)) {
                complaints.push(line.as_str());
            }
        }
        complaints
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "noise\nTAP version 14\n1..3\nok 1 - a # pr=4 us=1\n# a note\n\
        [  1.0] noise\nnot ok 2 - b # pr=0 us=2\n# why\nok 3 - c # SKIP no reason\n\
        # timeline {\"case\":\"a\",\"address\":\"0x1000\",\"queue\":\"0\",\"miss\":0.0,\"sent\":0.5,\
        \"queued\":1,\"response\":20,\"retry\":21.5}\n\
        # totals {\"cases\":3,\"page_requests\":4,\"need_page_requests\":[\"b\"],\"seed\":1}\n";

    #[test]
    fn a_run_is_read() {
        let tap = Tap::parse(RUN).unwrap();
        assert_eq!(tap.failed(), BTreeSet::from(["b".to_owned()]));
        assert_eq!(tap.skipped(), BTreeSet::from(["c".to_owned()]));
        assert_eq!(tap.case("a").unwrap().page_requests, 4);
        assert_eq!(tap.failed(), tap.totals.need_page_requests);
        assert!(tap.timeline.unwrap().retry > 21.0);
    }

    #[test]
    fn runs_that_are_not_whole() {
        let rows = [
            ("nothing", "boot\n".to_owned()),
            ("cut off", RUN.split_inclusive('\n').take(5).collect()),
            ("a case is missing", RUN.replace("ok 3 - c # SKIP no reason\n", "")),
            ("given up", RUN.replace("# why", "Bail out! it is late")),
            ("no totals", RUN.replace("# totals", "# total")),
        ];
        for (name, text) in rows {
            assert!(Tap::parse(&text).is_err(), "{name}");
        }
    }

    #[test]
    fn complaints_of_the_kernel() {
        let fault = "<3>[ 1.0] DMAR: DRHD: handling fault status reg 2";
        let alarm = "<4>[ 1.0] WARNING: at kernel/x.c";
        let begin = "<6>[ 1.0] svm-selftest: begin a provokes";
        let (end, next) = ("<6>[ 1.0] svm-selftest: end a", "<6>[ 1.0] svm-selftest: begin b");
        let rows: [(&str, &[&str], &[&str]); 6] = [
            ("quiet", &["<6>[ 1.0] DMAR: Enabled", begin, end], &[]),
            ("fault out of nowhere", &[fault], &[fault]),
            ("provoked", &[begin, fault, end], &[]),
            ("provoked and late", &[begin, end, fault, next], &[]),
            ("in the next case", &[begin, end, next, fault], &[fault]),
            ("alarms are never right", &[begin, alarm, end], &[alarm]),
        ];
        for (name, lines, expected) in rows {
            let console = format!("x\nguest-init: klog begin\n{}\nguest-init: klog end\n", lines.join("\n"));
            assert_eq!(KernelLog::parse(&console).unwrap().complaints(), expected, "{name}");
        }
        assert!(KernelLog::parse("guest-init: klog begin\n").is_err());
    }

    #[test]
    fn warnings_are_told_by_their_level() {
        let lines = ["<4>[ 1.0] DMAR: a", "<5>[ 1.0] DMAR: b", "<3>[ 1.0] c", "<11>DMAR: d", "DMAR: e"];
        let console = format!("guest-init: klog begin\n{}\nguest-init: klog end\n", lines.join("\n"));
        let log = KernelLog::parse(&console).unwrap();
        assert_eq!(log.warnings("DMAR"), ["<4>[ 1.0] DMAR: a", "<11>DMAR: d"]);
    }
}
