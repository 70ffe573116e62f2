//! The model's registers, queues and workers.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::Result;

use super::Flaw;
use super::memory::{Memory, Refusal, offset};
use crate::endpoint::{
    DESCRIPTOR_WORDS, NO_DIFFERENCE, Operation, Reason, Registers, control, global, portal,
};
use crate::model;
use crate::sys::PAGE;

const QUEUES: usize = 4;
const DEPTH_LOG2: u32 = 6;
const LONGEST: u64 = 1 << 30;

#[derive(Default)]
struct QueueState {
    enabled: bool,
    /// Counts disables; what was submitted before the last one is aborted.
    generation: u64,
    pasid: u32,
    irq: u32,
    staging: [u64; DESCRIPTOR_WORDS],
    pending: VecDeque<(u64, [u64; DESCRIPTOR_WORDS])>,
    at_work: bool,
    waiting: bool,
    dropped: u32,
    page_requests: u64,
    record_lost: u64,
}

#[derive(Default)]
struct State {
    queues: [QueueState; QUEUES],
    completed: u64,
    page_requests: u64,
    dropped: u64,
    records_lost: u64,
    moments: [u64; 5],
    asked: u64,
    asker: u64,
    sequence: u64,
    /// Counts resets: what a device knows of memory ends with each.
    resets: u64,
}

/// The model.
pub(super) struct Engine {
    flaw: Flaw,
    started: Instant,
    state: Mutex<State>,
    changed: Condvar,
    interrupt: Mutex<Box<dyn FnMut() + Send>>,
}

impl Engine {
    pub(super) fn new(flaw: Flaw, interrupt: Box<dyn FnMut() + Send>) -> Result<Arc<Self>> {
        let engine = Arc::new(Self {
            flaw,
            started: Instant::now(),
            state: Mutex::default(),
            changed: Condvar::new(),
            interrupt: Mutex::new(interrupt),
        });
        let shares: Vec<Vec<usize>> = match flaw {
            Flaw::OneWorker => vec![(0..QUEUES).collect()],
            _ => (0..QUEUES).map(|queue| vec![queue]).collect(),
        };
        for queues in shares {
            let (engine, memory) = (engine.clone(), Memory::new(flaw)?);
            thread::spawn(move || engine.work(&queues, memory));
        }
        Ok(engine)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// One worker: takes the descriptors of its queues, for ever.
    fn work(&self, queues: &[usize], mut memory: Memory) {
        let mut resets = 0;
        loop {
            let (index, generation, words) = self.next(queues);
            let now = self.state().resets;
            if std::mem::replace(&mut resets, now) != now {
                memory.forget();
            }
            let (operation, tag, record) = Operation::decode(&words);
            memory.requests = 0;
            let without_pasid = self.state().queues[index].pasid & control::VALID == 0;
            memory.asks = operation.blocks();
            let mut end = if without_pasid { End::refused(Reason::Refused) } else { End::invalid() };
            if !without_pasid && (is_valid(&operation, record) || self.flaw == Flaw::TakesAnything) {
                let current = || self.state().queues[index].generation == generation;
                end =
                    Execution { engine: self, memory: &mut memory, index, current: &current }.run(&operation);
            }
            // Whoever sees the record looks at the counters next.
            let counted = memory.requests;
            self.count(index, counted);
            let aborted = end.status == ABORTED;
            let told = (aborted && self.flaw == Flaw::SilentAbort)
                || (!without_pasid && write_record(&mut memory, &end, tag, record, aborted).is_ok());
            self.count(index, memory.requests - counted);
            self.complete(index, &memory, (!told).then_some(record));
            if operation.interrupts() || self.flaw == Flaw::Chatty {
                self.send_interrupt(index);
            }
            self.state().queues[index].at_work = false;
            self.changed.notify_all();
        }
    }

    fn next(&self, queues: &[usize]) -> (usize, u64, [u64; DESCRIPTOR_WORDS]) {
        let mut state = self.state();
        loop {
            for &index in queues {
                let pending = &mut state.queues[index].pending;
                let next = if self.flaw == Flaw::Reorders { pending.pop_back() } else { pending.pop_front() };
                if let Some((generation, words)) = next {
                    state.queues[index].at_work = true;
                    return (index, generation, words);
                }
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn count(&self, index: usize, page_requests: u64) {
        let mut state = self.state();
        state.page_requests += page_requests;
        state.queues[index].page_requests += page_requests;
    }

    fn complete(&self, index: usize, memory: &Memory, lost: Option<u64>) {
        let mut state = self.state();
        if self.flaw == Flaw::Uncounted {
            return;
        }
        state.completed += 1;
        if let Some(record) = lost {
            state.records_lost += 1;
            state.queues[index].record_lost = record;
        }
        if let Some(address) = memory.asked {
            state.asked = address;
            state.asker = index as u64;
            state.sequence += 1;
            let now = self.now();
            state.moments = [now, now + 500, now + 1000, now + 50_000, now + 51_000];
        }
    }

    fn send_interrupt(&self, index: usize) {
        if self.state().queues[index].irq & control::VALID != 0 {
            let mut interrupt = self.interrupt.lock().unwrap_or_else(PoisonError::into_inner);
            interrupt();
        }
    }

    fn submit(&self, state: &mut State, index: usize) {
        let queue = &mut state.queues[index];
        let words = std::mem::take(&mut queue.staging);
        let depth = if self.flaw == Flaw::Shallow { 8 } else { 1 << DEPTH_LOG2 };
        if self.flaw == Flaw::Uncounted && !queue.enabled {
            return;
        }
        if !queue.enabled || queue.occupancy() >= depth {
            queue.dropped += 1;
            state.dropped += 1;
            return;
        }
        queue.pending.push_back((queue.generation, words));
        self.changed.notify_all();
    }
}

impl QueueState {
    fn occupancy(&self) -> u32 {
        u32::try_from(self.pending.len()).unwrap_or(u32::MAX) + u32::from(self.at_work)
    }

    fn status(&self) -> u32 {
        let active = if self.occupancy() > 0 { control::ACTIVE } else { 0 };
        let waiting = if self.waiting { control::WAITING } else { 0 };
        u32::from(self.enabled) | active | waiting
    }

    fn enable(&mut self, on: bool) {
        if self.enabled && !on {
            self.generation += 1;
        }
        self.enabled = on;
    }
}

/// Which queue's control or portal page an offset is in, and where in it.
fn page_of(offset: usize, base: usize) -> Option<(usize, usize)> {
    let below = offset.checked_sub(base)?;
    let (queue, register) = (below / PAGE, below % PAGE);
    (queue < QUEUES).then_some((queue, register))
}

impl Registers for Engine {
    fn read32(&self, offset: usize) -> u32 {
        let state = self.state();
        if let Some((index, register)) = page_of(offset, portal::offset(0, 0)) {
            let queue = &state.queues[index];
            let free = if queue.enabled { (1 << DEPTH_LOG2) - queue.occupancy() } else { 0 };
            return match register {
                portal::FREE => free,
                portal::DROPPED => queue.dropped,
                _ => 0,
            };
        }
        if let Some((index, register)) = page_of(offset, control::offset(0, 0)) {
            let queue = &state.queues[index];
            return match register {
                control::CTRL => u32::from(queue.enabled),
                control::STATUS => queue.status(),
                control::PASID => queue.pasid,
                control::IRQ => queue.irq,
                control::OCCUPANCY => queue.occupancy(),
                _ => 0,
            };
        }
        let pri = self.flaw != Flaw::NoPri;
        match offset {
            global::ID => 0x314d_5653,
            global::VERSION => 1,
            global::CAPS => 4 | DEPTH_LOG2 << 8 | u32::from(pri) << 16 | 1 << 17,
            global::STATUS => 0b1011 | u32::from(pri) << 2,
            _ => 0,
        }
    }

    fn read64(&self, offset: usize) -> u64 {
        let state = self.state();
        if let Some((index, register)) = page_of(offset, control::offset(0, 0)) {
            return match register {
                control::PAGE_REQUESTS => state.queues[index].page_requests,
                control::RECORD_LOST => state.queues[index].record_lost,
                _ => 0,
            };
        }
        match offset {
            global::COMPLETED => state.completed,
            global::PAGE_REQUESTS => state.page_requests,
            global::DROPPED => state.dropped,
            global::RECORDS_LOST => state.records_lost,
            global::MISS..global::ADDRESS => state.moments[(offset - global::MISS) / 8],
            global::ADDRESS => state.asked,
            global::SEQUENCE => state.sequence << 32 | state.asker,
            _ => 0,
        }
    }

    fn write32(&self, offset: usize, value: u32) {
        let mut state = self.state();
        if offset == global::CTRL && value & 1 != 0 {
            state.resets += 1;
            state.queues.iter_mut().for_each(|queue| queue.enable(false));
        } else if let Some((index, register)) = page_of(offset, control::offset(0, 0)) {
            let queue = &mut state.queues[index];
            match register {
                control::CTRL => queue.enable(value & 1 != 0),
                control::PASID if !queue.enabled => queue.pasid = value,
                control::IRQ => queue.irq = value,
                _ => {}
            }
        }
    }

    fn write64(&self, offset: usize, value: u64) {
        let mut state = self.state();
        if let Some((index, register)) = page_of(offset, portal::offset(0, 0))
            && register < DESCRIPTOR_WORDS * 8
        {
            state.queues[index].staging[register / 8] = value;
            if register / 8 == DESCRIPTOR_WORDS - 1 {
                self.submit(&mut state, index);
            }
        }
    }
}

const SUCCESS: u8 = 1;
const FAULT: u8 = 2;
const INVALID: u8 = 3;
const ABORTED: u8 = 4;

/// How an operation ended.
struct End {
    status: u8,
    refusal: Option<Refusal>,
    completed: u64,
    result: u64,
}

impl End {
    fn invalid() -> Self {
        Self { status: INVALID, refusal: None, completed: 0, result: 0 }
    }

    fn refused(reason: Reason) -> Self {
        let refusal = Some(Refusal { address: 0, write: false, reason });
        Self { status: FAULT, refusal, completed: 0, result: 0 }
    }
}

fn is_valid(operation: &Operation, record: u64) -> bool {
    let known = operation.opcode <= 5 && operation.flags & 0xf0 == 0 && operation.reserved == 0;
    let fits = |address: u64| address.checked_add(operation.length).is_some() || operation.opcode == 5;
    known
        && record.is_multiple_of(32)
        && operation.length <= LONGEST
        && fits(operation.source)
        && fits(operation.destination)
}

fn write_record(memory: &mut Memory, end: &End, tag: u32, record: u64, aborted: bool) -> Result<(), Refusal> {
    let refusal = end.refusal.unwrap_or(Refusal { address: 0, write: false, reason: Reason::NotAccessible });
    let reason = match refusal.reason {
        Reason::NoPageRequests => 1,
        Reason::Refused => 2,
        _ => 0,
    };
    let information = u8::from(refusal.write) | reason << 1;
    let requests = u16::try_from(memory.requests).unwrap_or(u16::MAX);
    let mut bytes = [0; 32];
    bytes[0] = end.status;
    bytes[1] = information;
    bytes[2..4].copy_from_slice(&requests.to_le_bytes());
    bytes[4..8].copy_from_slice(&tag.to_le_bytes());
    bytes[8..16].copy_from_slice(&end.completed.to_le_bytes());
    bytes[16..24].copy_from_slice(&refusal.address.to_le_bytes());
    bytes[24..32].copy_from_slice(&end.result.to_le_bytes());
    memory.asks = !aborted;
    memory.write_now(record + 8, &bytes[8..])?;
    memory.write_now(record, &bytes[..8])
}

/// An operation at work.
struct Execution<'a> {
    engine: &'a Engine,
    memory: &'a mut Memory,
    index: usize,
    /// Whether the queue was not disabled meanwhile.
    current: &'a dyn Fn() -> bool,
}

/// Why an operation stops.
enum Stop {
    Refused(Refusal),
    Aborted,
    Found(u64),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Execution<'_> {
    fn run(&mut self, operation: &Operation) -> End {
        let (mut completed, mut result) = (0, 0);
        let outcome = if operation.opcode == 5 {
            self.chase(operation, &mut completed, &mut result)
        } else {
            self.span(operation, &mut completed, &mut result)
        };
        self.engine.state().queues[self.index].waiting = false;
        let (status, refusal) = match outcome {
            Ok(()) => (SUCCESS, None),
            Err(Stop::Found(at)) => {
                result = at;
                (SUCCESS, None)
            }
            Err(Stop::Aborted) => (ABORTED, None),
            Err(Stop::Refused(refusal)) => (FAULT, Some(refusal)),
        };
        if refusal.is_some() && self.engine.flaw == Flaw::ForgetsPart {
            completed = 0;
        }
        End { status, refusal, completed, result }
    }

    fn pause(&mut self) -> Result<(), Stop> {
        let mut state = self.engine.state();
        state.queues[self.index].waiting = self.memory.requests > 0;
        drop(state);
        if (self.current)() { Ok(()) } else { Err(Stop::Aborted) }
    }

    /// Everything but lists: piece by piece, none across a page of either side.
    fn span(&mut self, operation: &Operation, completed: &mut u64, result: &mut u64) -> Result<(), Stop> {
        let Operation { opcode, source, destination, length, operand, .. } = *operation;
        self.pause()?;
        let mut sum = u32::try_from(operand & 0xffff_ffff).unwrap_or(0);
        if opcode == 3 {
            *result = NO_DIFFERENCE;
        }
        if length == 0 && opcode == 1 && self.engine.flaw == Flaw::Eager {
            self.memory.read(source, &mut [0])?;
        }
        while opcode != 0 && *completed < length {
            self.pause()?;
            let (from, to) = (source + *completed, destination + *completed);
            let room = PAGE - offset(from).max(offset(to));
            let piece = usize::try_from(length - *completed).unwrap_or(usize::MAX).min(room);
            let mut bytes = vec![0; piece];
            if opcode != 2 {
                self.memory.read(from, &mut bytes)?;
            }
            match opcode {
                1 => {
                    let short = self.engine.flaw == Flaw::LosesByte && length > PAGE as u64;
                    let last = short && *completed + piece as u64 == length;
                    self.memory.write(to, &bytes[..piece - usize::from(last)])?;
                }
                2 => {
                    let aligned = self.engine.flaw == Flaw::RestartsPattern;
                    let shift = if aligned { 0 } else { usize::try_from(*completed % 8).unwrap_or(0) };
                    self.memory.write(to, &model::fill(operand, piece + shift)[shift..])?;
                }
                3 => {
                    let mut other = vec![0; piece];
                    self.memory.read(to, &mut other)?;
                    let blind = self.engine.flaw == Flaw::ComparesPages;
                    if let Some(at) = model::first_difference(&bytes, &other) {
                        let at = at * usize::from(!blind);
                        *completed += at as u64;
                        return Err(Stop::Found(*completed));
                    }
                }
                _ => {
                    sum = model::crc32c(&bytes, sum);
                    *result = u64::from(if self.engine.flaw == Flaw::WrongCrc { !sum } else { sum });
                }
            }
            *completed += piece as u64;
        }
        Ok(())
    }

    fn chase(&mut self, operation: &Operation, hops: &mut u64, result: &mut u64) -> Result<(), Stop> {
        *result = operation.source;
        while *result != 0 && *hops < operation.length {
            self.pause()?;
            let mut next = [0; 8];
            self.memory.read(*result, &mut next)?;
            match u64::from_le_bytes(next) {
                0 if self.engine.flaw == Flaw::ChasesNull => *result = 0,
                0 => return Ok(()),
                next => *result = next,
            }
            *hops += 1;
        }
        Ok(())
    }
}
