//! The naive first-stage walk, alone or over a second stage.

use super::second_stage::Table;
use super::{Bits, Image, Outcome, Page, Registers, Request, deliver, permitted, wants_write};

/// An entry that was used.
struct Used {
    /// Where it lies in memory.
    at: u64,
    bits: Bits,
    /// A second stage lets it be written.
    writable: bool,
}

/// The entries that lead to the page, from the root down.
pub(super) struct Walked {
    used: Vec<Used>,
    pub(super) page: Page,
}

/// Where a table entry at `address` lies, and whether it may be written.
fn place(
    regs: &Registers,
    memory: &mut Image,
    under: Option<&Table>,
    address: u64,
    is_root: bool,
) -> Result<(u64, bool), u8> {
    let Some(table) = under else { return Ok((address, true)) };
    let walked = table.walk(regs, memory, address)?;
    let (read, write) = walked.allows()?;
    if !read || table.tracks && !write {
        return Err(if is_root { 0x75 } else { 0x76 });
    }
    table.mark(memory, &walked, table.tracks)?;
    Ok((walked.output(address), write))
}

/// Walks, in `under` if that is given.
pub(super) fn walk(
    regs: &Registers,
    memory: &mut Image,
    entry: &Bits,
    under: Option<&Table>,
    address: u64,
) -> Result<Walked, u8> {
    let levels = if entry.field(131, 130) == 1 { 5 } else { 4 };
    let sign = 12 + 9 * levels - 1;
    let upper: Vec<bool> = (sign..64).map(|position| address >> position & 1 == 1).collect();
    if upper.contains(&true) && upper.contains(&false) {
        return Err(0x80);
    }
    let mut used = Vec::new();
    let mut table = entry.field(191, 140) << 12;
    for level in (1..=levels).rev() {
        let page_bits = 12 + 9 * (level - 1);
        let at = table + (address >> page_bits & 0x1ff) * 8;
        let (at, writable) = place(regs, memory, under, at, level == levels)?;
        let bits = memory.structure(at, 1).ok_or(if level == levels { 0x73 } else { 0x70 })?;
        if !bits.bit(0) {
            return Err(0x71);
        }
        let large = bits.bit(7) && level > 1;
        let reserved = [
            regs.haw < 52 && bits.any(51, regs.haw),
            level >= 4 && large,
            level == 3 && large && !regs.cap(56),
            level == 3 && large && bits.any(29, 13),
            level == 2 && large && bits.any(20, 13),
        ];
        if reserved.contains(&true) {
            return Err(0x72);
        }
        table = bits.field(51, 12) << 12;
        if under.is_some_and(|under| table >> under.width(regs) != 0) {
            return Err(0x74);
        }
        let start = bits.field(51, page_bits) << page_bits;
        used.push(Used { at, bits, writable });
        if large || level == 1 {
            return Ok(Walked { used, page: Page { start, bits: page_bits } });
        }
    }
    unreachable!("level 1 ends every walk")
}

impl Walked {
    /// Whether the request may write, unless it may not be here at all.
    pub(super) fn writable(&self, entry: &Bits, privileged: bool) -> Result<bool, u8> {
        if !privileged && self.used.iter().any(|used| !used.bits.bit(2)) {
            return Err(0x81);
        }
        Ok(self.used.iter().all(|used| used.bits.bit(1)) || privileged && !entry.bit(132))
    }

    /// Sets accessed, extended accessed and dirty bits.
    pub(super) fn mark(&self, memory: &mut Image, entry: &Bits, dirty: bool) -> Result<(), u8> {
        let mut updates = Vec::new();
        for (index, used) in self.used.iter().enumerate() {
            let is_leaf = index + 1 == self.used.len();
            let mut marks = 1 << 5;
            if entry.bit(135) {
                marks |= 1 << 10;
            }
            if is_leaf && dirty {
                marks |= 1 << 6;
            }
            if used.bits.0[0] & marks != marks {
                updates.push((used, marks));
            }
        }
        if !updates.is_empty() && !entry.bit(87) {
            return Err(0x90);
        }
        if updates.iter().any(|(used, _)| !used.writable) {
            return Err(0x77);
        }
        for (used, marks) in updates {
            memory.mark(used.at, marks);
        }
        Ok(())
    }

    /// Whether the page is dirty by now.
    pub(super) fn is_dirty(&self, memory: &Image) -> bool {
        memory.word(self.used.last().unwrap().at).unwrap() >> 6 & 1 == 1
    }
}

pub(super) fn translate(
    regs: &Registers,
    memory: &mut Image,
    entry: &Bits,
    request: &Request,
    privileged: bool,
) -> Result<Outcome, u8> {
    let walked = walk(regs, memory, entry, None, request.address)?;
    let writable = walked.writable(entry, privileged)?;
    permitted(regs, request, (true, writable))?.expect("reads are allowed");
    walked.mark(memory, entry, wants_write(regs, request) && writable)?;
    let rights = (true, writable && walked.is_dirty(memory));
    deliver(regs, request, walked.page, rights, entry.field(79, 64))
}
