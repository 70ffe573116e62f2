//! What the suite prints: TAP version 14, or one JSON object.

use std::time::Duration;

use serde::Serialize;
use serde_json::json;

use crate::endpoint::Timeline;

/// Begins a line with something that was measured over the whole run.
pub const FIGURE: &str = "# figure ";

/// How a case ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should.
    Passed,
    /// It did not; why, one line each.
    Failed(String),
    /// It does not apply here; why.
    Skipped(String),
}

/// One case that ran.
#[derive(Clone, Debug, Serialize)]
pub struct Result {
    /// The case.
    pub name: String,
    /// How it ended.
    pub verdict: Verdict,
    /// Page requests that the device sent meanwhile.
    pub page_requests: u64,
    /// How long it took.
    pub microseconds: u64,
    /// Whether it needs page requests to pass.
    pub needs_page_requests: bool,
    /// What else it told.
    pub notes: Vec<String>,
}

impl Result {
    /// The TAP lines of the case with number `number`. Pure.
    pub fn tap(&self, number: usize) -> String {
        let Self { name, page_requests, microseconds, .. } = self;
        let figures = format!("pr={page_requests} us={microseconds}");
        let mut lines = match &self.verdict {
            Verdict::Passed => format!("ok {number} - {name} # {figures}\n"),
            Verdict::Skipped(why) => format!("ok {number} - {name} # SKIP {why}\n"),
            Verdict::Failed(why) => {
                let head = format!("not ok {number} - {name} # {figures}\n");
                why.lines().fold(head, |text, line| format!("{text}# {line}\n"))
            }
        };
        for note in &self.notes {
            lines.push_str(&format!("# {note}\n"));
        }
        lines
    }
}

/// The sums over all cases, as JSON. `page_requests` is all that the device sent, also between cases: of a process that
/// ended with work under way some come late. Pure.
pub fn totals(results: &[Result], page_requests: u64, seed: u64, elapsed: Duration) -> String {
    let count =
        |wanted: fn(&Verdict) -> bool| results.iter().filter(|result| wanted(&result.verdict)).count();
    let needing =
        |result: &&Result| result.needs_page_requests && !matches!(result.verdict, Verdict::Skipped(_));
    let names: Vec<&str> = results.iter().filter(needing).map(|result| result.name.as_str()).collect();
    json!({
        "cases": results.len(),
        "passed": count(|verdict| *verdict == Verdict::Passed),
        "failed": count(|verdict| matches!(verdict, Verdict::Failed(_))),
        "skipped": count(|verdict| matches!(verdict, Verdict::Skipped(_))),
        "page_requests": page_requests,
        "seconds": elapsed.as_secs_f64(),
        "seed": seed,
        "need_page_requests": names,
    })
    .to_string()
}

/// One page request from end to end: microseconds since the device's miss, as JSON. Every number
/// in it is a moment. Pure.
pub fn timeline(case: &str, timeline: &Timeline) -> String {
    let [miss, ..] = timeline.moments;
    let since = timeline.moments.map(|moment| {
        let nanoseconds = u32::try_from(moment.saturating_sub(miss)).unwrap_or(u32::MAX);
        f64::from(nanoseconds) / 1000.0
    });
    let [miss, sent, queued, response, retry] = since;
    json!({
        "case": case,
        "address": format!("{:#x}", timeline.address),
        "queue": timeline.queue.to_string(),
        "miss": miss,
        "sent": sent,
        "queued": queued,
        "response": response,
        "retry": retry,
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_case() {
        let result = |verdict, notes: &[&str]| Result {
            name: "a".into(),
            verdict,
            page_requests: 3,
            microseconds: 40,
            needs_page_requests: true,
            notes: notes.iter().map(|&note| note.to_owned()).collect(),
        };
        let rows = [
            (result(Verdict::Passed, &["n"]), "ok 7 - a # pr=3 us=40\n# n\n"),
            (result(Verdict::Skipped("no".into()), &[]), "ok 7 - a # SKIP no\n"),
            (result(Verdict::Failed("x\ny".into()), &[]), "not ok 7 - a # pr=3 us=40\n# x\n# y\n"),
        ];
        for (result, expected) in rows {
            assert_eq!(result.tap(7), expected);
        }
    }

    #[test]
    fn a_timeline_counts_from_the_miss() {
        let moments = [1_000_000, 1_000_500, 1_001_000, 1_051_000, 1_052_250];
        let text = timeline("c", &Timeline { moments, address: 0x1000, queue: 2, sequence: 9 });
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["address"], "0x1000");
        assert_eq!((value["sent"].as_f64(), value["retry"].as_f64()), (Some(0.5), Some(52.25)));
    }
}
