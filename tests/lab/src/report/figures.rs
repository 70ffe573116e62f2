//! What one svmm counted over its whole run, as lines for people: how long page requests took and whose share that was,
//! what the caches served, what was invalidated, what failed and why.

use serde_json::Value;

/// Kinds of invalidations: what they are called in the numbers, and to people.
const INVALIDATIONS: [(&str, &str); 6] = [
    ("iotlb", "of the IOTLB"),
    ("iotlb_ranges", "of these of a range"),
    ("device_tlb", "of device-TLBs"),
    ("pasid_cache", "of the PASID-cache"),
    ("context_cache", "of the context-cache"),
    ("interrupt_entries", "of the interrupt entry cache"),
];

/// The lines of one svmm. **Pure.**
#[must_use]
pub fn figures(stats: &Value) -> Vec<String> {
    let members = |kind: &str| stats.get(kind).and_then(Value::as_object).into_iter().flatten();
    let mut lines = Vec::new();
    for (name, counts) in members("endpoints") {
        lines.extend(waits(counts).map(|line| format!("endpoint {name}: {line}")));
        lines.extend(
            hit_rate(counts.get("device_tlb")).map(|rate| format!("endpoint {name}: device-TLB: {rate}")),
        );
    }
    for (name, counts) in members("units") {
        lines.extend(hit_rate(counts.get("look_ups")).map(|rate| format!("unit {name}: IOTLBs: {rate}")));
        lines.push(format!("unit {name}: invalidations: {}", invalidations(counts)));
        lines.push(format!("unit {name}: faults: {}", faults(counts)));
    }
    lines
}

fn waits(counts: &Value) -> Option<String> {
    let part = |key: &str, name: &str| {
        let of = |percentile: &str| counts.get(key)?.get(percentile)?.as_u64().map(micro);
        Some(format!("{name}p50 {}, p99 {}", of("p50_ns")?, of("p99_ns")?))
    };
    let count = counts.get("round_trip")?.get("count")?.as_u64().filter(|count| *count > 0)?;
    let all = part("round_trip", "")?;
    let (own, guest) = (part("own_share", "svmm's share ")?, part("guest_share", "the guest's ")?);
    Some(format!("{count} waits for a page, from request to retry: {all}; {own}; {guest}"))
}

fn hit_rate(look_ups: Option<&Value>) -> Option<String> {
    let of = |key: &str| look_ups?.get(key)?.as_u64();
    let (hits, misses) = (of("hits")?, of("misses")?);
    let all = hits.checked_add(misses).filter(|all| *all > 0)?;
    // No more than 1000.
    let permille = u128::from(hits) * 1000 / u128::from(all);
    Some(format!("{}.{}% of {all} look-ups hit", permille / 10, permille % 10))
}

fn invalidations(counts: &Value) -> String {
    let kind = |(key, name): (&str, &str)| {
        let count = counts.get(key)?.as_u64().filter(|count| *count > 0)?;
        Some(format!("{count} {name}"))
    };
    let kinds: Vec<String> = INVALIDATIONS.into_iter().filter_map(kind).collect();
    if kinds.is_empty() { "none".to_owned() } else { kinds.join(", ") }
}

fn faults(counts: &Value) -> String {
    let reasons = counts.get("fault_reasons").and_then(Value::as_object).into_iter().flatten();
    let reason = |(code, count): (&String, &Value)| {
        Some(format!("{} for reason {:#04x}", count.as_u64()?, code.parse::<u16>().ok()?))
    };
    let reasons: Vec<String> = reasons.filter_map(reason).collect();
    if reasons.is_empty() { "none".to_owned() } else { reasons.join(", ") }
}

/// Microseconds, with a digit behind the point.
pub(super) fn micro(nanoseconds: u64) -> String {
    format!("{}.{} us", nanoseconds / 1000, nanoseconds % 1000 / 100)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lines_of_what_was_counted() {
        let times = |p50: u64| json!({"count": 9, "p50_ns": p50, "p99_ns": 2 * p50});
        let stats = json!({
            "endpoints": {"00:01.0": {
                "device_tlb": {"hits": 999, "misses": 1},
                "round_trip": times(61_250), "own_share": times(10_000), "guest_share": times(51_000),
            }},
            "units": {
                "a": {"look_ups": {"hits": 1, "misses": 2}, "iotlb": 4, "iotlb_ranges": 3, "device_tlb": 0,
                    "fault_reasons": {"5": 1, "90": 2}},
                "b": {"look_ups": {"hits": 0, "misses": 0}},
            },
        });
        let expected = [
            "endpoint 00:01.0: 9 waits for a page, from request to retry: p50 61.2 us, p99 122.5 us; \
                svmm's share p50 10.0 us, p99 20.0 us; the guest's p50 51.0 us, p99 102.0 us",
            "endpoint 00:01.0: device-TLB: 99.9% of 1000 look-ups hit",
            "unit a: IOTLBs: 33.3% of 3 look-ups hit",
            "unit a: invalidations: 4 of the IOTLB, 3 of these of a range",
            "unit a: faults: 1 for reason 0x05, 2 for reason 0x5a",
            "unit b: invalidations: none",
            "unit b: faults: none",
        ];
        assert_eq!(figures(&stats), expected);
        assert_eq!(figures(&json!(null)), [""; 0]);
    }
}
