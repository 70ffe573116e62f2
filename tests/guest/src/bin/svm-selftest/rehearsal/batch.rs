//! Batches, fences, drains and prefetching, as the model carries them out.

use super::Flaw;
use super::engine::Engine;
use super::memory::{Memory, Refusal};
use super::operation::{ABORTED, End, Execution, FAULT, FENCED, INCOMPLETE, SUCCESS, is_valid};
use super::queue::Job;
use crate::endpoint::{DESCRIPTOR_WORDS, Operation, Reason};
use crate::sys::PAGE_BYTES;

const BATCH: u8 = 6;
const DRAIN: u8 = 7;
const PREFETCH: u8 = 8;
const DESCRIPTOR_BYTES: u64 = DESCRIPTOR_WORDS as u64 * 8;

impl Engine {
    /// Does a descriptor and tells how it ended.
    pub(super) fn carry_out(&self, index: usize, job: &Job, memory: &mut Memory) {
        let failures = self.state().queues[index].failures[job.page];
        memory.reachable = job.pasid == Some(true);
        let (operation, ..) = Operation::decode(&job.words);
        memory.requests = 0;
        let end = match operation.opcode {
            _ if job.pasid.is_none() => End::refused(Reason::Refused),
            _ if !memory.reachable => End::refused(Reason::NotAccessible),
            DRAIN if valid(&job.words) && !self.fenced(&operation, failures) => {
                self.state().queues[index].failures[job.page] = 0;
                End { result: failures, ..End::new(SUCCESS) }
            }
            BATCH if valid(&job.words) && !self.fenced(&operation, failures) => {
                self.batch(index, job, &operation, memory)
            }
            _ => self.single(index, job, memory, failures),
        };
        if end.status != SUCCESS {
            self.state().queues[index].failures[job.page] += 1;
        }
        self.tell(index, memory, &job.words, &end);
    }

    fn fenced(&self, operation: &Operation, failures: u64) -> bool {
        operation.is_fenced() && failures > 0 && self.flaw != Flaw::NoFences
    }

    /// What may stand in a batch, too.
    fn single(&self, index: usize, job: &Job, memory: &mut Memory, failures: u64) -> End {
        let (operation, ..) = Operation::decode(&job.words);
        memory.asks = operation.blocks();
        if !valid(&job.words) && self.flaw != Flaw::TakesAnything {
            return End::invalid();
        }
        if self.fenced(&operation, failures) {
            return End::new(FENCED);
        }
        match operation.opcode {
            BATCH | DRAIN => End::invalid(),
            PREFETCH => self.prefetch(&operation, memory),
            _ => {
                let pause = |waits: bool| {
                    self.state().queues[index].waiting = waits;
                    self.current(index, job)
                };
                Execution { flaw: self.flaw, memory, pause: &pause }.run(&operation)
            }
        }
    }

    fn batch(&self, index: usize, job: &Job, operation: &Operation, memory: &mut Memory) -> End {
        let mut first = None;
        let stopped = |end: End, at: u64, first: Option<u64>| End {
            completed: at,
            result: first.unwrap_or(u64::MAX),
            ..end
        };
        let count = operation.length - u64::from(self.flaw == Flaw::ShortBatch && operation.length > 1);
        for number in 0..count {
            if !self.current(index, job) {
                return stopped(End::new(ABORTED), number, first);
            }
            memory.asks = operation.blocks();
            let array_end = operation.source + operation.length * DESCRIPTOR_BYTES;
            memory.expect(operation.ahead, array_end, 0);
            let words = match read(memory, operation.source + number * DESCRIPTOR_BYTES) {
                Ok(words) => words,
                Err(refusal) => {
                    return stopped(End { refusal: Some(refusal), ..End::new(FAULT) }, number, first);
                }
            };
            let own = std::mem::take(&mut memory.requests);
            let element = Job { words, ..*job };
            let end = self.single(index, &element, memory, u64::from(first.is_some()));
            if end.status != SUCCESS {
                first = first.or(Some(number));
            }
            self.tell(index, memory, &words, &end);
            memory.requests = own;
        }
        if self.flaw == Flaw::SunnyBatch {
            first = None;
        }
        let status = if first.is_some() { INCOMPLETE } else { SUCCESS };
        stopped(End::new(status), operation.length, first)
    }

    fn prefetch(&self, operation: &Operation, memory: &mut Memory) -> End {
        let mut end = End { completed: operation.length, ..End::new(SUCCESS) };
        let write = operation.operand != 0;
        let first = operation.source & !(PAGE_BYTES - 1);
        let pages = (operation.source + operation.length).div_ceil(PAGE_BYTES) - first / PAGE_BYTES;
        if operation.length == 0 || self.flaw == Flaw::LazyPrefetch {
            return end;
        }
        for address in (0..pages).map(|number| first + number * PAGE_BYTES) {
            let before = memory.requests;
            let there = memory.fetch(address, write);
            if !there && memory.asks && self.flaw == Flaw::NoPri {
                return End::refused(Reason::NoPageRequests);
            }
            if !there && self.flaw == Flaw::StrictPrefetch {
                end.status = FAULT;
            }
            let missing = !there || (!memory.asks && memory.requests > before);
            end.result += u64::from(missing);
        }
        end
    }
}

fn valid(words: &[u64; DESCRIPTOR_WORDS]) -> bool {
    let (operation, _, record) = Operation::decode(words);
    is_valid(&operation, record)
}

fn read(memory: &mut Memory, address: u64) -> Result<[u64; DESCRIPTOR_WORDS], Refusal> {
    let mut words = [0; DESCRIPTOR_WORDS];
    for (word, address) in words.iter_mut().zip((address..).step_by(8)) {
        let mut bytes = [0; 8];
        memory.read(address, &mut bytes)?;
        *word = u64::from_le_bytes(bytes);
    }
    Ok(words)
}
