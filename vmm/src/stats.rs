//! What the machine's parts have counted, told once when the run ends: for scripts, and for tests that compare the
//! two ends of an assigned device.

use std::io::Write;

use serde_json::{Map, Value};

use crate::config::StatsTarget;

/// Where the numbers of one part come from.
type Source = Box<dyn Fn() -> Value + Send>;

/// All parts that count.
#[derive(Default)]
pub(crate) struct Stats {
    sources: Vec<(&'static str, String, Source)>,
}

impl Stats {
    /// Adds the part `name` of the kind `kind`; kind and name together are told once.
    pub(crate) fn add(
        &mut self,
        kind: &'static str,
        name: String,
        source: impl Fn() -> Value + Send + 'static,
    ) {
        self.sources.push((kind, name, Box::new(source)));
    }

    /// `{"KIND": {"NAME": NUMBERS}}`.
    fn collect(&self) -> Value {
        let mut kinds = Map::new();
        for (kind, name, source) in &self.sources {
            if let Value::Object(members) = kinds.entry(*kind).or_insert_with(|| Value::Object(Map::new())) {
                members.insert(name.clone(), source());
            }
        }
        Value::Object(kinds)
    }

    /// Tells all numbers on one line of its own: `svmm: stats JSON`.
    pub(crate) fn tell(&self, target: StatsTarget) {
        let line = format!("svmm: stats {}\n", self.collect());
        let told = match target {
            StatsTarget::Stderr => std::io::stderr().write_all(line.as_bytes()),
            StatsTarget::File(mut file) => file.write_all(line.as_bytes()),
        };
        if let Err(error) = told {
            log::warn!("the stats cannot be written: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn parts_stand_under_their_kinds() {
        let mut stats = Stats::default();
        stats.add("units", "a".into(), || json!({"n": 1}));
        stats.add("devices", "x".into(), || json!(3));
        stats.add("units", "b".into(), || json!({"n": 2}));
        let expected = json!({"units": {"a": {"n": 1}, "b": {"n": 2}}, "devices": {"x": 3}});
        assert_eq!(stats.collect(), expected);
    }
}
