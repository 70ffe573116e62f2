//! The naive second-stage walk.

use super::{Bits, Image, Outcome, Page, Registers, Request, deliver, permitted, wants_write};

/// A second-stage table as an entry names it.
pub(super) struct Table {
    pub(super) root: u64,
    pub(super) aw: u64,
    /// SSADE.
    pub(super) tracks: bool,
    /// PWSNP.
    pub(super) snooped: bool,
    pub(super) domain: u64,
}

/// The entries that lead to the page, from the root down, with their addresses.
pub(super) struct Walked {
    used: Vec<(u64, Bits)>,
    pub(super) page: Page,
}

impl Walked {
    /// Read and write permission.
    pub(super) fn allows(&self) -> Result<(bool, bool), u8> {
        let read = self.used.iter().all(|(_, entry)| entry.bit(0));
        let write = self.used.iter().all(|(_, entry)| entry.bit(1));
        if read || write { Ok((read, write)) } else { Err(0x79) }
    }

    pub(super) fn output(&self, address: u64) -> u64 {
        self.page.start + address % (1 << self.page.bits)
    }
}

impl Table {
    /// As a PASID entry has it.
    pub(super) fn of(entry: &Bits) -> Self {
        Self {
            root: entry.field(63, 12) << 12,
            aw: entry.field(4, 2),
            tracks: entry.bit(9),
            snooped: entry.bit(87),
            domain: entry.field(79, 64),
        }
    }

    pub(super) fn width(&self, regs: &Registers) -> u32 {
        regs.second_width(self.aw).expect("checked with the entry")
    }

    pub(super) fn walk(&self, regs: &Registers, memory: &Image, address: u64) -> Result<Walked, u8> {
        if address >= 1 << self.width(regs) {
            return Err(0x84);
        }
        let levels = u32::try_from(self.aw).unwrap() + 2;
        let mut used = Vec::new();
        let mut table = self.root;
        for level in (1..=levels).rev() {
            let page_bits = 12 + 9 * (level - 1);
            let at = table + (address >> page_bits & 0x1ff) * 8;
            let entry = memory.structure(at, 1).ok_or(if level == levels { 0x7b } else { 0x78 })?;
            if !entry.bit(0) && !entry.bit(1) {
                return Err(0x79);
            }
            let large = entry.bit(7) && level > 1;
            let leaf = large || level == 1;
            let reserved = [
                entry.bit(62),
                regs.haw < 52 && entry.any(51, regs.haw),
                entry.bit(11) && !(leaf && regs.ecap(7)),
                large && level > 3,
                large && level == 3 && !regs.cap(35),
                large && level == 2 && !regs.cap(34),
                large && level == 3 && entry.any(29, 12),
                large && level == 2 && entry.any(20, 12),
            ];
            if reserved.contains(&true) {
                return Err(0x7a);
            }
            table = entry.field(51, 12) << 12;
            let start = entry.field(51, page_bits) << page_bits;
            used.push((at, entry));
            if leaf {
                return Ok(Walked { used, page: Page { start, bits: page_bits } });
            }
        }
        unreachable!("level 1 ends every walk")
    }

    /// Sets accessed and dirty bits, if this table has them.
    pub(super) fn mark(&self, memory: &mut Image, walked: &Walked, dirty: bool) -> Result<(), u8> {
        if !self.tracks {
            return Ok(());
        }
        for (index, (at, entry)) in walked.used.iter().enumerate() {
            let is_leaf = index + 1 == walked.used.len();
            let marks = 1 << 8 | if is_leaf && dirty { 1 << 9 } else { 0 };
            if entry.0[0] & marks != marks {
                if !self.snooped {
                    return Err(0x7c);
                }
                memory.mark(*at, marks);
            }
        }
        Ok(())
    }

    /// Whether writes need no further mark.
    pub(super) fn is_dirty(&self, memory: &Image, walked: &Walked) -> bool {
        let (leaf, _) = walked.used.last().unwrap();
        !self.tracks || memory.word(*leaf).unwrap() >> 9 & 1 == 1
    }
}

pub(super) fn translate(
    regs: &Registers,
    memory: &mut Image,
    table: &Table,
    request: &Request,
) -> Result<Outcome, u8> {
    let walked = table.walk(regs, memory, request.address)?;
    let (read, write) = walked.allows()?;
    if permitted(regs, request, (read, write))?.is_none() {
        return Ok(Outcome::Empty);
    }
    table.mark(memory, &walked, wants_write(regs, request) && write)?;
    let rights = (read, write && table.is_dirty(memory, &walked));
    deliver(regs, request, walked.page, rights, table.domain)
}
