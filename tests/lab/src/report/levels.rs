//! What svmm counted at both ends of an assigned device: the unit that the host programs, what the bridge asked of the
//! host, the unit that the guest programs.

use serde_json::Value;

use super::figures::{figures, micro};
use crate::ui::Table;

/// Before the numbers, on a line of svmm's.
const STATS: &str = "svmm: stats ";

/// The numbers of two machines, one inside the other.
#[derive(Clone, Debug, Default)]
pub struct Levels {
    host: Option<Value>,
    guest: Option<Value>,
}

/// Who counts.
#[derive(Clone, Copy, Debug)]
enum Station {
    /// The unit that the host programs.
    Host,
    /// What asks the host on behalf of the guest.
    Bridge,
    /// The unit that the guest programs.
    Guest,
}

/// A number: of whom, and what it is called there.
type Number = (Station, &'static str);

/// What must hold between numbers: one of them is the sum of others.
struct Rule {
    text: &'static str,
    /// `None`: what the device sent.
    left: Option<Number>,
    right: &'static [Number],
}

const SEEN: &str = "page_requests";
const UNSEEN: &str = "page_requests_unseen";
const GROUPS: &str = "page_request_groups";
const ANSWERS: &str = "page_group_responses";

const RULES: [Rule; 4] = [
    Rule {
        text: "page requests of the device reached the host's unit, or were refused by it",
        left: None,
        right: &[(Station::Host, SEEN), (Station::Host, UNSEEN)],
    },
    Rule {
        text: "groups that the host saw were answered",
        left: Some((Station::Host, GROUPS)),
        right: &[(Station::Host, ANSWERS)],
    },
    Rule {
        text: "page requests that the bridge read reached the guest's unit, or were refused by it",
        left: Some((Station::Bridge, SEEN)),
        right: &[(Station::Guest, SEEN), (Station::Guest, UNSEEN)],
    },
    Rule {
        text: "groups that the guest saw were answered",
        left: Some((Station::Guest, GROUPS)),
        right: &[(Station::Guest, ANSWERS)],
    },
];

/// What is shown: its name, and where the host's unit, the bridge and the guest's unit have it.
const ROWS: [(&str, [&str; 3]); 7] = [
    ("page requests", [SEEN; 3]),
    ("page requests refused", [UNSEEN, "-", UNSEEN]),
    ("page request groups", [GROUPS; 3]),
    ("page group responses", [ANSWERS; 3]),
    ("invalidations of translations", ["iotlb", "invalidate_entries", "iotlb"]),
    ("... of a range", ["iotlb_ranges", "invalidate_ranges", "iotlb_ranges"]),
    ("waits, and calls of the bridge", ["waits", "invalidate_calls", "waits"]),
];

impl Levels {
    /// Takes in a line of the host's, or of the `inner` machine.
    pub fn line(&mut self, line: &str, inner: bool) {
        // What a kernel prints as it powers off may stand before it, half a line.
        let Some((_, json)) = line.split_once(STATS) else { return };
        let end = if inner { &mut self.guest } else { &mut self.host };
        *end = serde_json::from_str(json.trim_end()).ok().or_else(|| end.take());
    }

    fn number(&self, (station, key): Number) -> Option<u64> {
        let (end, kind, name) = match station {
            Station::Host => (&self.host, "units", "iommu0"),
            Station::Bridge => (&self.guest, "hosts", "iommufd"),
            Station::Guest => (&self.guest, "units", "assigned"),
        };
        end.as_ref()?.get(kind)?.get(name)?.get(key)?.as_u64()
    }

    /// What must hold and whether it does, when the device sent so many page requests.
    #[must_use]
    pub fn rules(&self, sent: u64) -> Vec<(bool, String)> {
        let rule = |rule: &Rule| {
            let left = rule.left.map_or(Some(sent), |number| self.number(number));
            let right: Option<Vec<u64>> = rule.right.iter().map(|number| self.number(*number)).collect();
            let (Some(left), Some(right)) = (left, right) else {
                return (false, format!("{}: not told", rule.text));
            };
            let holds = left == right.iter().sum::<u64>();
            let sign = if holds { "=" } else { "is not" };
            let right: Vec<String> = right.iter().map(u64::to_string).collect();
            (holds, format!("{}: {left} {sign} {}", rule.text, right.join(" + ")))
        };
        let mut rules: Vec<_> = RULES.iter().map(rule).collect();
        let ends = (self.number((Station::Host, SEEN)), self.number((Station::Bridge, SEEN)));
        if let (Some(host), Some(bridge)) = ends {
            let text = match host.checked_sub(bridge) {
                Some(rest) => {
                    format!("page requests that the host answered by itself as a process ended: {rest}")
                }
                None => format!("the bridge read {bridge} page requests, more than the host's unit saw"),
            };
            rules.push((bridge <= host, text));
        }
        rules
    }

    /// What each machine counted, one line each.
    #[must_use]
    pub fn figures(&self) -> Vec<String> {
        let host = self.host.as_ref().map(figures).unwrap_or_default();
        let guest = self.guest.as_ref().map(figures).unwrap_or_default();
        host.into_iter().chain(guest.into_iter().map(|line| format!("inner {line}"))).collect()
    }

    /// The numbers, side by side.
    #[must_use]
    pub fn table(&self) -> Table {
        let mut table = Table::new(&["counted", "host's unit", "bridge", "guest's unit"]);
        for (name, [host, bridge, guest]) in &ROWS {
            let numbers = [(Station::Host, *host), (Station::Bridge, *bridge), (Station::Guest, *guest)];
            let text = numbers.map(|it| self.number(it).map_or_else(|| "-".to_owned(), |n| n.to_string()));
            table.row(&[name, &text[0], &text[1], &text[2]]);
        }
        table
    }

    /// How long what was forwarded took, one line each.
    #[must_use]
    pub fn times(&self) -> Vec<String> {
        let name = [("invalidate_times", "an invalidation"), ("page_request_times", "a page request")];
        let line = |(key, what): (&str, &str)| {
            let times = self.guest.as_ref()?.get("hosts")?.get("iommufd")?.get(key)?;
            let of = |key: &str| times.get(key)?.as_u64().map(micro);
            let (count, p50, p99) = (times.get("count")?.as_u64()?, of("p50_ns")?, of("p99_ns")?);
            Some(format!("{what}, forwarded and answered: p50 {p50}, p99 {p99} ({count})"))
        };
        name.into_iter().filter_map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "[   3.svmm: stats {\"units\":{\"iommu0\":{\"page_requests\":5,\"page_requests_unseen\":2,\
        \"page_request_groups\":4,\"page_group_responses\":4,\"iotlb\":9,\"waits\":7}}}\r";
    const GUEST: &str = "svmm: stats {\"units\":{\"assigned\":{\"page_requests\":3,\"page_requests_unseen\":1,\
        \"page_request_groups\":3,\"page_group_responses\":3,\"iotlb\":8,\"waits\":6}},\
        \"hosts\":{\"iommufd\":{\"page_requests\":4,\
        \"page_request_times\":{\"count\":3,\"p50_ns\":1500,\"p99_ns\":20900}}}}";

    #[test]
    fn the_ends_are_compared() {
        let levels = |host: &str, guest: &str| {
            let mut levels = Levels::default();
            levels.line("noise", false);
            levels.line(host, false);
            levels.line(guest, true);
            levels
        };
        let agree = |levels: &Levels, sent| levels.rules(sent).iter().all(|(holds, _)| *holds);
        let good = levels(HOST, GUEST);
        assert!(agree(&good, 7), "{:?}", good.rules(7));
        assert!(!agree(&good, 8), "the device sent one more");
        assert!(!agree(&levels("", GUEST), 7), "the host told nothing");
        for (name, from, to) in [
            ("an answer is lost", "\"page_group_responses\":3", "\"page_group_responses\":2"),
            ("a request is lost", "\"page_requests_unseen\":1", "\"page_requests_unseen\":0"),
            ("a request is made up", "{\"page_requests\":4", "{\"page_requests\":6"),
        ] {
            assert!(!agree(&levels(HOST, &GUEST.replace(from, to)), 7), "{name}");
        }
        let times = good.times();
        assert_eq!(times, ["a page request, forwarded and answered: p50 1.5 us, p99 20.9 us (3)"]);
    }
}
