//! The thread that works a queue off, descriptor by descriptor (sections 3 to 5).

mod batch;
mod paging;
mod record;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use arbitrary_int::u3;
use iommu_core::{Access, Completion, Dma, DmaFault, Iova, Session};
use vm_memory::GuestMemoryBackend;

use super::atc::QueuePorts;
use super::descriptor::{Header, Operation, Work};
use super::device::Device;
use super::engine::{Engine, Step};
use super::misbehaviour::Kind;
use super::queue::{Fate, Job, Queue};
use super::spec::{
    Descriptor, FaultInfo, FaultReason, HOP_BYTES, IrqRegister, PriorityRegister, Record, Status, WINDOWS,
};
use super::stray::{Start, Way};
use paging::Miss;

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
    /// A batch of which not all succeeded.
    Incomplete,
    /// Not started, for one before it did not succeed.
    Fenced,
    /// Without a trace.
    Dropped,
}

/// How a descriptor ended, and what it did until then.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    end: End,
    completed: u64,
    result: u64,
}

impl From<End> for Outcome {
    fn from(end: End) -> Self {
        Self { end, completed: 0, result: 0 }
    }
}

/// Why memory was not touched.
enum Blocked {
    Fate(Fate),
    Reason(FaultReason),
}

impl Blocked {
    fn end(self, address: Iova, access: Access) -> End {
        match self {
            Self::Fate(fate) => ended(fate),
            Self::Reason(reason) => End::Fault { address, access, reason },
        }
    }
}

/// What a fault calls for.
enum Remedy {
    Ask,
    None(FaultReason),
}

/// A descriptor at work.
struct Task<'a> {
    /// As it was submitted. For one of a batch, the batch.
    job: &'a Job,
    header: Header,
    page_requests: u64,
    /// It is one of a batch.
    element: bool,
}

/// Descriptors of one portal or window that did not succeed, since it was enabled or drained.
#[derive(Clone, Copy, Default)]
struct Failures {
    binding: (u64, u64),
    count: u64,
}

/// A queue's worker.
pub struct Worker<M> {
    device: Arc<Device>,
    queue: usize,
    dma: Dma<M>,
    ports: QueuePorts<M>,
    /// Bytes moved since an engine was asked for.
    moved: u64,
    /// By page, the portal first.
    failures: [Failures; WINDOWS as usize + 1],
}

impl<M: GuestMemoryBackend + Clone> Worker<M> {
    /// The worker of the queue with this index, which exists.
    pub fn new(device: Arc<Device>, queue: usize, dma: Dma<M>) -> Self {
        let ports = QueuePorts::new(&dma, &device.device_tlb);
        Self { device, queue, dma, ports, moved: 0, failures: Default::default() }
    }

    fn queue(&self) -> &Queue {
        &self.device.queues[self.queue]
    }

    /// Works until the queue exits.
    pub fn run(mut self) {
        let mut next = None;
        while let Some(job) = next.take().or_else(|| self.queue().next()) {
            self.execute(&job);
            next = self.queue().finished();
            self.device.look_at_command();
        }
    }

    fn execute(&mut self, job: &Job) {
        self.device.vanish_if_due();
        let mut task = Task { job, header: job.descriptor.header(), page_requests: 0, element: false };
        let failures = self.failures(job).count;
        let outcome = match (self.queue().fate(job), job.descriptor.work()) {
            (Fate::Go, Err(_)) => End::Invalid.into(),
            (Fate::Go, Ok(_)) if task.header.fence && failures > 0 => End::Fenced.into(),
            (Fate::Go, Ok(work)) => match work {
                Work::Batch(batch) => self.batch(&mut task, batch),
                Work::Drain => {
                    self.failures(job).count = 0;
                    Outcome { result: failures, ..End::Success.into() }
                }
                work => self.work(&mut task, work),
            },
            (fate, _) => ended(fate).into(),
        };
        self.failures(job).count += u64::from(outcome.end != End::Success);
        self.complete(&mut task, outcome);
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

    fn failures(&mut self, job: &Job) -> &mut Failures {
        let failures = &mut self.failures[job.page];
        if failures.binding != job.binding {
            *failures = Failures { binding: job.binding, count: 0 };
        }
        failures
    }

    /// What may stand in a batch, too.
    fn work(&mut self, task: &mut Task<'_>, work: Work) -> Outcome {
        match work {
            Work::Operate(operation) => self.operate(task, operation),
            Work::Prefetch { span, access } => self.prefetch(task, span, access),
            Work::Batch(_) | Work::Drain => End::Invalid.into(),
        }
    }

    fn operate(&mut self, task: &mut Task<'_>, operation: Operation) -> Outcome {
        let scale = if matches!(operation, Operation::Chase { .. }) { HOP_BYTES } else { 1 };
        let mut engine = Engine::new(operation);
        self.stray(task.job, engine.next_access());
        let end = self.perform(task, &mut engine, scale);
        Outcome { end, completed: engine.completed(), result: engine.result() }
    }

    fn perform(&mut self, task: &mut Task<'_>, engine: &mut Engine, scale: u64) -> End {
        while let Some((address, access)) = engine.next_access() {
            let before = engine.completed();
            let done = self.in_session(task.job, false, |session| engine.step(session));
            let bytes = (engine.completed() - before) * scale;
            self.moved += bytes;
            self.queue().counters.bytes.add(bytes);
            let (step, ats) = match done {
                Ok(result) => result,
                Err(blocked) => return blocked.end(address, access),
            };
            let Step::Fault { fault, access } = step else { continue };
            let last = engine.last_after(fault.address(), access);
            if let Err(end) =
                self.resolve(task, Miss { access, last, ..Miss::of(&fault, access) }, &fault, ats)
            {
                return end;
            }
        }
        End::Success
    }

    /// Does about a fault what can be done. `Err`: nothing.
    fn resolve(&mut self, task: &mut Task<'_>, miss: Miss, fault: &DmaFault, ats: bool) -> Result<(), End> {
        match remedy(fault, ats) {
            Remedy::Ask if task.header.block => self.page_in(task, miss),
            Remedy::Ask => Err(miss.fault(FaultReason::NotAccessible)),
            Remedy::None(reason) => Err(miss.fault(reason)),
        }
    }

    /// Runs `work` in a session, with an engine and the gate held, if the job and the function's switches allow. Also
    /// says whether the session used the device-TLB. With `aborting`, an aborted job may go on.
    fn in_session<R>(
        &mut self,
        job: &Job,
        aborting: bool,
        work: impl FnOnce(&Session<'_, M>) -> R,
    ) -> Result<(R, bool), Blocked> {
        let queue = &self.device.queues[self.queue];
        let priority = PriorityRegister::new_with_raw_value(queue.priority()).priority().value();
        let moved = std::mem::take(&mut self.moved);
        let _engine = self.device.engines.acquire(self.queue, moved, u64::from(priority) + 1);
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

    /// Shows how a descriptor ended: counters first, then the record, then the interrupt.
    fn complete(&mut self, task: &mut Task<'_>, outcome: Outcome) {
        let Some(record) = record_of(&task.header, outcome) else { return };
        let counted = self.unless_dropped(task.job, |device, queue| {
            if let End::Fault { .. } = outcome.end {
                queue.counters.faulted.count();
            }
            queue.counters.completed.count();
            device.counters.completed.count();
        });
        if !counted {
            return;
        }
        if !task.element {
            self.queue().completing();
        }
        if let Some(address) = task.header.record
            && !self.write_record(task, address, record)
        {
            self.unless_dropped(task.job, |device, queue| {
                device.counters.records_lost.count();
                queue.counters.record_lost.store(address.0, Ordering::Relaxed);
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
}

/// The record but for its page requests; `None` if there is to be no trace. **Pure.**
fn record_of(header: &Header, outcome: Outcome) -> Option<Record> {
    let status = match outcome.end {
        End::Success => Status::Success,
        End::Fault { .. } => Status::Fault,
        End::Invalid => Status::Invalid,
        End::Aborted => Status::Aborted,
        End::Incomplete => Status::Incomplete,
        End::Fenced => Status::Fenced,
        End::Dropped => return None,
    };
    let mut record = Record {
        status: status as u8,
        tag: header.tag.into(),
        completed: outcome.completed.into(),
        result: outcome.result.into(),
        ..Record::default()
    };
    if let End::Fault { address, access, reason } = outcome.end {
        let info = FaultInfo::DEFAULT.with_write(access.is_write()).with_reason(u3::new(reason as u8));
        record.fault_info = info.raw_value();
        record.fault_address = address.0.into();
    }
    Some(record)
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
