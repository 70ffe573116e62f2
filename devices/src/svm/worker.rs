//! The thread that works a queue off, descriptor by descriptor (sections 3 to 5).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arbitrary_int::u3;
use iommu_core::{
    Access, Completion, Dma, DmaFault, Gpa, GroupIndex, Iova, PageRequest, PageRequestOutcome, ResponseCode,
    Session, VendorData,
};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryBackend, Permissions};
use zerocopy::IntoBytes;

use super::atc::QueuePorts;
use super::descriptor::Header;
use super::device::Device;
use super::engine::{Engine, Step};
use super::misbehaviour::Kind;
use super::pri::{Answer, count};
use super::queue::{Fate, Job, Queue};
use super::spec::{FaultInfo, FaultReason, IrqRegister, Record, Status};
use super::stats::Times;
use super::stray::{Start, Way};

/// First and longest pause after an answer that the IOMMU gave because its queue overflowed.
const BACKOFF: (Duration, Duration) = (Duration::from_micros(100), Duration::from_millis(10));

/// How a descriptor ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Success,
    Fault {
        address: Iova,
        access: Access,
        reason: FaultReason,
    },
    Invalid,
    Aborted,
    /// Without a trace.
    Dropped,
}

/// Why memory was not touched.
enum Blocked {
    Fate(Fate),
    Reason(FaultReason),
}

/// What a fault calls for.
enum Remedy {
    Ask,
    None(FaultReason),
}

/// A descriptor at work.
struct Task<'a> {
    job: &'a Job,
    header: Header,
    page_requests: u64,
}

/// A queue's worker.
pub struct Worker<M> {
    device: Arc<Device>,
    queue: usize,
    dma: Dma<M>,
    ports: QueuePorts<M>,
}

impl<M: GuestMemoryBackend + Clone> Worker<M> {
    /// The worker of the queue with this index, which exists.
    pub fn new(device: Arc<Device>, queue: usize, dma: Dma<M>) -> Self {
        let ports = QueuePorts::new(&dma, &device.device_tlb);
        Self { device, queue, dma, ports }
    }

    fn queue(&self) -> &Queue {
        &self.device.queues[self.queue]
    }

    /// Works until the queue exits.
    pub fn run(mut self) {
        while let Some(job) = self.queue().next() {
            self.execute(&job);
            self.queue().finished();
        }
    }

    fn execute(&mut self, job: &Job) {
        self.device.vanish_if_due();
        let mut task = Task { job, header: job.descriptor.header(), page_requests: 0 };
        let mut record = Record { tag: task.header.tag.into(), ..Record::default() };
        let end = match (self.queue().fate(job), job.descriptor.operation()) {
            (Fate::Go, Ok(operation)) => {
                let mut engine = Engine::new(operation);
                self.stray(job, engine.next_access());
                let end = self.perform(&mut task, &mut engine);
                record.completed = engine.completed().into();
                record.result = engine.result().into();
                end
            }
            (Fate::Go, Err(_)) => End::Invalid,
            (fate, _) => ended(fate),
        };
        self.complete(&mut task, record, end);
    }

    /// What a descriptor did not ask for.
    fn stray(&self, job: &Job, first: Option<(Iova, Access)>) {
        if !self.device.strays() {
            return;
        }
        let queue = self.queue();
        let _gate = queue.enter();
        if queue.fate(job) == Fate::Go && self.device.switches().bus_master() {
            let (address, access) = first.unwrap_or((Iova(0), Access::Read));
            let way = Way { source: self.dma.source(), translator: &**self.dma.translator() };
            self.device.stray(way, &Start { pasid: job.pasid, address, access });
        }
    }

    fn perform(&mut self, task: &mut Task<'_>, engine: &mut Engine) -> End {
        while let Some((address, access)) = engine.next_access() {
            let (step, ats) = match self.in_session(task.job, false, |session| engine.step(session)) {
                Ok(result) => result,
                Err(Blocked::Fate(fate)) => return ended(fate),
                Err(Blocked::Reason(reason)) => return End::Fault { address, access, reason },
            };
            let Step::Fault { fault, access } = step else { continue };
            let address = fault.address();
            match remedy(&fault, ats) {
                Remedy::Ask if task.header.block => {
                    if let Err(end) = self.page_in(task, address, access) {
                        return end;
                    }
                }
                Remedy::Ask => return End::Fault { address, access, reason: FaultReason::NotAccessible },
                Remedy::None(reason) => return End::Fault { address, access, reason },
            }
        }
        End::Success
    }

    /// Runs `work` in a session, with the gate held, if the job and the function's switches allow. Also says
    /// whether the session used the device-TLB. With `aborting`, an aborted job may go on.
    fn in_session<R>(
        &mut self,
        job: &Job,
        aborting: bool,
        work: impl FnOnce(&Session<'_, M>) -> R,
    ) -> Result<(R, bool), Blocked> {
        let queue = &self.device.queues[self.queue];
        let _gate = queue.enter();
        match queue.fate(job) {
            Fate::Go => {}
            Fate::Abort if aborting => {}
            fate => return Err(Blocked::Fate(fate)),
        }
        let switches = self.device.switches();
        if !switches.bus_master() {
            return Err(Blocked::Reason(FaultReason::BusMasterOff));
        }
        if job.pasid.is_some() && !switches.pasid() {
            return Err(Blocked::Reason(FaultReason::Refused));
        }
        let ports = &mut self.ports;
        let ats = switches.ats() && self.device.misbehaviour.happens(Kind::UntranslatedAccess).is_none();
        let port = if ats { &mut ports.translated } else { &mut ports.untranslated };
        let session = port.session(job.pasid);
        Ok((work(&session), ats))
    }

    /// Asks for a page until the translation is there. Neither gate nor session is held while it waits.
    fn page_in(&mut self, task: &mut Task<'_>, address: Iova, access: Access) -> Result<(), End> {
        let fault = |reason| End::Fault { address, access, reason };
        let mut pause = BACKOFF.0;
        loop {
            let mut times = Times { miss: self.device.clock.now(), ..Times::default() };
            let answer = self.ask(task, address, access, &mut times);
            match answer {
                Answer::Retry { overflow: false } => {}
                Answer::Retry { overflow: true } => {
                    let cancelled = || self.queue().fate(task.job) != Fate::Go;
                    self.device.pri.pause(pause, cancelled);
                    pause = (pause * 2).min(BACKOFF.1);
                }
                Answer::Invalid => return Err(fault(FaultReason::NotAccessible)),
                Answer::Unavailable => return Err(fault(FaultReason::NoPageRequests)),
                // If it is wanted all the same, the switches changed: the retry tells what holds now.
                Answer::Cancelled => match self.queue().fate(task.job) {
                    Fate::Go => {}
                    fate => return Err(ended(fate)),
                },
            }
            let (found, ats) = self
                .in_session(task.job, false, |session| session.translate(address, access))
                .map_err(|blocked| match blocked {
                    Blocked::Fate(fate) => ended(fate),
                    Blocked::Reason(reason) => fault(reason),
                })?;
            match found.map_err(|found| remedy(&found, ats)) {
                Ok(_) => {
                    times.retry = self.device.clock.now();
                    if matches!(answer, Answer::Retry { .. }) {
                        self.publish(task.job, times, address);
                    }
                    return Ok(());
                }
                Err(Remedy::Ask) => {}
                Err(Remedy::None(reason)) => return Err(fault(reason)),
            }
        }
    }

    /// Makes one page request and waits for the answer.
    fn ask(&self, task: &mut Task<'_>, address: Iova, access: Access, times: &mut Times) -> Answer {
        let (device, queue, job) = (&*self.device, self.queue(), task.job);
        let request = PageRequest {
            source: self.dma.source(),
            pasid: job.pasid,
            address: Iova(address.0 & !0xfff),
            read: !access.is_write(),
            write: access.is_write(),
            execute: false,
            privileged: false,
            last: true,
            group: GroupIndex::truncate(0),
            vendor: VendorData::NONE,
        };
        let cancelled = || queue.fate(job) != Fate::Go;
        let requests = &mut task.page_requests;
        let send = |request: &PageRequest| {
            let _gate = queue.enter();
            let switches = device.switches();
            if cancelled() || !switches.bus_master() || !switches.ats() {
                return None;
            }
            *requests += 1;
            queue.counters.page_requests.count();
            device.counters.page_requests.count();
            let request = device.misbehaviour.outgoing(request);
            let outcome = self.dma.translator().page_request(&request);
            if let PageRequestOutcome::Answered(code) = outcome {
                count(code, &device.counters);
                if code == ResponseCode::Failure {
                    device.pci.pri_response_failure();
                }
            }
            Some(outcome)
        };
        queue.waiting.store(true, Ordering::Relaxed);
        let answer = device.pri.request(request, send, cancelled, times);
        queue.waiting.store(false, Ordering::Relaxed);
        device.tell_if_stopped();
        answer
    }

    /// Shows how a descriptor ended: counters first, then the record, then the interrupt.
    fn complete(&mut self, task: &mut Task<'_>, mut record: Record, end: End) {
        record.status = match end {
            End::Success => Status::Success,
            End::Fault { .. } => Status::Fault,
            End::Invalid => Status::Invalid,
            End::Aborted => Status::Aborted,
            End::Dropped => return,
        } as u8;
        if let End::Fault { address, access, reason } = end {
            let info = FaultInfo::DEFAULT.with_write(access.is_write()).with_reason(u3::new(reason as u8));
            record.fault_info = info.raw_value();
            record.fault_address = address.0.into();
        }
        let counted = self.unless_dropped(task.job, |device, queue| {
            if let End::Fault { .. } = end {
                queue.counters.faulted.count();
            }
            queue.counters.completed.count();
            device.counters.completed.count();
        });
        if !counted {
            return;
        }
        self.queue().completing();
        if let Some(address) = task.header.record
            && !self.write_record(task, address, record)
        {
            self.unless_dropped(task.job, |device, queue| {
                device.counters.records_lost.count();
                queue.counters.record_lost.set(address.0);
            });
        }
        if task.header.interrupt {
            self.unless_dropped(task.job, |device, queue| {
                let irq = IrqRegister::new_with_raw_value(queue.irq());
                if irq.enable() {
                    device.pci.interrupt(irq.vector().value());
                }
            });
        }
    }

    fn publish(&self, job: &Job, times: Times, address: Iova) {
        self.unless_dropped(job, |device, queue| {
            device.timeline.publish(times, address.0 & !0xfff, queue.number());
        });
    }

    /// Shows something of a job, unless it is to leave no trace; says whether it did. Inside the gate, so a reset
    /// that has drained it finds all traces and clears them.
    fn unless_dropped(&self, job: &Job, show: impl FnOnce(&Device, &Queue)) -> bool {
        let queue = self.queue();
        let _gate = queue.enter();
        let wanted = queue.fate(job) != Fate::Drop;
        if wanted {
            show(&self.device, queue);
        }
        wanted
    }

    /// Writes a record, asking for its page if need be. `false`: it could not be written.
    fn write_record(&mut self, task: &mut Task<'_>, address: Iova, mut record: Record) -> bool {
        if !address.0.is_multiple_of(size_of::<Record>() as u64) {
            return false;
        }
        loop {
            record.page_requests = u16::try_from(task.page_requests).unwrap_or(u16::MAX).into();
            match self.in_session(task.job, true, |session| store(session, address, &record)) {
                Ok((Ok(()), _)) => return true,
                Ok((Err(fault), ats)) => {
                    let asks = matches!(remedy(&fault, ats), Remedy::Ask);
                    if !asks || self.page_in(task, address, Access::Write).is_err() {
                        return false;
                    }
                }
                Err(_) => return false,
            }
        }
    }
}

fn ended(fate: Fate) -> End {
    if fate == Fate::Drop { End::Dropped } else { End::Aborted }
}

/// A translation request that came back empty can be helped; an IOMMU that logged a fault for it may have
/// answered so too.
fn remedy(fault: &DmaFault, ats: bool) -> Remedy {
    match fault {
        DmaFault::Missing { .. } if ats => Remedy::Ask,
        DmaFault::Refused(fault) if ats && fault.completion == Completion::Empty => Remedy::Ask,
        DmaFault::Missing { .. } | DmaFault::Refused(_) => Remedy::None(FaultReason::Refused),
        DmaFault::NoMemory { .. } => Remedy::None(FaultReason::NoMemory),
    }
}

/// Stores a record at its address, a multiple of its size: bytes 0 to 7 last, in one store.
fn store<M: GuestMemoryBackend>(
    session: &Session<'_, M>,
    address: Iova,
    record: &Record,
) -> Result<(), DmaFault> {
    let nowhere = || session.fault().unwrap_or(DmaFault::NoMemory { address, gpa: Gpa(0) });
    let bytes = record.as_bytes();
    let slice = session
        .get_slices(GuestAddress(address.0), bytes.len(), Permissions::Write)
        .ok()
        .and_then(|mut slices| slices.next()?.ok())
        .ok_or_else(nowhere)?;
    let (first, rest) = bytes.split_first_chunk::<8>().ok_or_else(nowhere)?;
    // Aligned, so it is one slice, unless a memory region ends inside.
    if slice.len() < bytes.len() {
        return Err(nowhere());
    }
    slice.offset(first.len()).map_err(|_| nowhere())?.copy_from(rest);
    slice.store(u64::from_ne_bytes(*first), 0, Ordering::Release).map_err(|_| nowhere())
}
