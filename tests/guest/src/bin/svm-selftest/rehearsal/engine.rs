//! The model's registers, queues and workers.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::Result;

use super::Flaw;
use super::memory::Memory;
use super::operation::{ABORTED, End, write_record};
use super::queue::{Job, QueueState};
use super::sharing::Sharing;
use crate::endpoint::{DESCRIPTOR_WORDS, Operation, Registers, control, global, portal, window};
use crate::sys::PAGE;

const QUEUES: usize = 4;
/// The flag in a descriptor's first word.
const WANTS_RECORD: u64 = 1 << 8;
const DEPTH_LOG2: u32 = 6;
const RESPONSES_SUCCESS: usize = global::RESPONSES[0];

#[derive(Default)]
pub(super) struct State {
    pub(super) queues: [QueueState; QUEUES],
    pub(super) sharing: Sharing,
    completed: u64,
    page_requests: u64,
    page_groups: u64,
    dropped: u64,
    records_lost: u64,
    moments: [u64; 5],
    asked: u64,
    asker: u64,
    sequence: u64,
    /// Engines in use; with 0 every queue has one.
    engines: u32,
    /// Counts resets: what a device knows of memory ends with each.
    resets: u64,
}

impl State {
    /// Whether a queue may begin a descriptor: always, or if it is furthest behind its share of the only engine.
    fn has_turn(&self, index: usize, flaw: Flaw) -> bool {
        if self.engines != 1 {
            return true;
        }
        if flaw == Flaw::Starves {
            let queue = &self.queues[index];
            return !queue.enabled || self.queues.iter().all(|other| other.priority <= queue.priority);
        }
        let moved =
            |index: usize| (self.queues[index].bytes / u64::from(self.queues[index].priority + 1), index);
        let others = (0..QUEUES).filter(|&other| self.queues[other].occupancy() > 0);
        others.map(moved).all(|other| moved(index) <= other)
    }
}

/// The model.
pub(super) struct Engine {
    pub(super) flaw: Flaw,
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

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// One worker: takes the descriptors of its queues, for ever.
    fn work(&self, queues: &[usize], mut memory: Memory) {
        let mut resets = 0;
        loop {
            let (index, job) = self.next(queues);
            let now = self.state().resets;
            if std::mem::replace(&mut resets, now) != now {
                memory.forget();
            }
            self.carry_out(index, &job, &mut memory);
            let mut state = self.state();
            state.queues[index].at_work = false;
            state.queues[index].finished = job.number;
            drop(state);
            self.changed.notify_all();
        }
    }

    /// Whether a descriptor is still wanted.
    pub(super) fn current(&self, index: usize, job: &Job) -> bool {
        let queue = &self.state().queues[index];
        queue.generation == job.generation && job.number > queue.aborted
    }

    /// Shows how a descriptor ended.
    pub(super) fn tell(&self, index: usize, memory: &mut Memory, words: &[u64; DESCRIPTOR_WORDS], end: &End) {
        let (operation, tag, record) = Operation::decode(words);
        // Whoever sees the record looks at the counters next.
        let counted = memory.requests;
        self.count(index, memory, counted);
        self.state().queues[index].bytes += end.completed;
        let aborted = end.status == ABORTED;
        let told = (aborted && self.flaw == Flaw::SilentAbort)
            || words[0] & WANTS_RECORD == 0
            || (memory.reachable && write_record(memory, end, tag, record, aborted).is_ok());
        let more = memory.requests - counted;
        self.count(index, memory, more);
        self.complete(index, memory, (!told).then_some(record));
        if operation.interrupts() || self.flaw == Flaw::Chatty {
            self.send_interrupt(index);
        }
    }

    fn next(&self, queues: &[usize]) -> (usize, Job) {
        let mut state = self.state();
        loop {
            for &index in queues {
                if !state.has_turn(index, self.flaw) {
                    continue;
                }
                let pending = &mut state.queues[index].pending;
                let next = if self.flaw == Flaw::Reorders { pending.pop_back() } else { pending.pop_front() };
                if let Some(job) = next {
                    state.queues[index].at_work = true;
                    return (index, job);
                }
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn count(&self, index: usize, memory: &mut Memory, page_requests: u64) {
        let mut state = self.state();
        state.page_groups += std::mem::take(&mut memory.groups);
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

    /// Takes a descriptor that was written to a queue's portal or, with its PASID, to a window.
    fn submit(&self, state: &mut State, index: usize, page: usize, words: [u64; DESCRIPTOR_WORDS]) -> u32 {
        let pasid = if page == 0 { state.queues[index].pasid } else { state.sharing.pasid(page - 1) };
        let queue = &mut state.queues[index];
        let depth = if self.flaw == Flaw::Shallow { 8 } else { 1 << DEPTH_LOG2 };
        if self.flaw == Flaw::Uncounted && !queue.enabled {
            return portal::ACCEPTED;
        }
        if !queue.enabled || queue.shared != (page > 0) {
            state.dropped += 1;
            return portal::DISABLED;
        }
        if queue.occupancy() >= depth {
            state.dropped += 1;
            return portal::FULL;
        }
        queue.submitted += 1;
        let own =
            page == 0 || pasid == super::own_pasid() | control::VALID || self.flaw == Flaw::MixesWindows;
        let pasid = (pasid & control::VALID != 0).then_some(own);
        queue.pending.push_back(Job {
            words,
            page,
            pasid,
            number: queue.submitted,
            generation: queue.generation,
        });
        self.changed.notify_all();
        portal::ACCEPTED
    }

    fn write_portal(&self, state: &mut State, index: usize, register: usize, value: u64) {
        if let Some(words) = state.queues[index].portal.write(register, value) {
            let outcome = self.submit(state, index, 0, words);
            state.queues[index].portal.note(outcome, self.flaw);
        }
    }

    fn write_window(&self, state: &mut State, number: usize, register: usize, value: u64) {
        if let Some(words) = state.sharing.page(number).write(register, value) {
            let queue = state.sharing.queue(number).filter(|queue| *queue < QUEUES);
            let outcome = queue.map(|queue| self.submit(state, queue, number + 1, words));
            let outcome = outcome.unwrap_or(portal::DISABLED);
            state.sharing.page(number).note(outcome, self.flaw);
        }
    }
}

/// Which queue's control or portal page an offset is in, and where in it.
fn page_of(offset: usize, base: usize) -> Option<(usize, usize)> {
    let below = offset.checked_sub(base)?;
    let (queue, register) = (below / PAGE, below % PAGE);
    (queue < QUEUES).then_some((queue, register))
}

fn window_of(offset: usize) -> Option<(usize, usize)> {
    let below = offset.checked_sub(window::offset(0, 0))?;
    (below < window::COUNT * PAGE).then_some((below / PAGE, below % PAGE))
}

impl Registers for Engine {
    fn read32(&self, offset: usize) -> u32 {
        let state = self.state();
        if let Some((index, register)) = page_of(offset, portal::offset(0, 0)) {
            let queue = &state.queues[index];
            let open = queue.enabled && !queue.shared;
            return queue.portal.read(register, if open { (1 << DEPTH_LOG2) - queue.occupancy() } else { 0 });
        }
        if let Some((index, register)) = page_of(offset, control::offset(0, 0)) {
            let queue = &state.queues[index];
            return match register {
                control::CTRL => u32::from(queue.enabled),
                control::STATUS => queue.status(),
                control::PASID => queue.pasid,
                control::IRQ => queue.irq,
                control::OCCUPANCY => queue.occupancy(),
                control::PRIORITY => queue.priority,
                _ => 0,
            };
        }
        if let Some((number, register)) = window_of(offset) {
            return state.sharing.read(number, register, &state.queues, 1 << DEPTH_LOG2);
        }
        let pri = self.flaw != Flaw::NoPri;
        match offset {
            global::ID => 0x314d_5653,
            global::VERSION => 2,
            global::LIMITS => 0x0a10_1004,
            global::ENGINES => state.engines,
            global::COMMAND_STATUS => state.sharing.command_state(&state.queues, self.flaw),
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
                control::BYTES => state.queues[index].bytes,
                control::RECORD_LOST => state.queues[index].record_lost,
                _ => 0,
            };
        }
        match offset {
            global::COMPLETED => state.completed,
            global::PAGE_REQUESTS => state.page_requests,
            // Each is answered when it is counted.
            global::PAGE_GROUPS | RESPONSES_SUCCESS => state.page_groups,
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
            state.sharing.close();
            self.changed.notify_all();
        } else if offset == global::COMMAND {
            let State { sharing, queues, .. } = &mut *state;
            sharing.command(value, queues);
            self.changed.notify_all();
        } else if offset == global::ENGINES {
            state.engines = value;
            self.changed.notify_all();
        } else if state.sharing.write(offset, value) {
        } else if let Some((index, register)) = page_of(offset, control::offset(0, 0)) {
            let queue = &mut state.queues[index];
            match register {
                control::CTRL => {
                    queue.enable(value & control::ENABLE != 0);
                    queue.shared |= value & control::SHARED != 0;
                }
                control::PASID if !queue.enabled => queue.pasid = value,
                control::IRQ => queue.irq = value,
                control::PRIORITY => queue.priority = value,
                _ => {}
            }
        }
    }

    fn write64(&self, offset: usize, value: u64) {
        let mut state = self.state();
        if let Some((index, register)) = page_of(offset, portal::offset(0, 0)) {
            self.write_portal(&mut state, index, register, value);
        } else if let Some((number, register)) = window_of(offset) {
            self.write_window(&mut state, number, register, value);
        }
    }
}
