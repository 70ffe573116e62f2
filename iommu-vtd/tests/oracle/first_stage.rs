//! The naive first-stage walk.

use super::{
    AddressType, Bits, Image, Outcome, Registers, Request, interrupt_range, touches_interrupts, wants_write,
};

/// The entries that lead to the page, from the root down, with their addresses.
struct Walked {
    used: Vec<(u64, Bits)>,
    page_bits: u32,
}

fn walk(regs: &Registers, memory: &Image, entry: &Bits, address: u64) -> Result<Walked, u8> {
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
        let entry = memory.structure(at, 1).ok_or(if level == levels { 0x73 } else { 0x70 })?;
        if !entry.bit(0) {
            return Err(0x71);
        }
        let large = entry.bit(7) && level > 1;
        let reserved = [
            regs.haw < 52 && entry.any(51, regs.haw),
            level >= 4 && large,
            level == 3 && large && !regs.cap(56),
            level == 3 && large && entry.any(29, 13),
            level == 2 && large && entry.any(20, 13),
        ];
        if reserved.contains(&true) {
            return Err(0x72);
        }
        table = entry.field(51, 12) << 12;
        used.push((at, entry));
        if large || level == 1 {
            return Ok(Walked { used, page_bits });
        }
    }
    unreachable!("level 1 ends every walk")
}

/// Sets accessed, extended accessed and dirty bits.
fn mark(regs: &Registers, memory: &mut Image, entry: &Bits, walked: &Walked, dirty: bool) -> Result<(), u8> {
    let mut updates = Vec::new();
    for (index, (at, used)) in walked.used.iter().enumerate() {
        let is_leaf = index + 1 == walked.used.len();
        let mut word = used.0[0] | 1 << 5;
        if entry.bit(135) {
            word |= 1 << 10;
        }
        if is_leaf && dirty {
            word |= 1 << 6;
        }
        if word != used.0[0] {
            updates.push((*at, word));
        }
    }
    let coherent = regs.ecap(48) && entry.bit(87);
    if !coherent && !updates.is_empty() {
        return Err(0x90);
    }
    for (at, word) in updates {
        memory.set(at, word);
    }
    Ok(())
}

pub(super) fn translate(
    regs: &Registers,
    memory: &mut Image,
    entry: &Bits,
    request: &Request,
    privileged: bool,
) -> Result<Outcome, u8> {
    let address = request.address;
    let walked = walk(regs, memory, entry, address)?;
    if !privileged && walked.used.iter().any(|(_, entry)| !entry.bit(2)) {
        return Err(0x81);
    }
    let writable = walked.used.iter().all(|(_, entry)| entry.bit(1)) || privileged && !entry.bit(132);
    let wants = wants_write(regs, request);
    let asks = matches!(request.at, AddressType::Translation { .. });
    if wants && !writable && !asks {
        return Err(0x85);
    }
    mark(regs, memory, entry, &walked, wants && writable)?;
    let (leaf_at, leaf) = walked.used.last().unwrap();
    let page_bits = walked.page_bits;
    let page = leaf.field(51, page_bits) << page_bits;
    let output = page + (address & ((1 << page_bits) - 1));
    if interrupt_range(output) || asks && touches_interrupts(page, page_bits) {
        return Err(0x87);
    }
    let mut bits = page_bits;
    while touches_interrupts(output, bits) || request.pasid.is_none() && touches_interrupts(address, bits) {
        bits -= 1;
    }
    let dirty = memory.word(*leaf_at).unwrap() >> 6 & 1 == 1;
    let write = writable && if asks { wants } else { dirty };
    let domain = u16::try_from(entry.field(79, 64)).unwrap();
    Ok(Outcome::Page { output, bits, read: true, write, domain: Some(domain) })
}
