//! The first-stage walk (revision 5.10, §3.6): four or five levels of x86-64 tables.

use iommu_core::{Gpa, Tag};

use super::{
    ATTEMPTS, Intent, Leaf, NO_PATH, Path, Reached, Start, StructureCache, Unmarked, Used, WriteIntent,
    update,
};
use crate::lookup::Lookup;
use crate::memory::{Reader, TableMemory};
use crate::spec::fault::Reason;
use crate::spec::paging::{self, FirstStageEntry};

const WRITE: u64 = FirstStageEntry::write_mask();
const USER: u64 = FirstStageEntry::user_mask();
const ACCESSED: u64 = FirstStageEntry::accessed_mask();
const DIRTY: u64 = FirstStageEntry::dirty_mask();
const EXTENDED_ACCESSED: u64 = FirstStageEntry::extended_accessed_mask();
const ADDRESS: u64 = FirstStageEntry::address_mask();

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
    /// What caches know it by.
    pub(crate) tag: Tag,
}

impl FirstStageTable {
    /// Width of input addresses in bits.
    #[inline]
    pub(crate) const fn input_bits(&self) -> u32 {
        paging::page_bits(self.levels + 1)
    }

    /// Whether the address bits above the width repeat the topmost one within.
    #[inline]
    pub(super) const fn is_canonical(&self, address: u64) -> bool {
        let unused = 64 - self.input_bits();
        (address << unused).cast_signed() >> unused == address.cast_signed()
    }

    /// What is set in every entry that is used.
    #[inline]
    pub(super) const fn marks(&self) -> u64 {
        ACCESSED | if self.extended_accessed { EXTENDED_ACCESSED } else { 0 }
    }

    /// Where a walk to `address` starts.
    #[inline]
    pub(super) fn start<C: StructureCache>(&self, caches: &C, address: u64) -> Start {
        caches.first(&self.tag, address).unwrap_or(Start {
            level: self.levels,
            table: self.root,
            all: u64::MAX,
        })
    }
}

/// What a first-stage table stands on: how the addresses in its entries lead to memory.
pub(super) trait Ground {
    /// Address bits that must be 0 in an entry (SFS.5).
    fn beyond(&self) -> u64;

    /// Where in memory the entry at `address` lies, and whether it may be updated. `root`: it is one of the root
    /// table.
    fn place(&self, address: Gpa, root: bool) -> Result<(Gpa, bool), Reason>;
}

/// No second stage: addresses are those of memory.
struct Flat;

impl Ground for Flat {
    #[inline]
    fn beyond(&self) -> u64 {
        0
    }

    #[inline]
    fn place(&self, address: Gpa, _: bool) -> Result<(Gpa, bool), Reason> {
        Ok((address, true))
    }
}

/// Translates `address`. Leaves accessed, extended-accessed and dirty bits set as the request needs them.
#[inline(always)]
pub(crate) fn walk<M: TableMemory, C: StructureCache>(
    cx: &Lookup<'_, M, C>,
    table: &FirstStageTable,
    address: u64,
    intent: Intent,
) -> Result<Leaf, Reason> {
    if !table.is_canonical(address) {
        return Err(Reason::Sgn1);
    }
    let mut path = NO_PATH;
    for _ in 0..ATTEMPTS {
        let start = table.start(cx.caches, address);
        let reached = descend(cx, table, &Flat, (address, start), &mut path)?;
        let writable = judge(table, &reached, intent)?;
        let dirties = writable && intent.write != WriteIntent::No;
        if mark(&cx.memory, table, &reached, &path, dirties)? {
            tell(cx, table, (address, start), &reached, &path);
            return Ok(leaf(&reached, address, writable && (dirties || reached.leaf & DIRTY != 0)));
        }
    }
    Err(Reason::Sfs10)
}

/// Reads entries down to the leaf. `from`: the address to translate, and where to start.
#[inline(always)]
pub(super) fn descend<M: TableMemory, C>(
    cx: &Lookup<'_, M, C>,
    table: &FirstStageTable,
    ground: &impl Ground,
    from: (u64, Start),
    path: &mut Path,
) -> Result<Reached, Reason> {
    let (address, start) = from;
    let Start { mut level, table: mut next, mut all } = start;
    loop {
        let root = level == table.levels;
        let (at, writable) = ground.place(paging::locate(next, address, level), root)?;
        let raw = cx.memory.load(at).ok_or(if root { Reason::Sfs4 } else { Reason::Sfs1 })?;
        let entry = FirstStageEntry::new_with_raw_value(raw);
        if !entry.present() {
            return Err(Reason::Sfs2);
        }
        let index = level as usize;
        if raw & cx.rules.first_entries[index][usize::from(entry.page_size())] != 0 {
            return Err(Reason::Sfs3);
        }
        if raw & ground.beyond() != 0 {
            return Err(Reason::Sfs5);
        }
        path[index] = Used { at, raw, writable };
        all &= raw;
        if entry.page_size() || level == 1 {
            return Ok(Reached { top: start.level, level, leaf: raw, all });
        }
        next = Gpa(raw & ADDRESS);
        level -= 1;
    }
}

/// Whether writes are allowed, or why not even this request is.
#[inline]
pub(super) fn judge(table: &FirstStageTable, reached: &Reached, intent: Intent) -> Result<bool, Reason> {
    if !intent.privileged && reached.all & USER == 0 {
        return Err(Reason::Sgn2);
    }
    let writable = reached.all & WRITE != 0 || intent.privileged && !table.write_protect;
    if intent.write == WriteIntent::Needed && !writable { Err(Reason::Sgn6) } else { Ok(writable) }
}

/// Sets the bits that a use leaves behind. `false`: an entry changed meanwhile, and the walk starts over.
#[inline(always)]
pub(super) fn mark<M: TableMemory>(
    memory: &Reader<'_, M>,
    table: &FirstStageTable,
    reached: &Reached,
    path: &Path,
    dirties: bool,
) -> Result<bool, Reason> {
    let marks = table.marks();
    let dirty = if dirties { DIRTY } else { 0 };
    if reached.all & marks == marks && reached.leaf & dirty == dirty {
        return Ok(true);
    }
    update(memory, table.snooped, reached.used(path), marks, dirty).map_err(|unmarked| match unmarked {
        Unmarked::NotSnooped => Reason::Sfs9,
        Unmarked::Forbidden => Reason::Sfs8,
        Unmarked::Failed => Reason::Sfs10,
    })
}

/// Tells the caches what the walk has passed.
#[inline(always)]
pub(super) fn tell<M: TableMemory, C: StructureCache>(
    cx: &Lookup<'_, M, C>,
    table: &FirstStageTable,
    from: (u64, Start),
    reached: &Reached,
    path: &Path,
) {
    let (address, start) = from;
    for passed in reached.tables(path, start, ADDRESS) {
        let passed = Start { all: passed.all | table.marks(), ..passed };
        cx.caches.keep_first(&table.tag, address, passed);
    }
}

#[inline]
pub(super) fn leaf(reached: &Reached, address: u64, write: bool) -> Leaf {
    let page_bits = paging::page_bits(reached.level);
    let low = (1 << page_bits) - 1;
    let output = reached.leaf & ADDRESS & !low | address & low;
    Leaf { output, page_bits, read: true, write }
}

/// Whether the page is marked dirty.
#[inline]
pub(super) const fn is_dirty(reached: &Reached) -> bool {
    reached.leaf & DIRTY != 0
}
