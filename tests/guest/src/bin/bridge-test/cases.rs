//! The cases.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use guest::endpoint::{Operation, Queue, Status};
use guest::expect::{describe, same, success};
use guest::model::Random;
use guest::sys::{PAGE, PAGE_BYTES};
use iommu_core::{Domain, DomainId};
use vfio_bridge::choice::Wanted;
use vfio_bridge::testkit::rules;

pub(crate) use guest::program::Needs;

use crate::mock::Mock;
use crate::peers;
use crate::rig::{PAGES, Place, Rig};
use crate::tables::domain;

/// One case.
pub(crate) type Case = guest::program::Case<fn(&mut Bench<'_>) -> Result<()>>;

/// All cases, in the order in which they run.
pub(crate) fn all() -> Vec<Case> {
    vec![
        Case::new("mock-devices-keep-the-rules", Needs::Translation, |bench| bench.rules()),
        Case::new("auto", Needs::Translation, |bench| bench.opens(Wanted::Auto)),
        Case::new("device-memory", Needs::Translation, |bench| bench.device_memory(Wanted::Auto)),
        Case::new("shadow-passes-through", Needs::Translation, |bench| bench.passes(Wanted::Shadow)),
        Case::new("shadow-churn", Needs::Translation, |bench| bench.churn(Wanted::Shadow)),
        Case::new("shadow-refuses", Needs::Translation, |bench| bench.refuses(Wanted::Shadow)).provoking(),
        Case::new("container-passes-through", Needs::Translation, |bench| bench.passes(Wanted::Container)),
        Case::new("container-churn", Needs::Translation, |bench| bench.churn(Wanted::Container)),
        Case::new("container-refuses", Needs::Translation, |bench| bench.refuses(Wanted::Container))
            .provoking(),
    ]
}

/// Pages of the long copy's buffers.
const LONG: usize = 48;
/// Where a device finds buffers.
const BUFFERS: u64 = 0x12_3456_0000;
/// Rounds of a churn.
const ROUNDS: usize = 150;

/// The surroundings of a case.
pub(crate) struct Bench<'a> {
    place: &'a Place,
    random: Random,
    notes: &'a mut Vec<String>,
    /// Pages of the guest's memory that nobody has.
    free: Vec<u64>,
    /// How long announcements took.
    times: Vec<Duration>,
}

/// Pages that follow each other for the device.
struct Buffer {
    iova: u64,
    pages: Vec<u64>,
}

impl Buffer {
    fn count(&self) -> u64 {
        self.pages.len() as u64
    }

    fn read(&self, rig: &Rig) -> Vec<u8> {
        self.pages.iter().flat_map(|page| rig.memory.read(place(*page)..place(*page) + PAGE)).collect()
    }

    fn write(&self, rig: &Rig, bytes: &[u8]) {
        for (page, bytes) in self.pages.iter().zip(bytes.chunks(PAGE)) {
            rig.memory.write(place(*page), bytes);
        }
    }
}

/// Where a page of the guest's is in the mapping.
fn place(page: u64) -> usize {
    usize::try_from(page).unwrap_or(0) * PAGE
}

impl<'a> Bench<'a> {
    pub(crate) fn new(place: &'a Place, seed: u64, notes: &'a mut Vec<String>) -> Self {
        let free = (0..PAGES as u64).collect();
        Self { place, random: Random::new(seed), notes, free, times: Vec::new() }
    }

    fn rig(&mut self, wanted: Wanted) -> Result<Rig> {
        let rig = Rig::open(self.place, wanted)?;
        self.notes.push(rig.choice.to_string());
        Ok(rig)
    }

    /// All that is believed of iommufd, on mock devices.
    fn rules(&mut self) -> Result<()> {
        let rows = rules::rows();
        let mut failed = Vec::new();
        for row in &rows {
            failed.extend(rules::play(row, &Mock::open()?).err());
        }
        let lines: usize = rows.iter().map(|row| row.lines.len()).sum();
        self.notes.push(format!("{} sequences of {lines} calls", rows.len()));
        ensure!(failed.is_empty(), "{}", failed.join("\n"));
        Ok(())
    }

    fn opens(&mut self, wanted: Wanted) -> Result<()> {
        self.rig(wanted).map(drop)
    }

    /// The endpoint's own memory, for other devices.
    fn device_memory(&mut self, wanted: Wanted) -> Result<()> {
        let rig = self.rig(wanted)?;
        peers::device_memory(self.place, &rig)
    }

    /// A buffer of pages from anywhere, in any order, with random bytes; announced.
    fn show(&mut self, rig: &Rig, iova: u64, count: usize) -> Result<Buffer> {
        let pages: Vec<_> =
            (0..count).map(|_| self.free.swap_remove(self.random.below(self.free.len()))).collect();
        let buffer = Buffer { iova, pages };
        buffer.write(rig, &self.random.bytes(count * PAGE));
        for (number, page) in (0..).zip(&buffer.pages) {
            rig.tables.map(iova + number * PAGE_BYTES, page * PAGE_BYTES);
        }
        self.announce(rig, &buffer)?;
        Ok(buffer)
    }

    /// Takes it back, and waits until that is so. The pages are somebody else's then.
    fn hide(&mut self, rig: &Rig, buffer: &Buffer) -> Result<()> {
        for number in 0..buffer.count() {
            rig.tables.unmap(buffer.iova + number * PAGE_BYTES);
        }
        self.announce(rig, buffer)?;
        self.free.extend(&buffer.pages);
        Ok(())
    }

    fn announce(&mut self, rig: &Rig, buffer: &Buffer) -> Result<()> {
        let before = Instant::now();
        rig.announce(buffer.iova, buffer.count())?;
        self.times.push(before.elapsed());
        Ok(())
    }

    /// Addresses are the guest's own.
    fn passes(&mut self, wanted: Wanted) -> Result<()> {
        let rig = self.rig(wanted)?;
        rig.bind(&Domain::PassThrough { id: DomainId(1) })?;
        let queue = rig.queue_past();
        let bytes = self.random.bytes(2 * PAGE);
        rig.memory.write(0, &bytes);
        let last = (PAGES - 2) * PAGE;
        success(&queue.run(&Operation::copy(0, last as u64, 2 * PAGE))?, 2 * PAGE)?;
        same("last pages", &rig.memory.read(last..last + 2 * PAGE), &bytes)
    }

    /// Buffers come and go beside, and while a long copy runs between two that stay.
    fn churn(&mut self, wanted: Wanted) -> Result<()> {
        let rig = self.rig(wanted)?;
        rig.bind(&domain())?;
        let queue = rig.queue()?;
        let long = (LONG * PAGE) as u64;
        // Right beside each other, and right beside what comes and goes.
        let from = self.show(&rig, BUFFERS, LONG)?;
        let to = self.show(&rig, BUFFERS + long, LONG)?;
        for round in 0..ROUNDS {
            let bytes = self.random.bytes(LONG * PAGE);
            from.write(&rig, &bytes);
            let ticket = queue.start(&Operation::copy(from.iova, to.iova, LONG * PAGE));
            let below = self.show(&rig, BUFFERS - 3 * PAGE_BYTES, 3)?;
            let above = self.show(&rig, BUFFERS + 2 * long, 1 + round % 5)?;
            self.hide(&rig, &below)?;
            success(&queue.wait(ticket)?, LONG * PAGE).with_context(|| format!("long copy {round}"))?;
            same("destination of a long copy", &to.read(&rig), &bytes)?;
            self.exact(&rig, &queue, &above).with_context(|| format!("round {round}"))?;
            self.hide(&rig, &above)?;
        }
        self.times.sort();
        let at = |part: usize| self.times.get(self.times.len() * part / 100).copied().unwrap_or_default();
        self.notes.push(format!("{} announcements, p50 {:?}, p99 {:?}", self.times.len(), at(50), at(99)));
        Ok(())
    }

    /// A copy from a buffer to a fresh one, byte by byte.
    fn exact(&mut self, rig: &Rig, queue: &Queue, from: &Buffer) -> Result<()> {
        let to = self.show(rig, from.iova + 64 * PAGE_BYTES, from.pages.len())?;
        let bytes = self.random.bytes(from.pages.len() * PAGE);
        from.write(rig, &bytes);
        let start = self.random.below(PAGE / 2);
        let length = bytes.len() - PAGE / 2;
        let mut expected = to.read(rig);
        expected[3..3 + length].copy_from_slice(&bytes[start..start + length]);
        success(&queue.run(&Operation::copy(from.iova + start as u64, to.iova + 3, length))?, length)?;
        same("destination", &to.read(rig), &expected)?;
        self.hide(rig, &to)
    }

    /// What was taken back is not reached, and neither is anything once the device is blocked.
    fn refuses(&mut self, wanted: Wanted) -> Result<()> {
        let rig = self.rig(wanted)?;
        rig.bind(&domain())?;
        let queue = rig.queue()?;
        let from = self.show(&rig, BUFFERS, 2)?;
        let to = self.show(&rig, BUFFERS + 2 * PAGE_BYTES, 2)?;
        let copy = Operation::copy(from.iova, to.iova, PAGE).without_block();
        success(&queue.run(&copy)?, PAGE)?;
        self.hide(&rig, &to)?;
        let before = to.read(&rig);
        let completion = queue.run(&copy)?;
        let stopped = completion.status == Status::Fault && completion.write;
        ensure!(
            stopped && completion.fault_address == to.iova,
            "expected a fault: {}",
            describe(&completion)
        );
        same("what was taken back", &to.read(&rig), &before)?;
        let again = self.show(&rig, to.iova, 2)?;
        success(&queue.run(&copy)?, PAGE)?;
        let after = again.read(&rig);
        rig.bind(&Domain::Blocked)?;
        let ticket = queue.start(&Operation::fill(again.iova, PAGE, 0x55).without_block());
        queue.rest()?;
        ensure!(queue.poll(ticket).is_none(), "a blocked device left a record: {:?}", queue.poll(ticket));
        same("memory of a blocked device", &again.read(&rig), &after)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_are_unique_and_plain() {
        assert_eq!(guest::program::bad_name(&super::all()), None);
    }
}
