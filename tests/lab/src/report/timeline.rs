//! One page request from end to end, as the selftest tells it.
//!
//! Either `{"events":[{"name":"device asks","us":0.0}, ...]}` or a flat object of names and
//! microseconds since the start.

use serde_json::Value;

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
        let list = value.get("events").unwrap_or(&value);
        let mut events: Vec<(String, f64)> = match list {
            Value::Array(items) => items.iter().filter_map(event).collect(),
            Value::Object(map) => {
                let pairs = map.iter();
                pairs.filter_map(|(name, at)| Some((readable(name), at.as_f64()?))).collect()
            }
            _ => return None,
        };
        events.sort_by(|a, b| a.1.total_cmp(&b.1));
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

fn event(item: &Value) -> Option<(String, f64)> {
    let map = item.as_object()?;
    let name = map.values().find_map(Value::as_str)?;
    let at = map.get("us").or_else(|| map.values().find(|value| value.is_number()))?;
    Some((name.to_owned(), at.as_f64()?))
}

fn readable(name: &str) -> String {
    name.trim_end_matches("_us").replace('_', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_shapes_are_read_and_ordered() {
        let list = r#"{"events":[{"name":"response","us":40},{"name":"request","us":10.5}]}"#;
        let flat = r#"{"response_us":40,"request_us":10.5}"#;
        let expected = [("request".to_owned(), 10.5), ("response".to_owned(), 40.0)];
        for json in [list, flat] {
            assert_eq!(Timeline::parse(json).unwrap().events, expected, "{json}");
        }
        assert_eq!(Timeline::parse("[]"), None);
        assert_eq!(Timeline::parse("not json"), None);
    }

    #[test]
    fn one_event_alone_can_be_drawn() {
        let timeline = Timeline::parse(r#"{"only":3}"#).unwrap();
        assert!(timeline.draw(40).contains("only"));
    }
}
