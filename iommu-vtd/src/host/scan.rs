//! Which PASIDs of a function have an entry at all (revision 5.10, §9.5, §9.6).

use std::ops::{ControlFlow, Range};

use iommu_core::{Gpa, Pasid, SourceId};

use super::MOST_BINDINGS;
use crate::lookup::{Lookup, NoCaches};
use crate::memory::TableMemory;
use crate::spec::pasid::PASID_ENTRY_WORDS;
use crate::spec::registers::TranslationTableMode;
use crate::tables::context_entry;

/// Most PASID tables that one scan of a function reads; they hold 65,536 entries. The directory of a hostile guest
/// has 16,384 places for them.
pub(super) const MOST_TABLES: usize = 1024;

/// Most entries marked present that one scan comes to. An honest guest's are what is bound already and what fills the
/// room that is left; only malformed ones make more of them.
const MOST_ENTRIES: usize = 2 * MOST_BINDINGS;

const PAGE: usize = 4096;
const WORD: usize = size_of::<u64>();
/// PASIDs of one PASID table.
const PER_TABLE: u32 = 64;
/// PASIDs of one page of the directory.
const PER_PAGE: u32 = 512 * PER_TABLE;

/// Calls `visit` for each PASID of `source` whose entry is marked present, and perhaps malformed, in ascending
/// order. `Break` if there are more than a scan looks at.
///
/// Copies whole pages, which is not atomic: whoever wants an entry reads it.
pub(super) fn present_pasids<M: TableMemory>(
    cx: &Lookup<'_, M, NoCaches>,
    source: SourceId,
    mut visit: impl FnMut(Pasid),
) -> ControlFlow<()> {
    if !cx.root.enabled() || cx.root.mode() != TranslationTableMode::Scalable || !cx.rules.scalable {
        return ControlFlow::Continue(());
    }
    let Ok(context) = context_entry(cx, source) else { return ControlFlow::Continue(()) };
    let limit = context.pasid_limit().min(1 << cx.rules.pasid_bits);
    let mut left = Budget { tables: MOST_TABLES, entries: MOST_ENTRIES };
    let mut directory = [0; PAGE];
    for (first, page) in (0..limit).step_by(PER_PAGE as usize).zip(0_u64..) {
        let at = Gpa(context.directory().0.wrapping_add(page << 12));
        if !cx.memory.read(at, &mut directory) {
            continue;
        }
        for (base, entry) in (first..limit).step_by(PER_TABLE as usize).zip(words(&directory)) {
            if entry & 1 != 0 {
                present_in_table(cx, Gpa(entry & !0xfff), base..limit, &mut left, &mut visit)?;
            }
        }
    }
    ControlFlow::Continue(())
}

/// What a scan may still come to.
struct Budget {
    tables: usize,
    entries: usize,
}

/// The same for one PASID table, whose first entry is that of the first of `pasids`.
fn present_in_table<M: TableMemory>(
    cx: &Lookup<'_, M, NoCaches>,
    table: Gpa,
    pasids: Range<u32>,
    left: &mut Budget,
    visit: &mut impl FnMut(Pasid),
) -> ControlFlow<()> {
    spend(&mut left.tables)?;
    let mut page = [0; PAGE];
    if cx.memory.read(table, &mut page) {
        let entries = pasids.zip(words(&page).step_by(PASID_ENTRY_WORDS));
        for (pasid, _) in entries.filter(|(_, word)| word & 1 != 0) {
            spend(&mut left.entries)?;
            visit(Pasid::truncate(pasid));
        }
    }
    ControlFlow::Continue(())
}

/// `Break` if there is nothing left.
fn spend(left: &mut usize) -> ControlFlow<()> {
    match left.checked_sub(1) {
        Some(less) => *left = less,
        None => return ControlFlow::Break(()),
    }
    ControlFlow::Continue(())
}

fn words(page: &[u8; PAGE]) -> impl Iterator<Item = u64> {
    page.as_chunks::<WORD>().0.iter().map(|bytes| u64::from_le_bytes(*bytes))
}
