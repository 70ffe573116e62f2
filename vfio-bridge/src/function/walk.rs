//! The two lists of capabilities of a configuration space (PCIe §7.5.1.1.11, §7.6.3), as they are found. **Pure.**

use devices::pci::spec::{EXTENDED_START, ExtendedHeader, header};

/// The bytes of a configuration space.
pub(super) struct Bytes<'a>(pub(super) &'a [u8]);

impl Bytes<'_> {
    /// Bytes beyond the end are 0.
    pub(super) fn u8(&self, at: u16) -> u8 {
        self.0.get(usize::from(at)).copied().unwrap_or(0)
    }

    pub(super) fn u16(&self, at: u16) -> u16 {
        u16::from_le_bytes([self.u8(at), self.u8(at.saturating_add(1))])
    }

    pub(super) fn u32(&self, at: u16) -> u32 {
        u32::from(self.u16(at)) | u32::from(self.u16(at.saturating_add(2))) << 16
    }
}

/// A capability below 0x100.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) id: u8,
    /// 0x40 to 0xfc.
    pub(super) at: u16,
}

/// All capabilities below 0x100, in the order of the list, each place once.
pub(super) fn conventional(bytes: &Bytes<'_>) -> Vec<Found> {
    let mut all: Vec<Found> = Vec::new();
    if bytes.u16(header::STATUS) & header::STATUS_CAPABILITIES == 0 {
        return all;
    }
    let mut next = bytes.u8(header::CAPABILITIES);
    loop {
        let at = u16::from(next & !3);
        if at < header::END || all.iter().any(|found| found.at == at) {
            return all;
        }
        all.push(Found { id: bytes.u8(at), at });
        next = bytes.u8(at + 1);
    }
}

/// An extended capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FoundExtended {
    pub(super) id: u16,
    pub(super) version: u8,
    /// 0x100 to 0xffc.
    pub(super) at: u16,
}

/// All extended capabilities in the order of the list, each place once. VFIO leaves an id of 0 where it hides the first.
pub(super) fn extended(bytes: &Bytes<'_>) -> Vec<FoundExtended> {
    let mut all: Vec<FoundExtended> = Vec::new();
    let mut at = EXTENDED_START;
    loop {
        let raw = bytes.u32(at);
        if at < EXTENDED_START || raw == 0 || raw == u32::MAX || all.iter().any(|found| found.at == at) {
            return all;
        }
        let head = ExtendedHeader::new_with_raw_value(raw);
        all.push(FoundExtended { id: head.id(), version: head.version().value(), at });
        at = head.next_dword().value() * 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(words: &[(usize, u32)]) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        for (at, word) in words {
            bytes[*at..*at + 4].copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// (name, words, (id, offset) pairs)
    #[test]
    fn conventional_lists_end() {
        const LIST: (usize, u32) = (4, 0x10_0000);
        type Row = (&'static str, Vec<(usize, u32)>, Vec<(u8, u16)>);
        let rows: [Row; 6] = [
            ("no list", vec![(0x34, 0x40), (0x40, 0x10)], vec![]),
            ("empty", vec![LIST], vec![]),
            ("two", vec![LIST, (0x34, 0x43), (0x40, 0x8005), (0x80, 0x0010)], vec![(5, 0x40), (0x10, 0x80)]),
            ("a loop", vec![LIST, (0x34, 0x40), (0x40, 0x4005)], vec![(5, 0x40)]),
            ("into the header", vec![LIST, (0x34, 0x40), (0x40, 0x3c05)], vec![(5, 0x40)]),
            ("at the end", vec![LIST, (0x34, 0xfc), (0xfc, 0x0009)], vec![(9, 0xfc)]),
        ];
        for (name, words, expected) in rows {
            let found: Vec<_> = conventional(&Bytes(&space(&words))).iter().map(|f| (f.id, f.at)).collect();
            assert_eq!(found, expected, "{name}");
        }
    }

    #[test]
    fn extended_lists_end() {
        type Row = (&'static str, Vec<(usize, u32)>, Vec<(u16, u16)>);
        let rows: [Row; 5] = [
            ("none", vec![], vec![]),
            ("ones", vec![(0x100, u32::MAX)], vec![]),
            (
                "a hidden one first",
                vec![(0x100, 0x1200_0000), (0x120, 0x1_000f)],
                vec![(0, 0x100), (15, 0x120)],
            ),
            ("a loop", vec![(0x100, 0x1001_0013)], vec![(0x13, 0x100)]),
            ("into the header", vec![(0x100, 0x0401_0013)], vec![(0x13, 0x100)]),
        ];
        for (name, words, expected) in rows {
            let found: Vec<_> = extended(&Bytes(&space(&words))).iter().map(|f| (f.id, f.at)).collect();
            assert_eq!(found, expected, "{name}");
        }
        assert_eq!(extended(&Bytes(&[0xff; 256])), [], "a short space");
    }
}
