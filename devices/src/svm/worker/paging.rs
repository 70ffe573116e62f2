//! Missing pages: how a descriptor asks for them, alone, several at once, or ahead of need (section 5).

use std::sync::atomic::Ordering;
use std::time::Duration;

use iommu_core::{
    Access, DmaFault, GroupIndex, Iova, PageRequest, PageRequestOutcome, ResponseCode, Session, VendorData,
};
use vm_memory::GuestMemoryBackend;

use super::{End, Fate, FaultReason, Outcome, Remedy, Task, Worker, ended, remedy};
use crate::svm::descriptor::Span;
use crate::svm::pri::{Answer, Wish, count};
use crate::svm::queue::Job;
use crate::svm::spec::GROUP_PAGES;
use crate::svm::stats::Times;

/// First and longest pause after an answer that the IOMMU gave because its queue overflowed.
const BACKOFF: (Duration, Duration) = (Duration::from_micros(100), Duration::from_millis(10));
const PAGE: u64 = 0x1000;
/// Most pages that a prefetch looks up in one session.
const LOOK_UPS: u64 = 256;

/// An access that a translation is missing for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Miss {
    pub(super) address: Iova,
    pub(super) access: Access,
    /// The last address that will be accessed in the same way.
    pub(super) last: Iova,
}

impl Miss {
    pub(super) fn alone(address: Iova, access: Access) -> Self {
        Self { address, access, last: address }
    }

    pub(super) fn of(fault: &DmaFault, access: Access) -> Self {
        Self::alone(fault.address(), access)
    }

    pub(super) fn fault(&self, reason: FaultReason) -> End {
        End::Fault { address: self.address, access: self.access, reason }
    }
}

impl<M: GuestMemoryBackend + Clone> Worker<M> {
    /// Asks for a page until the translation is there. Neither gate nor session is held while it waits.
    pub(super) fn page_in(&mut self, task: &mut Task<'_>, miss: Miss) -> Result<(), End> {
        let mut pause = BACKOFF.0;
        let mut ahead = task.header.ahead;
        loop {
            let mut times = Times { miss: self.device.clock.now(), ..Times::default() };
            let pages = self.missing(task.job, &miss, ahead)?;
            let (answer, sent) = self.ask(task, &pages, miss.access, &mut times);
            match answer {
                Answer::Retry { overflow: false } => {}
                Answer::Retry { overflow: true } => {
                    self.pause(task.job, pause);
                    pause = (pause * 2).min(BACKOFF.1);
                }
                // Perhaps another page of the group.
                Answer::Invalid if sent > 1 => ahead = 0,
                Answer::Invalid => return Err(miss.fault(FaultReason::NotAccessible)),
                Answer::Unavailable => return Err(miss.fault(FaultReason::NoPageRequests)),
                // If it is wanted all the same, the switches changed: the retry tells what holds now.
                Answer::Cancelled => match self.queue().fate(task.job) {
                    Fate::Go => {}
                    fate => return Err(ended(fate)),
                },
            }
            let (found, ats) = self
                .in_session(task.job, false, |session| session.translate(miss.address, miss.access))
                .map_err(|blocked| blocked.end(miss.address, miss.access))?;
            match found.map_err(|found| remedy(&found, ats)) {
                Ok(_) => {
                    times.retry = self.device.clock.now();
                    if matches!(answer, Answer::Retry { .. }) {
                        self.publish(task.job, times, miss.address);
                    }
                    return Ok(());
                }
                Err(Remedy::Ask) => {}
                Err(Remedy::None(reason)) => return Err(miss.fault(reason)),
            }
        }
    }

    /// The page that is missing, and those of the next `ahead` that are missing too.
    fn missing(&mut self, job: &Job, miss: &Miss, ahead: u8) -> Result<Vec<Iova>, End> {
        let mut pages = vec![page_of(miss.address)];
        let first = pages[0].0;
        let end = miss.last.0.min(first.saturating_add(u64::from(ahead) * PAGE));
        if ahead > 0 {
            let behind = (first..=end).step_by(0x1000).skip(1);
            let look = |session: &Session<'_, M>| {
                let missing = behind.filter(|&page| is_missing(session, page, miss.access));
                pages.extend(missing.take(usize::from(GROUP_PAGES) - 1).map(Iova));
            };
            self.in_session(job, false, look).map_err(|blocked| blocked.end(miss.address, miss.access))?;
        }
        Ok(pages)
    }

    /// Makes page requests of one group, waits for the answer, and says how many requests were sent.
    fn ask(&self, task: &mut Task<'_>, pages: &[Iova], access: Access, times: &mut Times) -> (Answer, usize) {
        let (device, queue, job) = (&*self.device, self.queue(), task.job);
        let wish = Wish { pages, template: self.template(job, access) };
        let mut sent = 0;
        let send = |requests: &[PageRequest], entered: &dyn Fn() -> bool| {
            let outcome = self.send(job, requests, entered);
            sent = if outcome.is_some() { requests.len() } else { 0 };
            outcome
        };
        queue.waiting.store(true, Ordering::Relaxed);
        let answer = device.pri.request(wish, send, || queue.fate(job) != Fate::Go, times);
        queue.waiting.store(false, Ordering::Relaxed);
        task.page_requests += sent as u64;
        device.tell_if_stopped();
        (answer, sent)
    }

    fn template(&self, job: &Job, access: Access) -> PageRequest {
        PageRequest {
            source: self.dma.source(),
            pasid: job.pasid,
            address: Iova(0),
            read: !access.is_write(),
            write: access.is_write(),
            execute: false,
            privileged: false,
            last: true,
            group: GroupIndex::truncate(0),
            vendor: VendorData::NONE,
        }
    }

    /// Hands the requests of a group to the IOMMU, one right after the other, if they may still be made.
    fn send(
        &self,
        job: &Job,
        requests: &[PageRequest],
        entered: &dyn Fn() -> bool,
    ) -> Option<PageRequestOutcome> {
        let (device, queue) = (&*self.device, self.queue());
        let _gate = queue.enter();
        let switches = device.switches();
        let wanted = queue.fate(job) == Fate::Go && switches.bus_master() && switches.ats() && entered();
        if !wanted {
            return None;
        }
        let number = requests.len() as u64;
        queue.counters.page_requests.add(number);
        device.counters.page_requests.add(number);
        device.counters.page_groups.count();
        let mut outcome = None;
        for request in requests {
            let request = device.misbehaviour.outgoing(request);
            outcome = Some(self.dma.translator().page_request(&request));
        }
        if let Some(PageRequestOutcome::Answered(code)) = outcome {
            count(code, &device.counters);
            if code == ResponseCode::Failure {
                device.pci.pri_response_failure();
            }
        }
        outcome
    }

    fn pause(&self, job: &Job, duration: Duration) {
        self.device.pri.pause(duration, || self.queue().fate(job) != Fate::Go);
    }

    fn publish(&self, job: &Job, times: Times, address: Iova) {
        self.unless_dropped(job, |device, queue| {
            device.timeline.publish(times, page_of(address).0, queue.number());
            device.counters.note_served(&times);
        });
    }

    /// Sees that the pages of `span` are there.
    pub(super) fn prefetch(&mut self, task: &mut Task<'_>, span: Span, access: Access) -> Outcome {
        let mut progress = Outcome::from(End::Success);
        let most = usize::from(task.header.ahead.saturating_add(1).min(GROUP_PAGES));
        while progress.completed < span.length() {
            let here = Iova(span.at(progress.completed));
            let last = span.at(span.length() - 1);
            let found = self.in_session(task.job, false, |session| look(session, (here, last), access, most));
            let step = match found {
                Ok((found, ats)) => judge(found, ats, access),
                Err(blocked) => Err(blocked.end(here, access)),
            };
            let step = step.and_then(|(pages, next)| {
                let asked = self.ask_ahead(task, &pages, access)?;
                let missing = self.still_missing(task, &pages[..asked], access)?;
                Ok((missing, pages.get(asked).map_or(next, |unasked| unasked.0)))
            });
            let (missing, next) = match step {
                Ok(step) => step,
                Err(end) => return Outcome { end, ..progress },
            };
            progress.result += missing;
            let done = next.checked_sub(span.at(0)).unwrap_or(u64::MAX);
            progress.completed = done.min(span.length());
        }
        progress
    }

    /// Asks for pages, and waits for the answer if the descriptor says so. How many of them it is through with.
    fn ask_ahead(&mut self, task: &mut Task<'_>, pages: &[Iova], access: Access) -> Result<usize, End> {
        let Some(first) = pages.first() else { return Ok(0) };
        if !task.header.block {
            let job = task.job;
            let mut sent = 0;
            let send = |requests: &[PageRequest], entered: &dyn Fn() -> bool| {
                let outcome = self.send(job, requests, entered);
                sent = if outcome.is_some() { requests.len() } else { 0 };
                outcome
            };
            self.device
                .pri
                .request_without_waiting(Wish { pages, template: self.template(job, access) }, send);
            task.page_requests += sent as u64;
            self.device.tell_if_stopped();
            return Ok(pages.len());
        }
        let (answer, sent) = self.ask(task, pages, access, &mut Times::default());
        match answer {
            Answer::Unavailable => Err(Miss::alone(*first, access).fault(FaultReason::NoPageRequests)),
            Answer::Cancelled => match self.queue().fate(task.job) {
                Fate::Go => Ok(sent.max(1)),
                fate => Err(ended(fate)),
            },
            Answer::Retry { .. } | Answer::Invalid => Ok(sent.max(1)),
        }
    }

    /// How many of these pages are missing; all of them, if nobody waited for their answer.
    fn still_missing(&mut self, task: &Task<'_>, pages: &[Iova], access: Access) -> Result<u64, End> {
        let Some(first) = pages.first() else { return Ok(0) };
        if !task.header.block {
            return Ok(pages.len() as u64);
        }
        let count = |session: &Session<'_, M>| {
            pages.iter().filter(|page| is_missing(session, page.0, access)).count() as u64
        };
        let missing = self.in_session(task.job, false, count);
        missing.map(|(missing, _)| missing).map_err(|blocked| blocked.end(*first, access))
    }
}

fn page_of(address: Iova) -> Iova {
    Iova(address.0 & !(PAGE - 1))
}

fn is_missing<M: GuestMemoryBackend>(session: &Session<'_, M>, page: u64, access: Access) -> bool {
    session.translate(Iova(page), access).is_err_and(|fault| matches!(remedy(&fault, true), Remedy::Ask))
}

type Found = (Vec<Iova>, u64);

/// What a prefetch found, or why it ends.
fn judge(found: Result<Found, DmaFault>, ats: bool, access: Access) -> Result<Found, End> {
    match found {
        // Without ATS nobody can be asked.
        Ok((pages, _)) if !ats && !pages.is_empty() => {
            Err(Miss::alone(pages[0], access).fault(FaultReason::Refused))
        }
        Ok(found) => Ok(found),
        Err(fault) => {
            let reason = match remedy(&fault, ats) {
                Remedy::None(reason) => reason,
                Remedy::Ask => FaultReason::NotAccessible,
            };
            Err(Miss::of(&fault, access).fault(reason))
        }
    }
}

/// Looks for pages from `range.0` to `range.1` that are missing, for `most` of them at most. Returns them, and the first
/// address behind what was looked at, 0 if that is behind the last address there is.
fn look<M: GuestMemoryBackend>(
    session: &Session<'_, M>,
    range: (Iova, u64),
    access: Access,
    most: usize,
) -> Result<Found, DmaFault> {
    let mut pages = Vec::new();
    let mut page = page_of(range.0).0;
    for _ in 0..LOOK_UPS {
        match session.translate(Iova(page), access) {
            Ok(_) => {}
            Err(fault) if matches!(remedy(&fault, true), Remedy::Ask) => pages.push(Iova(page)),
            Err(fault) => return Err(fault),
        }
        page = page.wrapping_add(PAGE);
        if page == 0 || page > range.1 || pages.len() >= most {
            break;
        }
    }
    Ok((pages, page))
}
