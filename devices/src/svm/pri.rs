//! Page requests of the function (PRI, section 5): which are outstanding, and who waits for which answer.
//!
//! Requests are made in groups; the last of a group is marked, and a group gets one answer. A group is entered before
//! it is sent, so an answer that overtakes the call finds it. It leaves when it is answered, or when PRI is reset; a
//! group whose descriptor was aborted stays, because its answer is still to come and its index must not be used
//! meanwhile. An IOMMU that has no listener may answer every request of a group: the first answer counts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use iommu_core::{GroupIndex, Iova, PageRequest, PageRequestOutcome, PageResponse, ResponseCode};
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::misbehaviour::{Kind, Misbehaviour, STRAY_GROUP};
use super::spec::{GROUP_PAGES, PAGE_REQUEST_CAPACITY};
use super::stats::{Clock, Counters, Times};

/// What became of a page request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Translate again. With `overflow` the guest never saw the request: wait a little before.
    Retry {
        /// Answered by the IOMMU itself.
        overflow: bool,
    },
    /// The page is not accessible.
    Invalid,
    /// Page requests are off, not allocated or broken, or went off while the request was outstanding.
    Unavailable,
    /// The descriptor is not wanted any more.
    Cancelled,
}

/// What a response did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// It fits no outstanding group.
    pub unexpected: bool,
    /// It was a response failure: the function's PRI status is to say so.
    pub failure: bool,
    /// PRI is disabled, and this was the last that was outstanding.
    pub stopped: bool,
}

/// Most that are outstanding if credits are not kept: half of all indices.
const EXCESS_LIMIT: usize = 256;

struct Group {
    request: PageRequest,
    /// Requests of the group, each of which takes a credit.
    pages: usize,
    /// Tells groups apart that had the same index before and after a reset.
    serial: u64,
    sent: u64,
    answer: Option<ResponseCode>,
    answered: u64,
    /// Nobody waits for the answer any more.
    orphan: bool,
}

#[derive(Default)]
struct State {
    enabled: bool,
    allocation: u32,
    groups: Vec<Group>,
    /// Outstanding ones that no descriptor made.
    strays: usize,
    next_index: u16,
    next_serial: u64,
}

impl State {
    fn usable(&self) -> bool {
        self.enabled && self.allocation > 0
    }

    /// Page requests without an answer.
    fn outstanding(&self) -> usize {
        let groups = self.groups.iter().filter(|group| group.answer.is_none());
        self.strays + groups.map(|group| group.pages).sum::<usize>()
    }

    /// Page requests that may be made now.
    fn credits(&self) -> usize {
        (self.allocation.min(PAGE_REQUEST_CAPACITY) as usize).saturating_sub(self.outstanding())
    }

    /// Whether there is an index for one more even if credits are not kept.
    fn has_index(&self) -> bool {
        self.groups.len() < EXCESS_LIMIT
    }

    fn stopped(&self) -> bool {
        !self.enabled && self.outstanding() == 0
    }

    /// Enters a group under an index that no outstanding group has, for as many of `pages` as there are credits, at
    /// least one. Fewer are outstanding than indices exist.
    fn enter(&mut self, template: &PageRequest, pages: &[Iova], sent: u64) -> (Vec<PageRequest>, u64) {
        let taken = |groups: &[Group], index| {
            index == STRAY_GROUP || groups.iter().any(|group| group.request.group == index)
        };
        while taken(&self.groups, GroupIndex::truncate(self.next_index)) {
            self.next_index = self.next_index.wrapping_add(1);
        }
        let group = GroupIndex::truncate(self.next_index);
        self.next_index = self.next_index.wrapping_add(1);
        self.next_serial += 1;
        let serial = self.next_serial;
        let most = self.credits().clamp(1, GROUP_PAGES.into());
        let pages = &pages[..pages.len().min(most)];
        let request = |(number, address): (usize, &Iova)| PageRequest {
            address: *address,
            last: number + 1 == pages.len(),
            group,
            ..*template
        };
        let requests = pages.iter().enumerate().map(request).collect();
        let request = PageRequest { group, ..*template };
        let pages = pages.len();
        self.groups.push(Group { request, pages, serial, sent, answer: None, answered: 0, orphan: false });
        (requests, serial)
    }

    fn position(&self, serial: u64) -> Option<usize> {
        self.groups.iter().position(|group| group.serial == serial)
    }

    fn forget(&mut self, serial: u64) {
        if let Some(at) = self.position(serial) {
            self.groups.swap_remove(at);
        }
    }
}

/// A group that is wanted: its pages, and what its requests have in common. The group index is chosen when it is
/// entered.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// Pages, the one that is needed first.
    pub pages: &'a [Iova],
    /// What all requests say.
    pub template: PageRequest,
}

/// Hands a group to the IOMMU and returns the outcome of its last request, or `None` if it must not be sent any more.
/// Called at most once, without a lock of this module. What it is given tells whether the group is still entered; to
/// be asked after entering the queue's gate.
pub trait Transmit: FnOnce(&[PageRequest], &dyn Fn() -> bool) -> Option<PageRequestOutcome> {}

impl<F: FnOnce(&[PageRequest], &dyn Fn() -> bool) -> Option<PageRequestOutcome>> Transmit for F {}

/// The page requests of one function.
#[derive(Default)]
pub struct PageRequests {
    state: Mutex<State>,
    changed: Condvar,
    clock: Clock,
    misbehaviour: Arc<Misbehaviour>,
}

impl PageRequests {
    /// None outstanding, disabled. Times are of `clock`.
    #[must_use]
    pub fn new(clock: Clock, misbehaviour: Arc<Misbehaviour>) -> Self {
        Self { clock, misbehaviour, ..Self::default() }
    }

    /// PRI was enabled with this many credits.
    pub fn enable(&self, allocation: u32) {
        let mut state = self.state.lock();
        state.enabled = true;
        state.allocation = allocation;
        self.changed.notify_all();
    }

    /// PRI was disabled: who waits stops waiting. What is outstanding stays so until it is answered.
    pub fn disable(&self) {
        let mut state = self.state.lock();
        state.enabled = false;
        self.changed.notify_all();
    }

    /// PRI was reset, or the function: disabled, and outstanding requests are forgotten.
    pub fn reset(&self) {
        let mut state = self.state.lock();
        state.groups.clear();
        state.strays = 0;
        state.enabled = false;
        self.changed.notify_all();
    }

    /// Whether PRI is disabled and nothing is outstanding.
    #[must_use]
    pub fn stopped(&self) -> bool {
        self.state.lock().stopped()
    }

    /// Whether PRI is enabled and has not failed.
    #[must_use]
    pub fn enabled(&self) -> bool {
        self.state.lock().enabled
    }

    /// Page requests without an answer.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.state.lock().outstanding()
    }

    /// Makes those who wait look at their reason to be cancelled again.
    pub fn wake(&self) {
        // Under the lock: a waiter is then either before its look or in its wait.
        let _state = self.state.lock();
        self.changed.notify_all();
    }

    /// Makes page requests of one group and waits for their answer: for as many pages of `wish` as there are
    /// credits, at least one. `cancelled` is asked again after every [`Self::wake`], with the lock held.
    pub fn request(
        &self,
        wish: Wish<'_>,
        send: impl Transmit,
        cancelled: impl Fn() -> bool,
        times: &mut Times,
    ) -> Answer {
        let mut state = self.state.lock();
        while state.usable() && state.credits() == 0 && !cancelled() {
            if state.has_index() && self.misbehaviour.happens(Kind::ExcessRequest).is_some() {
                break;
            }
            self.changed.wait(&mut state);
        }
        if cancelled() {
            return Answer::Cancelled;
        }
        if !state.usable() {
            return Answer::Unavailable;
        }
        times.sent = self.clock.now();
        let (requests, serial) = state.enter(&wish.template, wish.pages, times.sent);
        drop(state);

        let outcome = send(&requests, &|| self.entered(serial));
        times.queued = self.clock.now();

        let mut state = self.state.lock();
        if outcome == Some(PageRequestOutcome::Queued) {
            return self.wait(state, serial, cancelled, times);
        }
        state.forget(serial);
        self.changed.notify_all();
        times.response = times.queued;
        match outcome {
            Some(PageRequestOutcome::Answered(code)) => self.judge(&mut state, code, true),
            // PRI went off, or the descriptor is not wanted.
            None if cancelled() || state.usable() => Answer::Cancelled,
            None | Some(_) => Answer::Unavailable,
        }
    }

    /// Makes page requests of one group, as many as can be made without waiting, perhaps none, and leaves their answer
    /// to whom it may concern.
    pub fn request_without_waiting(&self, wish: Wish<'_>, send: impl Transmit) {
        let mut state = self.state.lock();
        if !state.usable() || state.credits() == 0 || wish.pages.is_empty() {
            return;
        }
        let (requests, serial) = state.enter(&wish.template, wish.pages, self.clock.now());
        if let Some(group) = state.groups.last_mut() {
            group.orphan = true;
        }
        drop(state);
        let outcome = send(&requests, &|| self.entered(serial));
        if outcome == Some(PageRequestOutcome::Queued) {
            return;
        }
        let mut state = self.state.lock();
        state.forget(serial);
        if let Some(PageRequestOutcome::Answered(code)) = outcome {
            self.judge(&mut state, code, true);
        }
        self.changed.notify_all();
    }

    /// Whether a group is neither answered nor forgotten, and PRI is on.
    fn entered(&self, serial: u64) -> bool {
        let state = self.state.lock();
        state.enabled && state.position(serial).is_some()
    }

    fn wait(
        &self,
        mut state: MutexGuard<'_, State>,
        serial: u64,
        cancelled: impl Fn() -> bool,
        times: &mut Times,
    ) -> Answer {
        loop {
            let Some(at) = state.position(serial) else {
                // Forgotten by a reset, of PRI alone or of the function.
                return if cancelled() { Answer::Cancelled } else { Answer::Unavailable };
            };
            if let Some(code) = state.groups[at].answer {
                times.response = state.groups[at].answered;
                state.groups.swap_remove(at);
                self.changed.notify_all();
                return self.judge(&mut state, code, false);
            }
            let gives_up = cancelled();
            if gives_up || !state.enabled {
                state.groups[at].orphan = true;
                return if gives_up { Answer::Cancelled } else { Answer::Unavailable };
            }
            self.changed.wait(&mut state);
        }
    }

    fn judge(&self, state: &mut State, code: ResponseCode, overflow: bool) -> Answer {
        match code {
            ResponseCode::Success => Answer::Retry { overflow },
            ResponseCode::Invalid => Answer::Invalid,
            ResponseCode::Failure => {
                state.enabled = false;
                self.changed.notify_all();
                Answer::Unavailable
            }
        }
    }

    /// Takes a page group response. Never waits.
    pub fn receive(&self, response: &PageResponse, counters: &Counters) -> Received {
        let mut state = self.state.lock();
        let fits = |group: &&mut Group| {
            group.answer.is_none()
                && group.request.group == response.group
                && group.request.pasid == response.pasid
        };
        let Some(group) = state.groups.iter_mut().find(fits) else {
            if response.group == STRAY_GROUP && state.strays > 0 {
                count(response.code, counters);
                return self.stray_ended(&mut state);
            }
            return Received { unexpected: true, ..Received::default() };
        };
        group.answer = Some(response.code);
        group.answered = self.clock.now();
        counters.answered.note(Duration::from_nanos(group.answered.saturating_sub(group.sent)));
        count(response.code, counters);
        state.groups.retain(|group| !(group.orphan && group.answer.is_some()));
        let failure = response.code == ResponseCode::Failure;
        if failure {
            state.enabled = false;
        }
        self.changed.notify_all();
        Received { unexpected: false, failure, stopped: state.stopped() }
    }

    /// A page request is about to be made that no descriptor waits for, whatever the credits. `false`: PRI is off.
    pub fn add_stray(&self) -> bool {
        let mut state = self.state.lock();
        state.strays += usize::from(state.enabled);
        state.enabled
    }

    /// Such a page request has its answer, or gets none.
    pub fn end_stray(&self) -> Received {
        self.stray_ended(&mut self.state.lock())
    }

    fn stray_ended(&self, state: &mut State) -> Received {
        state.strays = state.strays.saturating_sub(1);
        self.changed.notify_all();
        Received { stopped: state.stopped(), ..Received::default() }
    }

    /// Sleeps, but not longer than until the next [`Self::wake`] that `cancelled` says is meant.
    pub fn pause(&self, duration: Duration, cancelled: impl Fn() -> bool) {
        let end = Instant::now() + duration;
        let mut state = self.state.lock();
        while !cancelled() && state.enabled {
            if self.changed.wait_until(&mut state, end).timed_out() {
                break;
            }
        }
    }
}

/// Counts a response by its code.
pub fn count(code: ResponseCode, counters: &Counters) {
    match code {
        ResponseCode::Success => counters.responses_success.count(),
        ResponseCode::Invalid => counters.responses_invalid.count(),
        ResponseCode::Failure => counters.responses_failure.count(),
    }
}
