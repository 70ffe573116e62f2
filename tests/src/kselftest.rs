//! Reading what the kernel's own selftests print: TAP as their harness has it.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

/// Ways to an IOMMU that the VFIO selftests go, each case through one of them. Names that begin with another come first.
pub const MODES: [&str; 5] =
    ["vfio_type1v2_iommu", "vfio_type1_iommu", "iommufd_compat_type1v2", "iommufd_compat_type1", "iommufd"];

/// How a case ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it should.
    Passed,
    /// It did not.
    Failed,
    /// The test itself says that it does not apply, and why.
    Skipped(String),
}

/// One case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// `FIXTURE.TEST`, or `FIXTURE.VARIANT.TEST`.
    pub name: String,
    /// How it ended.
    pub verdict: Verdict,
}

impl Case {
    /// The way to the IOMMU, if it has one of several.
    #[must_use]
    pub fn mode(&self) -> Option<&'static str> {
        let variant = self.name.split('.').nth(1)?;
        MODES.into_iter().find(|mode| variant.starts_with(mode))
    }
}

/// All runs of test programs in a console's text, in order. Pure.
///
/// # Errors
/// One is not whole.
pub fn parse(console: &str) -> Result<Vec<Vec<Case>>> {
    let runs = console.split("TAP version 13\n").skip(1);
    runs.map(|text| {
        let planned = text.lines().find_map(|line| line.strip_prefix("1..")).context("there is no plan")?;
        let planned: usize = planned.trim().parse()?;
        let cases: Vec<Case> = text.lines().filter_map(case).collect();
        ensure!(cases.len() == planned, "{} of {planned} cases were reported", cases.len());
        Ok(cases)
    })
    .collect()
}

/// `ok 3 NAME`, `not ok 3 NAME`, `ok 3 NAME # SKIP why`.
fn case(line: &str) -> Option<Case> {
    let (passed, rest) = match line.strip_prefix("not ok ") {
        Some(rest) => (false, rest),
        None => (true, line.strip_prefix("ok ")?),
    };
    let (number, rest) = rest.split_once(' ')?;
    number.parse::<usize>().ok()?;
    let (name, remark) = rest.split_once(" # ").unwrap_or((rest, ""));
    let verdict = match (passed, remark.strip_prefix("SKIP")) {
        (true, None) => Verdict::Passed,
        (true, Some(why)) => Verdict::Skipped(why.trim().to_owned()),
        (false, _) => Verdict::Failed,
    };
    Some(Case { name: name.trim().to_owned(), verdict })
}

/// How many passed, failed and were skipped, by mode; one line each. Pure.
#[must_use]
pub fn by_mode(cases: &[Case]) -> Vec<String> {
    let mut sums: BTreeMap<&str, [usize; 3]> = BTreeMap::new();
    for case in cases {
        let column = match case.verdict {
            Verdict::Passed => 0,
            Verdict::Failed => 1,
            Verdict::Skipped(_) => 2,
        };
        sums.entry(case.mode().unwrap_or("iommufd")).or_default()[column] += 1;
    }
    let line = |(mode, [passed, failed, skipped]): (&str, [usize; 3])| {
        format!("{mode}: {passed} passed, {failed} failed, {skipped} skipped")
    };
    sums.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "noise\nTAP version 13\n1..3\n# Starting 3 tests from 2 test cases.\n\
        #  RUN           f.iommufd_compat_type1v2_anonymous.t ...\n\
        ok 1 f.iommufd_compat_type1v2_anonymous.t\nnot ok 2 f.vfio_type1_iommu.t\n\
        # a line\nok 3 g.t # SKIP no room\n# Totals: pass:1 fail:1\n";

    #[test]
    fn runs_are_read() {
        let runs = parse(&format!("{RUN}Using x\n{RUN}")).unwrap();
        assert_eq!((runs.len(), runs[0].len()), (2, 3));
        let verdicts: Vec<_> = runs[1].iter().map(|case| (case.mode(), case.verdict.clone())).collect();
        let expected = [
            (Some("iommufd_compat_type1v2"), Verdict::Passed),
            (Some("vfio_type1_iommu"), Verdict::Failed),
            (None, Verdict::Skipped("no room".into())),
        ];
        assert_eq!(verdicts, expected);
        assert_eq!(by_mode(&runs[0]).len(), 3);
        assert!(by_mode(&runs[0]).contains(&"vfio_type1_iommu: 0 passed, 1 failed, 0 skipped".to_owned()));
    }

    #[test]
    fn runs_that_are_not_whole() {
        assert!(parse(&RUN.replace("ok 3", "# ok 3")).is_err());
        assert!(parse(&RUN.replace("1..3", "")).is_err());
        assert_eq!(parse("no test").unwrap(), Vec::<Vec<Case>>::new());
    }
}
