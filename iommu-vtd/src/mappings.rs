//! What a guest's second-stage tables map (revision 5.10, §3.7), told leaf by leaf to hosts that keep a copy.
//!
//! **Pure** but for the reads of memory.

use std::ops::ControlFlow;

use iommu_core::{
    Domain, Gpa, GuestMappings, IovaRange, Mapping, Permissions, SecondStage, TableFormat, Visit,
};

use crate::capability::Capability;
use crate::memory::{Reader, TableMemory};
use crate::rules::Rules;
use crate::spec::paging::{self, SecondStageEntry};

/// Most tables that one visit reads: they map 128 GiB in pages of 4 KiB, and anything in larger ones. Tables of a
/// hostile guest may lead to each other in 2^36 ways and map nothing.
pub const MOST_TABLES: u32 = 1 << 16;

const READ: u64 = SecondStageEntry::read_mask();
const WRITE: u64 = SecondStageEntry::write_mask();
const ADDRESS: u64 = SecondStageEntry::address_mask();
/// Entries that are read at once.
const CHUNK: usize = 8;
const ENTRIES: u64 = 512;

/// The second-stage tables of a unit's guest, in scalable and legacy mode. Entries that a request would fault at map
/// nothing. Accessed and dirty bits are neither looked at nor set: whoever keeps a copy cannot offer them.
pub struct SecondStageMappings<M> {
    memory: M,
    rules: Rules,
}

impl<M: TableMemory> SecondStageMappings<M> {
    /// For the tables in `memory` of a unit that offers `capability`.
    pub fn new(memory: M, capability: &Capability) -> Self {
        Self { memory, rules: Rules::new(capability) }
    }

    /// The levels of a table, and the input addresses that it has at all.
    fn shape(&self, table: &SecondStage) -> Option<(u32, IovaRange)> {
        let levels = match (table.format, table.input_bits) {
            (TableFormat::VtdSecondStage { .. }, 39) => 3,
            (TableFormat::VtdSecondStage { .. }, 48) => 4,
            (TableFormat::VtdSecondStage { .. }, 57) => 5,
            _ => return None,
        };
        Some((levels, IovaRange::aligned(0, table.input_bits.min(self.rules.guest_bits))))
    }
}

impl<M: TableMemory> GuestMappings for SecondStageMappings<M> {
    fn visit(
        &self,
        domain: &Domain,
        range: &IovaRange,
        visit: &mut dyn FnMut(&Mapping) -> ControlFlow<()>,
    ) -> Visit {
        let Domain::SecondStage { table, .. } = domain else { return Visit::Unsupported };
        let Some((levels, inputs)) = self.shape(table) else { return Visit::Unsupported };
        let Some(range) = intersection(range, &inputs) else { return Visit::Complete };
        let mut walk = Walk {
            memory: Reader::new(&self.memory),
            rules: &self.rules,
            range,
            tables_left: MOST_TABLES,
            visit,
        };
        let start = Start { level: levels, table: table.root, base: 0, all: READ | WRITE };
        match walk.table(&start) {
            ControlFlow::Continue(()) => Visit::Complete,
            ControlFlow::Break(end) => end,
        }
    }
}

fn intersection(a: &IovaRange, b: &IovaRange) -> Option<IovaRange> {
    IovaRange::new(a.start().max(b.start()), a.last().min(b.last()))
}

/// A table on the way.
struct Start {
    level: u32,
    table: Gpa,
    /// The first address that it translates.
    base: u64,
    /// What all entries on the way have in common.
    all: u64,
}

struct Walk<'a, M: TableMemory> {
    memory: Reader<'a, M>,
    rules: &'a Rules,
    range: IovaRange,
    tables_left: u32,
    visit: &'a mut dyn FnMut(&Mapping) -> ControlFlow<()>,
}

impl<M: TableMemory> Walk<'_, M> {
    /// Goes through one table and what is below. At most five deep.
    fn table(&mut self, start: &Start) -> ControlFlow<Visit> {
        let Some(left) = self.tables_left.checked_sub(1) else { return ControlFlow::Break(Visit::TooMuch) };
        self.tables_left = left;
        let bits = paging::page_bits(start.level);
        let index = |address: u64| ((address.max(start.base) - start.base) >> bits).min(ENTRIES - 1);
        let (first, last) = (index(self.range.start()), index(self.range.last()));
        for chunk in (first & !7..=last).step_by(CHUNK) {
            let words: Option<[u64; CHUNK]> =
                self.memory.load_words(Gpa(start.table.0.wrapping_add(chunk * 8)));
            for (number, word) in (chunk..).zip(words.unwrap_or_default()) {
                if (first..=last).contains(&number) {
                    self.entry(start, start.base + (number << bits), word)?;
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// One entry, for the addresses from `base` on.
    fn entry(&mut self, start: &Start, base: u64, raw: u64) -> ControlFlow<Visit> {
        let entry = SecondStageEntry::new_with_raw_value(raw);
        let all = start.all & raw;
        let reserved = self.rules.second_entries[start.level as usize][usize::from(entry.page_size())];
        if all & (READ | WRITE) == 0 || raw & reserved != 0 {
            return ControlFlow::Continue(());
        }
        if !entry.page_size() && start.level > 1 {
            return self.table(&Start { level: start.level - 1, table: Gpa(raw & ADDRESS), base, all });
        }
        let bits = paging::page_bits(start.level);
        let output = raw & ADDRESS & !((1 << bits) - 1);
        let permissions = Permissions { read: all & READ != 0, write: all & WRITE != 0 };
        let mapping = Mapping { range: IovaRange::aligned(base, bits), base: Gpa(output), permissions };
        match (self.visit)(&mapping) {
            ControlFlow::Continue(()) => ControlFlow::Continue(()),
            ControlFlow::Break(()) => ControlFlow::Break(Visit::Stopped),
        }
    }
}
