//! Legacy mode.

use super::second_stage::{self, Table};
use super::{
    Access, AddressType, Bits, Failed, Image, Outcome, Registers, Request, pass_through, special_completion,
};

pub(super) fn judge(regs: &Registers, memory: &mut Image, request: &Request) -> Result<Outcome, Failed> {
    let context = context(regs, memory, request.source)?;
    let fail = |code| Failed(in_legacy_words(code, request), context.bit(1));
    let kind = context.field(3, 2);
    if request.at != AddressType::Untranslated && kind != 0b01 {
        return Err(Failed(0x0d, context.bit(1)));
    }
    if let Some(outcome) = special_completion(regs, request) {
        return Ok(outcome);
    }
    let domain = context.field(87, 72);
    if request.at == AddressType::Translated {
        return pass_through(regs, request, None).map_err(fail);
    }
    if kind == 0b10 {
        return pass_through(regs, request, Some(u16::try_from(domain).unwrap())).map_err(fail);
    }
    let root = context.field(63, 12) << 12;
    let table = Table { root, aw: context.field(66, 64), tracks: false, snooped: false, domain };
    second_stage::translate(regs, memory, &table, request).map_err(fail)
}

/// Legacy mode has codes of its own for what scalable mode calls otherwise.
fn in_legacy_words(code: u8, request: &Request) -> u8 {
    let writes = matches!(request.access, Access::Write | Access::Atomic);
    match code {
        0x7b => 0x03,
        0x83 | 0x84 => 0x04,
        0x79 if writes => 0x05,
        0x79 => 0x06,
        0x85 => 0x05,
        0x86 => 0x06,
        0x78 => 0x07,
        0x7a => 0x0c,
        0x87 => 0x0e,
        _ => panic!("{code:#x} cannot happen in legacy mode"),
    }
}

fn context(regs: &Registers, memory: &Image, source: u16) -> Result<Bits, Failed> {
    let at = (regs.rtaddr >> 12 << 12) + 16 * u64::from(source >> 8);
    let root = memory.structure(at, 2).ok_or(Failed(0x08, false))?;
    if !root.bit(0) {
        return Err(Failed(0x01, false));
    }
    if root.any(11, 1) || root.any(63, regs.haw) || root.any(127, 64) {
        return Err(Failed(0x0a, false));
    }
    let at = (root.field(63, 12) << 12) + u64::from(source & 0xff) * 16;
    let context = memory.structure(at, 2).ok_or(Failed(0x09, false))?;
    let fpd = context.bit(1);
    if !context.bit(0) {
        return Err(Failed(0x02, fpd));
    }
    let kind = context.field(3, 2);
    let did_bits = regs.domain_bits();
    let reserved = [
        context.any(11, 4),
        context.any(63, regs.haw) && kind != 0b10,
        context.bit(71),
        did_bits < 16 && context.any(87, 72 + did_bits),
        context.any(127, 88),
    ];
    if reserved.contains(&true) {
        return Err(Failed(0x0b, fpd));
    }
    let offered = match kind {
        0b00 => true,
        0b01 => regs.ecap(2),
        0b10 => regs.ecap(6),
        _ => false,
    };
    if offered && regs.second_width(context.field(66, 64)).is_some() {
        Ok(context)
    } else {
        Err(Failed(0x03, fpd))
    }
}
