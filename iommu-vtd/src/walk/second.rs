//! The second-stage walk (revision 5.10, §3.7): three to five levels.

use iommu_core::{DomainId, Gpa};

use super::{
    ATTEMPTS, Intent, Leaf, NO_PATH, Path, Reached, Start, StructureCache, Unmarked, Used, WriteIntent,
    update,
};
use crate::lookup::Lookup;
use crate::memory::TableMemory;
use crate::spec::fault::Reason;
use crate::spec::paging::{self, SecondStageEntry};

const READ: u64 = SecondStageEntry::read_mask();
const WRITE: u64 = SecondStageEntry::write_mask();
const ACCESSED: u64 = SecondStageEntry::accessed_mask();
const DIRTY: u64 = SecondStageEntry::dirty_mask();
const ADDRESS: u64 = SecondStageEntry::address_mask();

/// A second-stage table as a PASID entry or a legacy context entry describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SecondStageTable {
    pub(crate) root: Gpa,
    /// 3 to 5.
    pub(crate) levels: u32,
    /// Input addresses have at most this many bits: AW's, or fewer if MGAW says so.
    pub(crate) limit_bits: u32,
    /// Accessed and dirty bits are maintained (SSADE).
    pub(crate) accessed_dirty: bool,
    /// The walk is coherent (PWSNP); without that no entry may be updated.
    pub(crate) snooped: bool,
    /// What caches know it by.
    pub(crate) domain: DomainId,
}

impl SecondStageTable {
    /// Width of input addresses in bits as AW has it.
    #[inline]
    pub(crate) const fn input_bits(&self) -> u32 {
        paging::page_bits(self.levels + 1)
    }

    #[inline]
    const fn marks(&self) -> u64 {
        if self.accessed_dirty { ACCESSED } else { 0 }
    }
}

/// A page that a walk has reached and that allows the request; nothing is marked yet.
pub(super) struct Page {
    start: Start,
    reached: Reached,
    read: bool,
    writable: bool,
    dirties: bool,
}

/// Translates `address`. Leaves accessed and dirty bits set as the request needs them.
#[inline(always)]
pub(crate) fn walk<M: TableMemory, C: StructureCache>(
    cx: &Lookup<'_, M, C>,
    table: &SecondStageTable,
    address: u64,
    intent: Intent,
) -> Result<Leaf, Reason> {
    let mut path = NO_PATH;
    for _ in 0..ATTEMPTS {
        let page = find(cx, table, address, intent, &mut path)?;
        if let Some(leaf) = page.take(cx, table, address, &path)? {
            return Ok(leaf);
        }
    }
    Err(Reason::Sss6)
}

/// Finds the page of `address`, and whether it allows what is wanted. `path` is for [`Page::take`].
#[inline(always)]
pub(super) fn find<M: TableMemory, C: StructureCache>(
    cx: &Lookup<'_, M, C>,
    table: &SecondStageTable,
    address: u64,
    intent: Intent,
    path: &mut Path,
) -> Result<Page, Reason> {
    if address >> table.limit_bits != 0 {
        return Err(Reason::Sgn5);
    }
    let root = Start { level: table.levels, table: table.root, all: u64::MAX };
    let start = cx.caches.second(table.domain, address).unwrap_or(root);
    let reached = descend(cx, table, address, start, path)?;
    let (read, writable) = (reached.all & READ != 0, reached.all & WRITE != 0);
    if !read && !writable {
        return Err(Reason::Sss2);
    }
    if intent.write == WriteIntent::Needed && !writable {
        return Err(Reason::Sgn6);
    }
    if intent.read && !read {
        return Err(Reason::Sgn7);
    }
    let dirties = writable && intent.write != WriteIntent::No;
    Ok(Page { start, reached, read, writable, dirties })
}

impl Page {
    /// Sets the bits that the use leaves behind. `None`: an entry changed meanwhile, and the walk starts over.
    #[inline(always)]
    pub(super) fn take<M: TableMemory, C: StructureCache>(
        &self,
        cx: &Lookup<'_, M, C>,
        table: &SecondStageTable,
        address: u64,
        path: &Path,
    ) -> Result<Option<Leaf>, Reason> {
        let Self { start, reached, .. } = self;
        let marks = table.marks();
        let dirty = if table.accessed_dirty && self.dirties { DIRTY } else { 0 };
        let marked = reached.all & marks == marks && reached.leaf & dirty == dirty;
        if !marked
            && !update(&cx.memory, table.snooped, reached.used(path), marks, dirty).map_err(|unmarked| {
                match unmarked {
                    Unmarked::NotSnooped => Reason::Sss5,
                    Unmarked::Forbidden | Unmarked::Failed => Reason::Sss6,
                }
            })?
        {
            return Ok(None);
        }
        for passed in reached.tables(path, *start, ADDRESS) {
            let passed = Start { all: passed.all | marks, ..passed };
            cx.caches.keep_second(table.domain, address, passed);
        }
        let page_bits = paging::page_bits(reached.level);
        let low = (1 << page_bits) - 1;
        let is_dirty = !table.accessed_dirty || (reached.leaf | dirty) & DIRTY != 0;
        Ok(Some(Leaf {
            output: reached.leaf & ADDRESS & !low | address & low,
            page_bits,
            read: self.read,
            write: self.writable && is_dirty,
        }))
    }

    /// Whether writes are allowed.
    #[inline]
    pub(super) const fn writable(&self) -> bool {
        self.writable
    }
}

/// Reads entries down to the leaf.
#[inline(always)]
fn descend<M: TableMemory, C>(
    cx: &Lookup<'_, M, C>,
    table: &SecondStageTable,
    address: u64,
    start: Start,
    path: &mut Path,
) -> Result<Reached, Reason> {
    let Start { mut level, table: mut next, mut all } = start;
    loop {
        let at = paging::locate(next, address, level);
        let root = level == table.levels;
        let raw = cx.memory.load(at).ok_or(if root { Reason::Sss4 } else { Reason::Sss1 })?;
        if raw & (READ | WRITE) == 0 {
            return Err(Reason::Sss2);
        }
        let entry = SecondStageEntry::new_with_raw_value(raw);
        let index = level as usize;
        if raw & cx.rules.second_entries[index][usize::from(entry.page_size())] != 0 {
            return Err(Reason::Sss3);
        }
        path[index] = Used { at, raw, writable: true };
        all &= raw;
        if entry.page_size() || level == 1 {
            return Ok(Reached { top: start.level, level, leaf: raw, all });
        }
        next = Gpa(raw & ADDRESS);
        level -= 1;
    }
}
