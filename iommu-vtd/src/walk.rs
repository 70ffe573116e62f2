//! Page walks (revision 5.10, §3.6 to §3.8). One file per stage, and one for the two of them nested.
//!
//! Checks come before updates: a walk reads all entries down to the page and judges them, and only then sets
//! accessed and dirty bits. The one exception are second-stage entries that lead to a first-stage table; they are
//! marked when that table is read, whatever becomes of the request.

pub(crate) mod first;
pub(crate) mod nested;
pub(crate) mod second;

use iommu_core::{DomainId, Gpa, Tag};

use crate::lookup::NoCaches;
use crate::memory::{Reader, TableMemory};
use crate::spec::paging::LEVELS;

/// How often a walk starts over because an entry changed under it. A guest that keeps changing entries only
/// makes its own access fail.
const ATTEMPTS: u32 = 16;

/// What a request wants of the page it reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Intent {
    /// Cannot do without read permission.
    pub(crate) read: bool,
    pub(crate) write: WriteIntent,
    /// Supervisor rights.
    pub(crate) privileged: bool,
}

/// What a request wants with regard to writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WriteIntent {
    /// Does not write.
    No,
    /// Takes the permission if there is one, and then marks the page dirty.
    IfAllowed,
    /// Cannot do without.
    Needed,
}

/// Where a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Leaf {
    /// Output for the address that was asked for.
    pub(crate) output: u64,
    /// Logarithm of the page's size in bytes.
    pub(crate) page_bits: u32,
    /// Reads are allowed.
    pub(crate) read: bool,
    /// Writes are allowed, and the page is marked dirty already.
    pub(crate) write: bool,
}

/// Where a walk may start: a table on the way to the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    /// Level of the table's entries; 1 is a page table.
    pub(crate) level: u32,
    /// Address of the table; in a nested first stage an input of the second stage.
    pub(crate) table: Gpa,
    /// AND of the entries that lead to it, as they are with all their accessed bits set.
    pub(crate) all: u64,
}

/// Paging-structure caches (§6.2.5): what walks tell of the tables they passed, and may be told.
///
/// A walk asks once, at its start; which of the tables that it knows a cache names is its own affair, as long as
/// none of them was invalidated. It tells of every table it passed, from the root down, once it has succeeded.
/// `address` is the input of the stage. First-stage tables are known by domain and PASID of the tag, which also
/// says whether they are nested; second-stage tables by the domain.
pub(crate) trait StructureCache {
    /// A first-stage table on the way to `address`.
    #[inline]
    fn first(&self, _tag: &Tag, _address: u64) -> Option<Start> {
        None
    }

    /// Tells of a first-stage table on the way to `address`.
    #[inline]
    fn keep_first(&self, _tag: &Tag, _address: u64, _table: Start) {}

    /// A second-stage table on the way to `address`.
    #[inline]
    fn second(&self, _domain: DomainId, _address: u64) -> Option<Start> {
        None
    }

    /// Tells of a second-stage table on the way to `address`.
    #[inline]
    fn keep_second(&self, _domain: DomainId, _address: u64, _table: Start) {}
}

impl StructureCache for NoCaches {}

/// An entry that a walk used.
#[derive(Clone, Copy)]
struct Used {
    /// Where in memory it lies.
    at: Gpa,
    /// What was read.
    raw: u64,
    /// Whether it may be updated; a second stage under it may forbid that.
    writable: bool,
}

/// The entries that a walk used. Index: level; those outside the walk mean nothing.
type Path = [Used; LEVELS + 1];

const NO_PATH: Path = [Used { at: Gpa(0), raw: 0, writable: false }; LEVELS + 1];

/// Where a walk came to.
#[derive(Clone, Copy)]
struct Reached {
    /// Level at which it started.
    top: u32,
    /// Level of the leaf entry.
    level: u32,
    /// The leaf entry.
    leaf: u64,
    /// AND of all entries from the root on: what each of them allows, and what is set in each of them.
    all: u64,
}

impl Reached {
    /// The entries of this walk, the leaf first.
    #[inline]
    fn used<'p>(&self, path: &'p Path) -> &'p [Used] {
        &path[self.level as usize..=self.top as usize]
    }

    /// The tables that this walk passed, from the root down. `mask`: address bits of an entry.
    #[inline(always)]
    fn tables<'p>(&self, path: &'p Path, start: Start, mask: u64) -> impl Iterator<Item = Start> + 'p {
        let mut all = start.all;
        (self.level + 1..=self.top).rev().map(move |level| {
            let raw = path[level as usize].raw;
            all &= raw;
            Start { level: level - 1, table: Gpa(raw & mask), all }
        })
    }
}

/// Why entries could not be marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unmarked {
    /// The walk is not snooped (PWSNP=0).
    NotSnooped,
    /// The second stage forbids it.
    Forbidden,
    /// There is no memory to update any more.
    Failed,
}

/// Sets `used` in every entry of `path`, which starts with the leaf, and `dirty` in the leaf; from the root
/// down. `false`: an entry has changed since it was read, and nothing that was read still holds.
#[cold]
fn update<M: TableMemory>(
    memory: &Reader<'_, M>,
    snooped: bool,
    path: &[Used],
    used: u64,
    dirty: u64,
) -> Result<bool, Unmarked> {
    if !snooped {
        return Err(Unmarked::NotSnooped);
    }
    let wanted = |index: usize, raw: u64| raw | used | if index == 0 { dirty } else { 0 };
    let changes =
        || path.iter().enumerate().rev().filter(|(index, entry)| wanted(*index, entry.raw) != entry.raw);
    if changes().any(|(_, entry)| !entry.writable) {
        return Err(Unmarked::Forbidden);
    }
    for (index, entry) in changes() {
        match memory.compare_exchange(entry.at, entry.raw, wanted(index, entry.raw)) {
            Some(Ok(_)) => {}
            Some(Err(_)) => return Ok(false),
            None => return Err(Unmarked::Failed),
        }
    }
    Ok(true)
}
