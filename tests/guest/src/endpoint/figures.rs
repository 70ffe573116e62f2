//! What the endpoint has measured since its last function-level reset.

use super::regs::global;
use crate::registers::Registers;

/// One line each: how long page requests took, and what the device-TLB served.
pub fn figures(registers: &dyn Registers) -> Vec<String> {
    let waits = [
        (global::ANSWERED, "page request groups, from request to response"),
        (global::SERVED, "waits for a page, from miss to retry"),
    ];
    let mut lines = Vec::new();
    for (at, what) in waits {
        let [count, p50, p99] = [0, 8, 16].map(|offset| registers.read64(at + offset));
        if count > 0 {
            lines.push(format!("{count} {what}: p50 {} us, p99 {} us", p50 / 1000, p99 / 1000));
        }
    }
    let hits = registers.read64(global::TRANSLATION_HITS);
    let all = hits.saturating_add(registers.read64(global::TRANSLATION_REQUESTS));
    if all > 0 {
        let permille = u128::from(hits) * 1000 / u128::from(all);
        lines.push(format!("device-TLB: {}.{}% of {all} look-ups hit", permille / 10, permille % 10));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(&'static [(usize, u64)]);

    impl Registers for Fixed {
        fn read32(&self, _: usize) -> u32 {
            0
        }

        fn read64(&self, offset: usize) -> u64 {
            self.0.iter().find(|(at, _)| *at == offset).map_or(0, |(_, value)| *value)
        }

        fn write32(&self, _: usize, _: u32) {}

        fn write64(&self, _: usize, _: u64) {}
    }

    #[test]
    fn lines_of_what_was_measured() {
        let fixed = Fixed(&[(0x100, 3), (0x108, 61_250), (0x110, 99_000), (0x98, 999), (0x48, 1)]);
        let expected = [
            "3 page request groups, from request to response: p50 61 us, p99 99 us",
            "device-TLB: 99.9% of 1000 look-ups hit",
        ];
        assert_eq!(figures(&fixed), expected);
        assert_eq!(figures(&Fixed(&[])), [""; 0]);
    }
}
