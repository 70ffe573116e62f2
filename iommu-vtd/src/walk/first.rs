//! The first-stage walk (revision 5.10, §3.6): four or five levels of x86-64 tables.

use iommu_core::Gpa;

use super::{Intent, Leaf, WriteIntent};
use crate::memory::{Reader, TableMemory};
use crate::rules::Rules;
use crate::spec::fault::Reason;
use crate::spec::paging::{FirstStageEntry, LEVELS};

/// How often a walk starts over because an entry changed under it. A guest that keeps changing entries only
/// makes its own access fail.
const ATTEMPTS: u32 = 16;

const WRITE: u64 = FirstStageEntry::write_mask();
const USER: u64 = FirstStageEntry::user_mask();
const ACCESSED: u64 = FirstStageEntry::accessed_mask();
const DIRTY: u64 = FirstStageEntry::dirty_mask();
const EXTENDED_ACCESSED: u64 = FirstStageEntry::extended_accessed_mask();

/// A first-stage table as a PASID entry describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FirstStageTable {
    pub(crate) root: Gpa,
    /// 4 or 5.
    pub(crate) levels: u32,
    /// Supervisor writes need R/W (WPE).
    pub(crate) write_protect: bool,
    /// The extended-accessed bit is maintained (EAFE).
    pub(crate) extended_accessed: bool,
    /// The walk is coherent (PWSNP); without that no entry may be updated.
    pub(crate) snooped: bool,
}

impl FirstStageTable {
    /// Width of input addresses in bits.
    #[inline]
    pub(crate) const fn input_bits(&self) -> u32 {
        FirstStageEntry::page_bits(self.levels + 1)
    }

    /// Whether the address bits above the width repeat the topmost one within.
    #[inline]
    const fn is_canonical(&self, address: u64) -> bool {
        let unused = 64 - self.input_bits();
        (address << unused).cast_signed() >> unused == address.cast_signed()
    }
}

/// The entries that a walk used, with their addresses. Index: level; those below the leaf mean nothing.
type Path = [(Gpa, u64); LEVELS + 1];

/// Where a walk came to.
#[derive(Clone, Copy)]
struct Reached {
    /// The leaf entry.
    leaf: u64,
    /// Its level.
    level: u32,
    /// AND of all entries: what each of them allows, and what is set in each of them.
    all: u64,
}

/// Translates `address`. Leaves accessed, extended-accessed and dirty bits set as the request needs them.
#[inline(always)]
pub(crate) fn walk<M: TableMemory>(
    memory: &Reader<'_, M>,
    rules: &Rules,
    table: &FirstStageTable,
    address: u64,
    intent: Intent,
) -> Result<Leaf, Reason> {
    if !table.is_canonical(address) {
        return Err(Reason::Sgn1);
    }
    let used = ACCESSED | if table.extended_accessed { EXTENDED_ACCESSED } else { 0 };
    let mut path = [(Gpa(0), 0); LEVELS + 1];
    for _ in 0..ATTEMPTS {
        let reached = descend(memory, rules, table, address, &mut path)?;
        let writable = judge(table, &reached, intent)?;
        let dirty = if writable && intent.write != WriteIntent::No { DIRTY } else { 0 };
        let marked = reached.all & used == used && reached.leaf & dirty == dirty;
        if marked
            || update(memory, table, &path[reached.level as usize..=table.levels as usize], used, dirty)?
        {
            return Ok(leaf(&reached, address, writable && (reached.leaf | dirty) & DIRTY != 0));
        }
    }
    Err(Reason::Sfs10)
}

/// Reads entries down to the leaf.
#[inline(always)]
fn descend<M: TableMemory>(
    memory: &Reader<'_, M>,
    rules: &Rules,
    table: &FirstStageTable,
    address: u64,
    path: &mut Path,
) -> Result<Reached, Reason> {
    let mut next = table.root;
    let mut level = table.levels;
    let mut all = u64::MAX;
    loop {
        let gpa = FirstStageEntry::locate(next, address, level);
        let Some(raw) = memory.load(gpa) else {
            return Err(if level == table.levels { Reason::Sfs4 } else { Reason::Sfs1 });
        };
        let entry = FirstStageEntry::new_with_raw_value(raw);
        if !entry.present() {
            return Err(Reason::Sfs2);
        }
        let index = level as usize;
        if raw & rules.paging[index][usize::from(entry.page_size())] != 0 {
            return Err(Reason::Sfs3);
        }
        path[index] = (gpa, raw);
        all &= raw;
        if entry.page_size() || level == 1 {
            return Ok(Reached { leaf: raw, level, all });
        }
        next = Gpa(raw & FirstStageEntry::address_mask());
        level -= 1;
    }
}

/// Whether writes are allowed, or why not even this request is.
#[inline]
fn judge(table: &FirstStageTable, reached: &Reached, intent: Intent) -> Result<bool, Reason> {
    if !intent.privileged && reached.all & USER == 0 {
        return Err(Reason::Sgn2);
    }
    let writable = reached.all & WRITE != 0 || intent.privileged && !table.write_protect;
    if intent.write == WriteIntent::Needed && !writable { Err(Reason::Sgn6) } else { Ok(writable) }
}

/// Sets `used` in every entry of `path`, which starts with the leaf, and `dirty` in the leaf; from the root
/// down. `false`: an entry has changed since it was read, and nothing that was read still holds.
#[cold]
fn update<M: TableMemory>(
    memory: &Reader<'_, M>,
    table: &FirstStageTable,
    path: &[(Gpa, u64)],
    used: u64,
    dirty: u64,
) -> Result<bool, Reason> {
    if !table.snooped {
        return Err(Reason::Sfs9);
    }
    for (index, &(gpa, old)) in path.iter().enumerate().rev() {
        let new = old | used | if index == 0 { dirty } else { 0 };
        if new != old {
            match memory.compare_exchange(gpa, old, new) {
                Some(Ok(_)) => {}
                Some(Err(_)) => return Ok(false),
                None => return Err(Reason::Sfs10),
            }
        }
    }
    Ok(true)
}

#[inline]
fn leaf(reached: &Reached, address: u64, write: bool) -> Leaf {
    let page_bits = FirstStageEntry::page_bits(reached.level);
    let low = (1 << page_bits) - 1;
    let output = reached.leaf & FirstStageEntry::address_mask() & !low | address & low;
    Leaf { output, page_bits, write }
}
