//! What svmm counted at both ends of an assigned device: the unit that the host programs, what the bridge asked of the
//! host, the unit that the guest programs.

use serde_json::Value;

use crate::ui::Table;

/// Before the numbers, on a line of svmm's.
const STATS: &str = "svmm: stats ";

/// The numbers of two machines, one inside the other.
#[derive(Clone, Debug, Default)]
pub struct Levels {
    host: Option<Value>,
    guest: Option<Value>,
}

/// What is compared: its name, where the host's unit, the bridge, and the guest's unit have it, and whether the three
/// are to be equal.
struct Row {
    name: &'static str,
    keys: [&'static str; 3],
    equal: bool,
}

const ROWS: [Row; 5] = [
    Row { name: "page requests", keys: ["page_requests", "page_requests", "page_requests"], equal: true },
    Row {
        name: "page request groups",
        keys: ["page_request_groups", "page_request_groups", "page_request_groups"],
        equal: true,
    },
    Row {
        name: "page group responses",
        keys: ["page_group_responses", "page_group_responses", "page_group_responses"],
        equal: true,
    },
    Row {
        name: "invalidations of translations",
        keys: ["iotlb", "invalidate_entries", "iotlb"],
        equal: false,
    },
    Row {
        name: "waits, and calls of the bridge",
        keys: ["waits", "invalidate_calls", "waits"],
        equal: false,
    },
];

impl Levels {
    /// Takes in a line of the host's, or of the `inner` machine.
    pub fn line(&mut self, line: &str, inner: bool) {
        // What a kernel prints as it powers off may stand before it, half a line.
        let Some((_, json)) = line.split_once(STATS) else { return };
        let end = if inner { &mut self.guest } else { &mut self.host };
        *end = serde_json::from_str(json.trim_end()).ok().or_else(|| end.take());
    }

    /// The numbers of a row: of the host's unit, the bridge, the guest's unit.
    fn row(&self, row: &Row) -> [Option<u64>; 3] {
        let number = |end: &Option<Value>, kind: &str, name: &str, key: &str| {
            end.as_ref()?.get(kind)?.get(name)?.get(key)?.as_u64()
        };
        [
            number(&self.host, "units", "iommu0", row.keys[0]),
            number(&self.guest, "hosts", "iommufd", row.keys[1]),
            number(&self.guest, "units", "assigned", row.keys[2]),
        ]
    }

    /// Whether all numbers are there, and those are equal that are to be.
    #[must_use]
    pub fn agree(&self) -> bool {
        ROWS.iter().all(|row| match self.row(row) {
            [Some(host), Some(bridge), Some(guest)] => !row.equal || (host == bridge && bridge == guest),
            _ => false,
        })
    }

    /// The numbers, side by side.
    #[must_use]
    pub fn table(&self) -> Table {
        let mut table = Table::new(&["counted", "host's unit", "bridge", "guest's unit", ""]);
        for row in &ROWS {
            let numbers = self.row(row);
            let text = numbers.map(|number| number.map_or_else(|| "-".to_owned(), |n| n.to_string()));
            let [host, bridge, guest] = numbers;
            let verdict = match (row.equal, host == bridge && bridge == guest && host.is_some()) {
                (true, true) => "equal",
                (true, false) => "DIFFERENT",
                (false, _) => "",
            };
            table.row(&[row.name, &text[0], &text[1], &text[2], verdict]);
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

fn micro(nanoseconds: u64) -> String {
    format!("{}.{} us", nanoseconds / 1000, nanoseconds % 1000 / 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "[   3.svmm: stats {\"units\":{\"iommu0\":{\"page_requests\":4,\"page_request_groups\":3,\
        \"page_group_responses\":3,\"iotlb\":9,\"waits\":7}}}\r";
    const GUEST: &str = "svmm: stats {\"units\":{\"assigned\":{\"page_requests\":4,\"page_request_groups\":3,\
        \"page_group_responses\":3,\"iotlb\":8,\"waits\":6}},\"hosts\":{\"iommufd\":{\"page_requests\":4,\
        \"page_request_groups\":3,\"page_group_responses\":3,\"invalidate_entries\":5,\"invalidate_calls\":4,\
        \"page_request_times\":{\"count\":3,\"p50_ns\":1500,\"p99_ns\":20900}}}}";

    #[test]
    fn both_ends_are_compared() {
        let levels = |host: &str, guest: &str| {
            let mut levels = Levels::default();
            levels.line("noise", false);
            levels.line(host, false);
            levels.line(guest, true);
            levels
        };
        assert!(levels(HOST, GUEST).agree());
        assert!(!levels("", GUEST).agree(), "the host told nothing");
        let lost = GUEST.replace("\"page_group_responses\":3", "\"page_group_responses\":2");
        assert!(!levels(HOST, &lost).agree());
        assert!(levels(HOST, &lost).table().to_string().contains("DIFFERENT"));
        let times = levels(HOST, GUEST).times();
        assert_eq!(times, ["a page request, forwarded and answered: p50 1.5 us, p99 20.9 us (3)"]);
    }
}
