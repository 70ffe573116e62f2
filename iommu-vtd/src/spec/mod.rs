//! The manual's tables as types: positions, names and constants, nothing else.

pub mod context;
pub mod fault;
pub mod interrupt;
pub mod invalidation;
pub mod page_request;
pub mod paging;
pub mod pasid;
pub mod registers;
pub mod root;

/// Bits hi:lo, inclusive.
pub(crate) const fn bits(high: u32, low: u32) -> u64 {
    (u64::MAX >> (63 - high)) & (u64::MAX << low)
}

/// Address bits from `bits` on, none from 64 on.
const fn above(bits: u32) -> u64 {
    match u64::MAX.checked_shl(bits) {
        Some(mask) => mask,
        None => 0,
    }
}

/// The reserved bits of a word: those of no field that is offered, and address bits that do not exist.
const fn reserved_word(fields: &[(u64, bool)], address_bits: u32) -> u64 {
    let mut defined = 0;
    let mut index = 0;
    while index < fields.len() {
        let (mask, offered) = fields[index];
        if offered {
            defined |= mask;
        }
        index += 1;
    }
    !defined | above(address_bits)
}

/// The domain-id bits that exist (CAP.ND); a field of 16 bits holds them.
fn domain_mask(cap: registers::Cap) -> u16 {
    let bits = (4 + 2 * u32::from(cap.nd().value())).min(16);
    u16::MAX >> (16 - bits)
}
