//! One queue, the arena that it works on, and what is under way.

use anyhow::{Context, Result, ensure};

use super::arena::{Arena, Planned};
use super::helper::Chore;
use crate::bench::success;
use crate::endpoint::{DESCRIPTOR_WORDS, NO_DIFFERENCE, Operation, Queue, Ticket};
use crate::model::Random;
use crate::sys::Mapping;

/// The result of a batch of which every descriptor succeeded.
const ALL_SUCCEEDED: u64 = NO_DIFFERENCE;
const DESCRIPTOR_BYTES: usize = DESCRIPTOR_WORDS * 8;
/// Most descriptors of a batch, and room for them.
const BATCH: usize = 1024;
/// Most descriptors that are submitted one by one: each takes eight stores that leave a virtual machine.
const SINGLE: usize = 8;

/// A queue's share of the work. The queue goes before the memory that it reaches.
pub(super) struct Share {
    queue: Queue,
    arena: Arena,
    /// Where batches stand.
    array: Mapping,
    under_way: Vec<(Ticket, Planned)>,
    batch: Option<Ticket>,
}

impl Share {
    /// Work for this queue.
    pub(super) fn new(queue: Queue, random: Random) -> Result<Self> {
        let array = Mapping::anonymous(BATCH * DESCRIPTOR_BYTES)?;
        Ok(Self { queue, arena: Arena::new(random)?, array, under_way: Vec::new(), batch: None })
    }

    /// Submits some operations, `longest` at most: in a batch, or one by one if they are few.
    pub(super) fn start(&mut self, longest: u64) {
        let Self { queue, arena, array, under_way, batch } = self;
        arena.choose_half();
        let logarithm = usize::try_from(longest.ilog2()).unwrap_or(0);
        let count = (1 << arena.random.below(logarithm + 1)).min(BATCH);
        if count <= SINGLE && arena.random.below(2) == 0 {
            for _ in 0..count {
                let planned = arena.plan();
                under_way.push((queue.start(&planned.operation), planned));
            }
            return;
        }
        for index in 0..count {
            let planned = arena.plan();
            let (ticket, words) = queue.prepare(&planned.operation);
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            array.write(index * DESCRIPTOR_BYTES, &bytes);
            under_way.push((ticket, planned));
        }
        *batch = Some(queue.start(&Operation::batch(array.address(), count)));
    }

    /// Pages that may go meanwhile, `most` times at most.
    pub(super) fn chores(&mut self, most: usize) -> Vec<Chore> {
        let count = 1 + self.arena.random.below(most);
        (0..count).map(|_| self.arena.chore()).collect()
    }

    /// Waits for everything that was submitted, and compares what was said and what is there. How many operations there
    /// were, and how many batches.
    pub(super) fn finish(&mut self) -> Result<(u64, u64)> {
        let batch = self.batch.take();
        if let Some(ticket) = batch {
            let completion = self.queue.wait(ticket)?;
            success(&completion, self.under_way.len())?;
            ensure!(completion.result == ALL_SUCCEEDED, "the batch says {completion:?}");
        }
        let operations = self.under_way.len() as u64;
        for (index, (ticket, planned)) in self.under_way.drain(..).enumerate() {
            let ended = match batch {
                // Those of a batch have ended before it.
                Some(_) => self.queue.poll(ticket).context("there is no record"),
                None => self.queue.wait(ticket),
            };
            let told = || format!("operation {index} of {operations}, {:x?}", planned.operation);
            let completion = ended.with_context(told)?;
            success(&completion, planned.completed).with_context(told)?;
            let (result, expected) = (completion.result, planned.result);
            ensure!(result == expected, "{}: result {result:#x}, expected {expected:#x}", told());
        }
        self.arena.check()?;
        Ok((operations, u64::from(batch.is_some())))
    }

    /// Compares everything, and waits until the device has let go.
    pub(super) fn rest(&self) -> Result<()> {
        self.arena.check_all()?;
        self.queue.rest()
    }
}
