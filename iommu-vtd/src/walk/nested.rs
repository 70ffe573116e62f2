//! The nested walk (revision 5.10, §3.8): a first stage whose tables and pages lie in a second stage's input.

use iommu_core::Gpa;

use super::first::{self, FirstStageTable, Ground};
use super::second::{self, SecondStageTable};
use super::{ATTEMPTS, Intent, Leaf, NO_PATH, StructureCache, WriteIntent};
use crate::lookup::Lookup;
use crate::memory::TableMemory;
use crate::spec::fault::Reason;
use crate::spec::paging::FirstStageEntry;

/// A second stage under a first-stage table.
struct Nested<'w, 'a, M: TableMemory, C> {
    cx: &'w Lookup<'a, M, C>,
    second: &'w SecondStageTable,
}

impl<M: TableMemory, C: StructureCache> Ground for Nested<'_, '_, M, C> {
    #[inline]
    fn beyond(&self) -> u64 {
        FirstStageEntry::address_mask() & (u64::MAX << self.second.limit_bits)
    }

    /// While the second stage keeps accessed and dirty bits, reading a table counts as writing it: the read may
    /// be followed by an update of an entry, and would come too late to mark the table's page.
    #[inline(always)]
    fn place(&self, address: Gpa, root: bool) -> Result<(Gpa, bool), Reason> {
        let write = if self.second.accessed_dirty { WriteIntent::Needed } else { WriteIntent::No };
        let intent = Intent { read: true, write, privileged: false };
        let mut path = NO_PATH;
        for _ in 0..ATTEMPTS {
            let page = second::find(self.cx, self.second, address.0, intent, &mut path)
                .map_err(|reason| blame(reason, root))?;
            if let Some(leaf) = page.take(self.cx, self.second, address.0, &path)? {
                return Ok((Gpa(leaf.output), page.writable()));
            }
        }
        Err(Reason::Sss6)
    }
}

/// Translates `address` through both stages. Leaves the bits of both set as the request needs them.
///
/// The page is looked up in the second stage before the first stage's entries are marked: a first-stage entry gets
/// dirty only by a write that both stages allow.
#[inline(always)]
pub(crate) fn walk<M: TableMemory, C: StructureCache>(
    cx: &Lookup<'_, M, C>,
    first: &FirstStageTable,
    second: &SecondStageTable,
    address: u64,
    intent: Intent,
) -> Result<Leaf, Reason> {
    if !first.is_canonical(address) {
        return Err(Reason::Sgn1);
    }
    let ground = Nested { cx, second };
    let (mut path, mut outer_path) = (NO_PATH, NO_PATH);
    let mut restless = Reason::Sfs10;
    for _ in 0..ATTEMPTS {
        let start = first.start(cx.caches, address);
        let reached = first::descend(cx, first, &ground, (address, start), &mut path)?;
        let writable = first::judge(first, &reached, intent)?;
        let inner = first::leaf(&reached, address, writable);
        let page = second::find(cx, second, inner.output, through(intent, writable), &mut outer_path)?;
        let dirties = writable && page.writable() && intent.write != WriteIntent::No;
        if !first::mark(&cx.memory, first, &reached, &path, dirties)? {
            restless = Reason::Sfs10;
            continue;
        }
        let Some(outer) = page.take(cx, second, inner.output, &outer_path)? else {
            restless = Reason::Sss6;
            continue;
        };
        first::tell(cx, first, (address, start), &reached, &path);
        let is_dirty = dirties || first::is_dirty(&reached);
        return Ok(Leaf {
            page_bits: inner.page_bits.min(outer.page_bits),
            write: outer.write && writable && is_dirty,
            ..outer
        });
    }
    Err(restless)
}

/// What the request still wants of the second stage. One that takes what it gets, and gets no write permission
/// from the first stage, has reads to hope for only.
#[inline]
const fn through(intent: Intent, writable: bool) -> Intent {
    match intent.write {
        WriteIntent::IfAllowed if !writable => Intent { read: true, write: WriteIntent::No, ..intent },
        WriteIntent::No | WriteIntent::IfAllowed | WriteIntent::Needed => intent,
    }
}

/// A second stage that does not allow what a table needs is the first stage's fault; one that is broken is not.
#[cold]
fn blame(reason: Reason, root: bool) -> Reason {
    match reason {
        Reason::Sgn6 | Reason::Sgn7 if root => Reason::Sfs6,
        Reason::Sgn6 | Reason::Sgn7 => Reason::Sfs7,
        other => other,
    }
}
