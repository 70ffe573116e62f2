//! Scalable mode: root, context, PASID directory and PASID table.

use super::{
    AddressType, Bits, Failed, Image, Outcome, Registers, Request, first_stage, nested, pass_through,
    second_stage, special_completion,
};

pub(super) fn judge(regs: &Registers, memory: &mut Image, request: &Request) -> Result<Outcome, Failed> {
    let prefix = request.pasid;
    let pss_bits = (regs.ecap >> 35 & 31) + 1;
    let context = context(regs, memory, request.source);
    if prefix.is_some_and(|pasid| u64::from(pasid) >= 1 << pss_bits) {
        // Decided before any table is read; whether it is recorded is up to the context entry, if there is one.
        return Err(Failed(0x89, context.map_or_else(|Failed(_, fpd)| fpd, |c| c.bit(1))));
    }
    let context = context?;
    let fpd = context.bit(1);
    if request.at != AddressType::Untranslated && !context.bit(2) {
        return Err(Failed(0x44, fpd));
    }
    let translated = request.at == AddressType::Translated;
    check_prefix(&context, prefix, translated)?;
    if translated {
        return pass_through(regs, request, None).map_err(|code| Failed(code, fpd));
    }
    if let Some(outcome) = special_completion(regs, request) {
        return Ok(outcome);
    }
    let pasid = prefix.map_or(context.field(83, 64), u64::from);
    let privileged = if prefix.is_some() { request.pr } else { context.bit(84) };

    let Entry { bits: entry, fpd } = pasid_entry(regs, memory, &context, pasid)?;
    let fail = |code| Failed(code, fpd);
    if prefix.is_some() && request.er {
        return Err(fail(0x5c));
    }
    if privileged && !entry.bit(128) {
        return Err(fail(0x5d));
    }
    let domain = u16::try_from(entry.field(79, 64)).unwrap();
    match entry.field(8, 6) {
        0b001 => first_stage::translate(regs, memory, &entry, request, privileged),
        0b010 => second_stage::translate(regs, memory, &second_stage::Table::of(&entry), request),
        0b011 => nested::translate(regs, memory, &entry, request, privileged),
        0b100 => pass_through(regs, request, Some(domain)),
        _ => unreachable!("checked with the entry"),
    }
    .map_err(fail)
}

/// Whether the context entry serves this PASID.
fn check_prefix(context: &Bits, prefix: Option<u32>, translated: bool) -> Result<(), Failed> {
    let fpd = context.bit(1);
    let Some(pasid) = prefix.map(u64::from) else { return Ok(()) };
    if !context.bit(3) && !translated {
        return Err(Failed(0x45, fpd));
    }
    if pasid >= 1 << (context.field(11, 9) + 13) {
        return Err(Failed(0x46, fpd));
    }
    if pasid == context.field(83, 64) {
        return Err(Failed(0x48, fpd));
    }
    if translated && !context.bit(6) {
        return Err(Failed(0x49, fpd));
    }
    Ok(())
}

fn context(regs: &Registers, memory: &Image, source: u16) -> Result<Bits, Failed> {
    let (bus, devfn) = (u64::from(source >> 8), source & 0xff);
    let root = (regs.rtaddr >> 12 << 12) + 16 * bus;
    let root = memory.structure(root + if devfn < 0x80 { 0 } else { 8 }, 1).ok_or(Failed(0x38, false))?;
    if !root.bit(0) {
        return Err(Failed(0x39, false));
    }
    if root.any(11, 1) || root.any(63, regs.haw) {
        return Err(Failed(0x3a, false));
    }
    let at = (root.field(63, 12) << 12) + u64::from(devfn & 0x7f) * 32;
    let context = memory.structure(at, 4).ok_or(Failed(0x40, false))?;
    let fpd = context.bit(1);
    if !context.bit(0) {
        return Err(Failed(0x41, fpd));
    }
    let reserved = [
        context.bit(2) && !regs.ecap(2),
        context.bit(3) && !regs.ecap(40),
        context.bit(4) && !regs.ecap(29),
        context.bit(5),
        context.bit(6) && !regs.ecap(56),
        context.any(8, 7),
        context.any(63, regs.haw),
        context.any(83, 64) && !regs.ecap(49),
        context.bit(84) && !regs.ecap(53),
        context.any(255, 85),
    ];
    if reserved.contains(&true) {
        return Err(Failed(0x42, fpd));
    }
    let contradicts = context.bit(4) && !context.bit(2) || context.bit(6) && !context.bit(3);
    if contradicts || context.field(83, 64) >= 1 << (context.field(11, 9) + 13) {
        return Err(Failed(0x43, fpd));
    }
    Ok(context)
}

struct Entry {
    bits: Bits,
    fpd: bool,
}

fn pasid_entry(regs: &Registers, memory: &Image, context: &Bits, pasid: u64) -> Result<Entry, Failed> {
    let mut fpd = context.bit(1);
    let at = (context.field(63, 12) << 12) + (pasid >> 6) * 8;
    let directory = memory.structure(at, 1).ok_or(Failed(0x50, fpd))?;
    fpd |= directory.bit(1);
    if !directory.bit(0) {
        return Err(Failed(0x51, fpd));
    }
    if directory.any(11, 2) || directory.any(63, regs.haw) {
        return Err(Failed(0x52, fpd));
    }
    let at = (directory.field(63, 12) << 12) + (pasid & 0x3f) * 64;
    let bits = memory.structure(at, 8).ok_or(Failed(0x58, fpd))?;
    fpd |= bits.bit(1);
    if !bits.bit(0) {
        return Err(Failed(0x59, fpd));
    }
    let (first, second) = (regs.ecap(47), regs.ecap(46));
    let did_bits = regs.domain_bits();
    let reserved = [
        bits.bit(5),
        bits.bit(9) && !(second && regs.ecap(45)),
        bits.any(11, 10),
        bits.any(63, 12) && !second,
        bits.any(63, regs.haw),
        did_bits < 16 && bits.any(79, 64 + did_bits),
        bits.any(86, 80),
        bits.bit(87) && !regs.ecap(48),
        bits.bit(88) && !regs.ecap(7),
        bits.any(127, 89),
        bits.bit(128) && !regs.ecap(31),
        bits.bit(129),
        bits.any(132, 130) && !first,
        bits.bit(135) && !regs.ecap(34),
        bits.any(139, 136),
        bits.any(191, 140) && !first,
        bits.any(191, 128 + regs.haw),
        bits.any(511, 192),
    ];
    if reserved.contains(&true) {
        return Err(Failed(0x5a, fpd));
    }
    let levels_supported = match bits.field(131, 130) {
        0 => true,
        1 => regs.cap(60),
        _ => false,
    };
    let width = regs.second_width(bits.field(4, 2));
    let root_inside = width.is_some_and(|width| bits.field(191, 140) << 12 < 1 << width);
    let supported = match bits.field(8, 6) {
        0b001 => first && levels_supported,
        0b010 => second && width.is_some(),
        0b011 => regs.ecap(26) && first && second && levels_supported && root_inside,
        0b100 => regs.ecap(6),
        _ => false,
    };
    if supported { Ok(Entry { bits, fpd }) } else { Err(Failed(0x5b, fpd)) }
}

/// What a page request is judged by: domain, PASID and translation type of the entry.
pub(crate) type Judged = (u16, u64, u64);

/// A page request: whose translations of the page are dropped before it is queued, or the fault code and whether it
/// is recorded. Translation is enabled.
pub(crate) fn page_request(
    regs: &Registers,
    memory: &Image,
    source: u16,
    prefix: Option<u32>,
) -> Result<Judged, (u8, bool)> {
    let checks = || {
        match regs.rtaddr >> 10 & 3 {
            0b00 => return Err(Failed(0x32, false)),
            0b01 if regs.ecap(43) => {}
            0b11 if regs.ecap(52) => return Err(Failed(0x33, false)),
            _ => return Err(Failed(0x30, false)),
        }
        let context = context(regs, memory, source)?;
        let fpd = context.bit(1);
        check_prefix(&context, prefix, false)?;
        if !context.bit(4) {
            return Err(Failed(0x47, fpd));
        }
        let pasid = prefix.map_or(context.field(83, 64), u64::from);
        let entry = pasid_entry(regs, memory, &context, pasid)?;
        Ok((u16::try_from(entry.bits.field(79, 64)).unwrap(), pasid, entry.bits.field(8, 6)))
    };
    checks().map_err(|Failed(code, fpd)| {
        let qualified = !matches!(code, 0x30 | 0x32 | 0x33 | 0x38..=0x3a | 0x40 | 0x50 | 0x58);
        (code, !(qualified && fpd))
    })
}
