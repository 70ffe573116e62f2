//! A queue: its ring, its registers, and what disable and reset do to it (sections 2.2, 3 and 8).
//!
//! Disable and reset never touch a descriptor themselves. They raise the number below which descriptors are
//! to be aborted or dropped, and wake the worker; it finds out the next time it looks. An abort by command marks
//! the descriptors it means, one by one, since others stay.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use iommu_core::Pasid;
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::spec::{Descriptor, IrqRegister, OutcomeCode, PasidRegister, PriorityRegister, QueueStatus};
use super::stats::Counter;

/// So often a worker looks for a descriptor before it sleeps: some microseconds, which is less than it takes to wake it.
const LOOKS: u32 = 16;

/// A descriptor with what held when it was submitted.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// As submitted.
    pub descriptor: Descriptor,
    /// The queue's or window's PASID.
    pub pasid: Option<Pasid>,
    /// Where it was submitted: 0 the portal, else window `page - 1`.
    pub page: usize,
    /// Differs after the queue or the window was enabled anew.
    pub binding: (u64, u64),
    /// Counts from 1 in its queue.
    number: u64,
    epoch: u64,
    /// A command aborted it while it was queued.
    aborted: bool,
}

/// The page through which a descriptor comes.
#[derive(Clone, Copy, Debug)]
pub enum Via {
    /// The queue's portal.
    Portal,
    /// A window.
    Window {
        /// Its number.
        number: usize,
        /// Its PASID register.
        pasid: u32,
        /// Counts how often it was enabled.
        generation: u64,
    },
}

/// Which descriptors are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// All of this queue.
    Queue(u8),
    /// Those with this PASID, of every queue.
    Pasid(Pasid),
}

fn pasid_of(register: u32) -> Option<Pasid> {
    let register = PasidRegister::new_with_raw_value(register);
    register.valid().then(|| Pasid::truncate(register.pasid().value()))
}

/// What is to become of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is wanted.
    Go,
    /// It is to end with the status "aborted".
    Abort,
    /// It is to end without a trace.
    Drop,
}

#[derive(Default)]
struct State {
    enabled: bool,
    shared: bool,
    exiting: bool,
    pasid: u32,
    irq: u32,
    ring: VecDeque<Job>,
    worker: WorkerState,
    /// Number and PASID of the job that the worker has.
    running: Option<(u64, Option<Pasid>)>,
    epoch: u64,
    /// Number of the last job taken in.
    submitted: u64,
    /// Jobs up to this number have ended.
    finished: u64,
}

#[derive(Default, PartialEq, Eq)]
enum WorkerState {
    #[default]
    Idle,
    /// It has taken a job out of the ring, which still holds its place.
    Running,
    /// The job's place is free: its record may be seen at any moment, and be answered by another submission.
    Completing,
}

impl State {
    fn occupancy(&self) -> usize {
        self.ring.len() + usize::from(self.worker == WorkerState::Running)
    }

    fn take(&mut self) -> Option<Job> {
        let job = self.ring.pop_front()?;
        self.worker = WorkerState::Running;
        self.running = Some((job.number, job.pasid));
        Some(job)
    }

    fn active(&self) -> bool {
        !self.ring.is_empty() || self.worker != WorkerState::Idle
    }
}

/// Counters of a queue.
#[derive(Default)]
pub struct QueueCounters {
    /// Descriptors that ended.
    pub completed: Counter,
    /// Descriptors that ended in a fault.
    pub faulted: Counter,
    /// Page requests.
    pub page_requests: Counter,
    /// Address of the last record lost.
    pub record_lost: AtomicU64,
    /// Bytes completed.
    pub bytes: Counter,
}

/// The permission to touch memory or to make a page request. Never held while waiting.
pub type Gate<'a> = MutexGuard<'a, ()>;

/// On cache lines of its own: submissions would slow down what a worker looks at in every session.
#[repr(align(128))]
struct Apart<T>(T);

/// One queue.
pub struct Queue {
    number: u8,
    depth: usize,
    state: Apart<Mutex<State>>,
    work: Condvar,
    gate: Mutex<()>,
    /// Jobs with a smaller epoch are aborted.
    abort_below: AtomicU64,
    /// Jobs with a smaller epoch are dropped.
    drop_below: AtomicU64,
    /// The number of a job that was aborted by command while the worker had it.
    abort_running: AtomicU64,
    priority: AtomicU32,
    /// The job at work waits for a page response.
    pub waiting: AtomicBool,
    /// Counters.
    pub counters: QueueCounters,
}

impl Queue {
    /// Disabled and empty; holds `2^depth_log2` descriptors.
    #[must_use]
    pub fn new(number: u8, depth_log2: u8) -> Self {
        Self {
            number,
            depth: 1 << depth_log2,
            state: Apart(Mutex::default()),
            work: Condvar::new(),
            gate: Mutex::default(),
            abort_below: AtomicU64::new(0),
            drop_below: AtomicU64::new(0),
            abort_running: AtomicU64::new(0),
            priority: AtomicU32::new(0),
            waiting: AtomicBool::new(false),
            counters: QueueCounters::default(),
        }
    }

    /// Its number in the function.
    #[must_use]
    pub fn number(&self) -> u8 {
        self.number
    }

    /// Takes a descriptor, or says why not.
    pub fn submit(&self, descriptor: Descriptor, via: Via) -> OutcomeCode {
        let mut state = self.state.0.lock();
        let (pasid, page, generation) = match via {
            Via::Portal => (state.pasid, 0, 0),
            Via::Window { number, pasid, generation } => (pasid, number + 1, generation),
        };
        if !state.enabled || state.shared != (page > 0) {
            return OutcomeCode::Disabled;
        }
        if state.occupancy() >= self.depth {
            return OutcomeCode::Full;
        }
        state.submitted += 1;
        let (number, epoch) = (state.submitted, state.epoch);
        let binding = (epoch, generation);
        let pasid = pasid_of(pasid);
        state.ring.push_back(Job { descriptor, pasid, page, binding, number, epoch, aborted: false });
        drop(state);
        self.work.notify_one();
        OutcomeCode::Accepted
    }

    /// The last of the descriptors meant that has not ended: when [`Self::finished_up_to`] has reached its number, all of
    /// them have. With `abort` they end as aborted; the caller wakes who waits for a page response.
    pub fn select(&self, selection: Selection, abort: bool) -> u64 {
        let mut state = self.state.0.lock();
        let meant = |pasid: Option<Pasid>| match selection {
            Selection::Queue(number) => number == self.number,
            Selection::Pasid(wanted) => pasid == Some(wanted),
        };
        let mut last = 0;
        if let Some((number, pasid)) = state.running
            && meant(pasid)
        {
            last = number;
            if abort {
                self.abort_running.store(number, Ordering::Release);
            }
        }
        for job in state.ring.iter_mut().filter(|job| meant(job.pasid)) {
            last = job.number;
            job.aborted |= abort;
        }
        last
    }

    /// All jobs up to this number have ended, record and interrupt included.
    #[must_use]
    pub fn finished_up_to(&self) -> u64 {
        self.state.0.lock().finished
    }

    /// The next job, as soon as there is one. `None`: the worker is to end.
    pub fn next(&self) -> Option<Job> {
        let mut state = self.state.0.lock();
        let mut looks = 0;
        loop {
            if state.exiting {
                return None;
            }
            if let Some(job) = state.take() {
                return Some(job);
            }
            looks += 1;
            if looks < LOOKS {
                MutexGuard::unlocked(&mut state, std::thread::yield_now);
            } else {
                self.work.wait(&mut state);
            }
        }
    }

    /// The job that [`Self::next`] returned is about to show its record: its place is free.
    pub fn completing(&self) {
        self.state.0.lock().worker = WorkerState::Completing;
    }

    /// The job at work has ended, record and interrupt included. The next one, if there is one already: it is at work
    /// now.
    pub fn finished(&self) -> Option<Job> {
        let mut state = self.state.0.lock();
        state.worker = WorkerState::Idle;
        if let Some((number, _)) = state.running.take() {
            state.finished = number;
        }
        state.take()
    }

    /// What is to become of a job now. It may get worse at any moment. Who looks inside the gate and then acts
    /// there is done when a [`Self::drain`] that follows the change returns.
    #[must_use]
    pub fn fate(&self, job: &Job) -> Fate {
        if job.epoch < self.drop_below.load(Ordering::Acquire) {
            Fate::Drop
        } else if job.epoch < self.abort_below.load(Ordering::Acquire)
            || job.aborted
            || job.number == self.abort_running.load(Ordering::Acquire)
        {
            Fate::Abort
        } else {
            Fate::Go
        }
    }

    /// Enters the gate. What may be done inside is to be looked up after entering.
    pub fn enter(&self) -> Gate<'_> {
        self.gate.lock()
    }

    /// Waits until who is inside the gate has left it: at most for one session or one page request call.
    pub fn drain(&self) {
        drop(self.gate.lock());
    }

    /// Whether it takes descriptors.
    #[must_use]
    pub fn enabled(&self) -> bool {
        self.state.0.lock().enabled
    }

    /// ENABLE 0 to 1, with SHARED; no effect if it is enabled.
    pub fn enable(&self, shared: bool) {
        let mut state = self.state.0.lock();
        if !state.enabled {
            state.enabled = true;
            state.shared = shared;
        }
    }

    /// ENABLE 1 to 0: jobs end as aborted. The caller wakes who waits for a page response.
    pub fn disable(&self) {
        let mut state = self.state.0.lock();
        if state.enabled {
            (state.enabled, state.shared) = (false, false);
            self.end_epoch(&mut state, &[&self.abort_below]);
        }
    }

    /// Function reset: everything as at power-on, jobs end without a trace. The caller wakes who waits for a
    /// page response, then drains.
    pub fn reset(&self) {
        let mut state = self.state.0.lock();
        state.ring.clear();
        (state.enabled, state.shared) = (false, false);
        (state.pasid, state.irq) = (0, 0);
        self.priority.store(0, Ordering::Relaxed);
        self.end_epoch(&mut state, &[&self.abort_below, &self.drop_below]);
    }

    /// All counters to 0. After a reset and a drain nothing of before counts any more.
    pub fn clear_counters(&self) {
        let QueueCounters { completed, faulted, page_requests, record_lost, bytes } = &self.counters;
        record_lost.store(0, Ordering::Relaxed);
        for counter in [completed, faulted, page_requests, bytes] {
            counter.clear();
        }
    }

    /// Tells the worker to end. The caller wakes who waits for a page response.
    pub fn exit(&self) {
        let mut state = self.state.0.lock();
        state.enabled = false;
        state.exiting = true;
        state.ring.clear();
        self.end_epoch(&mut state, &[&self.abort_below, &self.drop_below]);
        self.work.notify_all();
    }

    fn end_epoch(&self, state: &mut State, limits: &[&AtomicU64]) {
        state.epoch += 1;
        for limit in limits {
            limit.store(state.epoch, Ordering::Release);
        }
    }

    /// STATUS.
    #[must_use]
    pub fn status(&self) -> QueueStatus {
        let state = self.state.0.lock();
        QueueStatus::DEFAULT
            .with_enabled(state.enabled)
            .with_active(state.active())
            .with_waiting(self.waiting.load(Ordering::Relaxed))
            .with_shared(state.shared)
    }

    /// Descriptors in it, the one at work included.
    #[must_use]
    pub fn occupancy(&self) -> u32 {
        // Lossless: at most 1024.
        u32::try_from(self.state.0.lock().occupancy()).unwrap_or(u32::MAX)
    }

    /// Descriptors that can be submitted through the portal, or through windows if `shared`.
    #[must_use]
    pub fn free(&self, shared: bool) -> u32 {
        let state = self.state.0.lock();
        let open = state.enabled && state.shared == shared;
        let free = if open { self.depth.saturating_sub(state.occupancy()) } else { 0 };
        u32::try_from(free).unwrap_or(u32::MAX)
    }

    /// PRIORITY register.
    #[must_use]
    pub fn priority(&self) -> u32 {
        self.priority.load(Ordering::Relaxed)
    }

    /// Writes the PRIORITY register.
    pub fn set_priority(&self, value: u32) {
        self.priority.store(value & PriorityRegister::WRITABLE, Ordering::Relaxed);
    }

    /// PASID register.
    #[must_use]
    pub fn pasid(&self) -> u32 {
        self.state.0.lock().pasid
    }

    /// Writes the PASID register; ignored while enabled.
    pub fn set_pasid(&self, value: u32) {
        let mut state = self.state.0.lock();
        if !state.enabled {
            state.pasid = value & PasidRegister::WRITABLE;
        }
    }

    /// IRQ register.
    #[must_use]
    pub fn irq(&self) -> u32 {
        self.state.0.lock().irq
    }

    /// Writes the IRQ register.
    pub fn set_irq(&self, value: u32) {
        self.state.0.lock().irq = value & IrqRegister::WRITABLE;
    }
}
