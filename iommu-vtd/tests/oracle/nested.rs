//! The naive nested walk.

use super::second_stage::Table;
use super::{Bits, Image, Outcome, Page, Registers, Request, deliver, first_stage, permitted, wants_write};

pub(super) fn translate(
    regs: &Registers,
    memory: &mut Image,
    entry: &Bits,
    request: &Request,
    privileged: bool,
) -> Result<Outcome, u8> {
    let table = Table::of(entry);
    let inner = first_stage::walk(regs, memory, entry, Some(&table), request.address)?;
    let writable = inner.writable(entry, privileged)?;
    permitted(regs, request, (true, writable))?;
    let middle = inner.page.start + request.address % (1 << inner.page.bits);
    let outer = table.walk(regs, memory, middle)?;
    let (read, write) = outer.allows()?;
    let write = write && writable;
    if permitted(regs, request, (read, write))?.is_none() {
        return Ok(Outcome::Empty);
    }
    let dirty = wants_write(regs, request) && write;
    inner.mark(memory, entry, dirty)?;
    // The first stage's marks may lie in the very entries that were read.
    let outer = table.walk(regs, memory, middle)?;
    table.mark(memory, &outer, dirty)?;
    let rights = (read, write && inner.is_dirty(memory) && table.is_dirty(memory, &outer));
    let bits = inner.page.bits.min(outer.page.bits);
    let start = outer.output(middle) >> bits << bits;
    deliver(regs, request, Page { start, bits }, rights, table.domain)
}
