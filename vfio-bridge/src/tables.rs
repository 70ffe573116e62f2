//! The nested tables in use, and what is to be flushed in each.

use std::collections::BTreeMap;

use iommu_core::{DomainId, HostError, Invalidation, Pasid, Scope};

use crate::hwpt::{Nested, TableKey};
use crate::invalidate::{Pending, flush};
use crate::kernel::{Kernel, ObjectId};
use crate::sys::uapi::{VtdS1, VtdS1Invalidate};

struct Table {
    nested: Nested,
    /// How many bindings use it.
    users: usize,
    pending: Pending,
}

/// All nested tables by their names.
#[derive(Default)]
pub(crate) struct Tables {
    tables: BTreeMap<TableKey, Table>,
    /// Those with something pending, each once.
    dirty: Vec<TableKey>,
    entries: Vec<VtdS1Invalidate>,
}

impl Tables {
    /// One more user of a table, which is made if there is none.
    pub(crate) fn acquire(
        &mut self,
        key: TableKey,
        make: impl FnOnce() -> Result<Nested, HostError>,
    ) -> Result<ObjectId, HostError> {
        if let Some(table) = self.tables.get_mut(&key) {
            table.users += 1;
            return Ok(table.nested.object().id());
        }
        let table = Table { nested: make()?, users: 1, pending: Pending::default() };
        let id = table.nested.object().id();
        self.tables.insert(key, table);
        Ok(id)
    }

    /// One user less; after the last, the table goes. What was pending in it went when it was detached.
    pub(crate) fn release(&mut self, key: &TableKey) {
        let Some(table) = self.tables.get_mut(key) else { return };
        table.users -= 1;
        if table.users == 0 {
            self.tables.remove(key);
            self.dirty.retain(|dirty| dirty != key);
        }
    }

    /// Takes note of an invalidation.
    pub(crate) fn note(&mut self, invalidation: &Invalidation) {
        let Invalidation { scope, leaf_only, .. } = invalidation;
        let (from, to) = match scope {
            Scope::All => (first_of(DomainId(0), Pasid::ZERO), last_of(DomainId(u32::MAX), LAST_PASID)),
            Scope::Domain(domain) | Scope::DomainRange { domain, .. } => {
                (first_of(*domain, Pasid::ZERO), last_of(*domain, LAST_PASID))
            }
            Scope::Pasid { domain, pasid } | Scope::PasidRange { domain, pasid, .. } => {
                (first_of(*domain, *pasid), last_of(*domain, *pasid))
            }
        };
        for (key, table) in self.tables.range_mut(from..=to) {
            if table.pending.is_empty() {
                self.dirty.push(*key);
            }
            match scope {
                Scope::PasidRange { range, .. } => table.pending.add(range, *leaf_only),
                // Input addresses of a second stage say nothing about those of the first.
                Scope::All | Scope::Domain(_) | Scope::DomainRange { .. } | Scope::Pasid { .. } => {
                    table.pending.add_all();
                }
            }
        }
    }

    /// Flushes what was noted. `failed` takes the tables in which that was impossible, and why.
    pub(crate) fn flush(&mut self, kernel: &dyn Kernel, mut failed: impl FnMut(TableKey, HostError)) {
        for key in self.dirty.drain(..) {
            let Some(table) = self.tables.get_mut(&key) else { continue };
            let done = flush(kernel, table.nested.object(), &mut table.pending, &mut self.entries);
            if let Err(error) = done {
                failed(key, error);
            }
        }
    }
}

const LAST_PASID: Pasid = Pasid::truncate(u32::MAX);

fn first_of(domain: DomainId, pasid: Pasid) -> TableKey {
    let table = VtdS1 { flags: 0, pgtbl_addr: 0, addr_width: 0, reserved: 0 };
    TableKey { domain, pasid, table, faults: false, parent: 0 }
}

fn last_of(domain: DomainId, pasid: Pasid) -> TableKey {
    let table = VtdS1 { flags: u64::MAX, pgtbl_addr: u64::MAX, addr_width: u32::MAX, reserved: u32::MAX };
    TableKey { domain, pasid, table, faults: true, parent: usize::MAX }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::hwpt::NestParent;
    use crate::ioas::Ioas;
    use crate::object::Objects;
    use crate::testkit::YesKernel;

    /// A guest that binds, invalidates and unbinds without ever waiting takes no room.
    #[test]
    fn tables_that_went_leave_nothing_to_flush() {
        let objects = Objects::new(Arc::new(YesKernel::default()));
        let ioas = Arc::new(Ioas::new(&objects).unwrap());
        let parent = Arc::new(NestParent::new(&ioas, ObjectId(1), true).unwrap());
        let mut tables = Tables::default();
        for root in 1..100 {
            let key = TableKey { table: VtdS1 { pgtbl_addr: root << 12, ..KEY.table }, ..KEY };
            tables.acquire(key, || Nested::new(&parent, ObjectId(1), &key.table, None)).unwrap();
            tables.note(&Invalidation::ALL);
            tables.note(&Invalidation::ALL);
            assert_eq!(tables.dirty.len(), 1);
            tables.release(&key);
            assert!(tables.dirty.is_empty() && tables.tables.is_empty());
        }
    }

    const KEY: TableKey = TableKey {
        domain: DomainId(1),
        pasid: Pasid::ZERO,
        table: VtdS1 { flags: 0, pgtbl_addr: 0, addr_width: 48, reserved: 0 },
        faults: false,
        parent: 0,
    };
}
