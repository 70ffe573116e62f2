//! One page request from end to end, as the selftest tells it.
//!
//! A flat JSON object; every number in it is a moment in microseconds since the miss, and its name
//! says what happened (`tests/guest`, svm-selftest, `report.rs`).

use serde_json::Value;

/// The moments in the order they happen, and how they read.
const MOMENTS: &[(&str, &str)] = &[
    ("miss", "device: its TLB has no translation"),
    ("sent", "device: page request sent"),
    ("queued", "VT-d: request in the guest's queue"),
    ("response", "guest: page mapped, response given"),
    ("retry", "device: translated, goes on"),
];

/// Named moments in microseconds, in order of time.
#[derive(Clone, Debug, PartialEq)]
pub struct Timeline {
    /// Name and microseconds since the first.
    pub events: Vec<(String, f64)>,
}

impl Timeline {
    /// Reads the JSON after `# timeline `.
    #[must_use]
    pub fn parse(json: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(json).ok()?;
        let moments = value.as_object()?.iter();
        let mut events: Vec<(usize, String, f64)> = moments
            .filter_map(|(name, at)| {
                let (rank, text) = describe(name);
                Some((rank, text.to_owned(), at.as_f64()?))
            })
            .collect();
        events.sort_by(|a, b| a.2.total_cmp(&b.2).then(a.0.cmp(&b.0)));
        let events: Vec<(String, f64)> = events.into_iter().map(|(_, text, at)| (text, at)).collect();
        (!events.is_empty()).then_some(Self { events })
    }

    /// The timeline as lines of text with bars that stand where the time went.
    #[must_use]
    pub fn draw(&self, width: usize) -> String {
        let start = self.events.first().map_or(0.0, |event| event.1);
        let total = self.events.last().map_or(0.0, |event| event.1) - start;
        let longest = self.events.iter().map(|event| event.0.chars().count()).max();
        let longest = longest.unwrap_or(0);
        let mut text = String::new();
        let mut before = start;
        for (name, at) in &self.events {
            let bar = bar((before - start) / total, (at - start) / total, width);
            let (since, step) = (at - start, at - before);
            text.push_str(&format!("  {since:>10.1} us  +{step:<9.1} {name:<longest$}  {bar}\n"));
            before = *at;
        }
        text
    }
}

/// A bar from one fraction of `width` to another; empty when there is no scale.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
fn bar(from: f64, to: f64, width: usize) -> String {
    if !from.is_finite() || !to.is_finite() {
        return String::new();
    }
    let column = |fraction: f64| (fraction.clamp(0.0, 1.0) * width as f64) as usize;
    let (from, to) = (column(from), column(to));
    format!("{}{}", " ".repeat(from), "=".repeat((to - from).max(1)))
}

/// A moment's place in the order and its text; one that is not known keeps its name.
fn describe(name: &str) -> (usize, &str) {
    let known = MOMENTS.iter().position(|(short, _)| *short == name);
    known.map_or((MOMENTS.len(), name), |place| (place, MOMENTS[place].1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_ordered_and_words_are_none() {
        let json = r#"{"case":"c","queued":2.5,"sent":0.0,"miss":0.0,"other":1}"#;
        let timeline = Timeline::parse(json).unwrap();
        let short: Vec<&str> = timeline.events.iter().map(|(text, _)| &text[..5]).collect();
        assert_eq!(short, ["devic", "devic", "other", "VT-d:"]);
        assert_eq!(timeline.events[0].0, MOMENTS[0].1);
        assert_eq!(Timeline::parse("[]"), None);
        assert_eq!(Timeline::parse("not json"), None);
    }

    #[test]
    fn one_event_alone_can_be_drawn() {
        let timeline = Timeline::parse(r#"{"only":3}"#).unwrap();
        assert!(timeline.draw(40).contains("only"));
    }
}
