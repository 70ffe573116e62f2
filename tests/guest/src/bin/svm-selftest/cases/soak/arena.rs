//! Pages on which one queue works, and a model of what must be in them.

use std::ops::Range;
use std::sync::Arc;

use anyhow::Result;

use super::helper::{Chore, Taking};
use crate::bench::{fresh, same};
use crate::endpoint::{NO_DIFFERENCE, Operation};
use crate::model::{self, Random};
use crate::sys::{Mapping, PAGE};

const PAGES: usize = 64;
/// Bytes of a half: operations work in one while pages of the other go.
const HALF: usize = PAGES / 2 * PAGE;
const LONGEST: usize = 5 * PAGE;
/// Most pages that go at once.
const TAKEN: usize = 8;
/// Most pages that are asked for ahead.
const AHEAD: usize = 15;

/// An operation and what it must say.
pub(super) struct Planned {
    pub(super) operation: Operation,
    pub(super) completed: usize,
    pub(super) result: u64,
}

/// The pages and the model.
pub(super) struct Arena {
    memory: Arc<Mapping>,
    model: Vec<u8>,
    pub(super) random: Random,
    /// Where the half starts that is worked in.
    base: usize,
}

impl Arena {
    /// Pages that are not there yet.
    pub(super) fn new(random: Random) -> Result<Self> {
        let memory = Arc::new(fresh(PAGES)?);
        Ok(Self { model: vec![0; memory.len()], memory, random, base: 0 })
    }

    /// Chooses the half for the next operations.
    pub(super) fn choose_half(&mut self) {
        self.base = self.random.below(2) * HALF;
    }

    /// A random operation, done to the model already.
    pub(super) fn plan(&mut self) -> Planned {
        let length = self.length();
        let random = &mut self.random;
        let source = self.base + random.below(HALF - 2 * length);
        let destination = source + length + random.below(self.base + HALF - source - 2 * length);
        let ahead = u8::try_from(random.below(2) * random.below(AHEAD + 1)).unwrap_or(0);
        let (from, to) = (self.memory.at(source), self.memory.at(destination));
        let (operation, completed, result) = match random.below(7) {
            0 | 1 => {
                self.model.copy_within(source..source + length, destination);
                (Operation::copy(from, to, length), length, 0)
            }
            2 | 3 => {
                let pattern = random.bits();
                self.model[destination..destination + length].copy_from_slice(&model::fill(pattern, length));
                (Operation::fill(to, length, pattern), length, 0)
            }
            4 => {
                let (left, right) =
                    (&self.model[source..source + length], &self.model[destination..destination + length]);
                let difference = model::first_difference(left, right);
                let result = difference.map_or(NO_DIFFERENCE, |at| at as u64);
                (Operation::compare(from, to, length), difference.unwrap_or(length), result)
            }
            5 => (Operation::prefetch(from, length, random.below(2) == 0), length, 0),
            _ => {
                let sum = model::crc32c(&self.model[source..source + length], 0);
                (Operation::crc(from, length, 0), length, u64::from(sum))
            }
        };
        let operation = operation.with_ahead(ahead);
        // None before it fails, so a fence lets it pass.
        let operation = if self.random.below(8) == 0 { operation.with_fence() } else { operation };
        Planned { operation, completed, result }
    }

    /// Of eight operations, five are shorter than a page's quarter, two than a page.
    fn length(&mut self) -> usize {
        let limit = match self.random.below(8) {
            0 => LONGEST,
            1 | 2 => PAGE,
            _ => PAGE / 4,
        };
        1 + self.random.below(limit)
    }

    /// Something for the helper in the half that is not worked in.
    pub(super) fn chore(&mut self) -> Chore {
        let most = HALF / PAGE;
        let page = self.random.below(most);
        let pages = 1 + self.random.below((most - page).min(TAKEN));
        let start = HALF - self.base + page * PAGE;
        let range = start..start + pages * PAGE;
        let taking = match self.random.below(4) {
            0 => Taking::Replace,
            1 => Taking::Protect,
            _ => Taking::Discard,
        };
        if taking != Taking::Protect {
            self.model[range.clone()].fill(0);
        }
        Chore { memory: self.memory.clone(), range, taking }
    }

    /// Compares the half that was worked in, byte by byte; now and then the CPU stores something after that.
    pub(super) fn check(&mut self) -> Result<()> {
        self.compare(self.base..self.base + HALF)?;
        if self.random.below(4) == 0 {
            let length = self.length();
            let start = self.random.below(self.model.len() - length);
            let bytes = self.random.bytes(length);
            self.memory.write(start, &bytes);
            self.model[start..start + length].copy_from_slice(&bytes);
        }
        Ok(())
    }

    /// Compares all of it.
    pub(super) fn check_all(&self) -> Result<()> {
        self.compare(0..self.model.len())
    }

    fn compare(&self, range: Range<usize>) -> Result<()> {
        same(&format!("bytes from {:#x}", range.start), &self.memory.read(range.clone()), &self.model[range])
    }
}
