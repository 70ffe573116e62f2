//! Fault queues: page requests that this program answers.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use guest::endpoint::{Operation, Queue, Reason, Ticket};
use guest::expect::{same, success};
use guest::sys::{PAGE, PAGE_BYTES};
use guest::wait::{patience, wait_until};

use super::{Case, Needs};
use crate::bench::{Bench, DESTINATION, SOURCE, VIEW, refused};
use crate::fault_queue::FaultQueue;
use crate::rig::{Rig, target};
use crate::sys::{FaultRecord, Id, PageRights, Response};
use crate::tables::{READ_ONLY, READ_WRITE, Tables};
use crate::view::View;

pub(super) const CASES: &[Case] = &[
    Case::new("fault-resumes", Needs::PageRequests, resumes),
    Case::new("fault-write-to-read-only", Needs::PageRequests, write_to_read_only),
    Case::new("fault-invalid", Needs::PageRequests, invalid),
    Case::new("fault-answered-too-early", Needs::PageRequests, answered_too_early),
    Case::new("fault-several-at-once", Needs::PageRequests, several_at_once),
    Case::new("fault-detach-ends-it", Needs::PageRequests, detach_ends_it).provoking(),
    Case::new("fault-replace-ends-it", Needs::PageRequests, replace_ends_it),
    Case::new("fault-without-queue", Needs::PageRequests, without_queue),
    Case::new("fault-strange-answers", Needs::PageRequests, strange_answers),
];

const READ: PageRights = PageRights { read: true, write: false };
const WRITE: PageRights = PageRights { read: false, write: true };

/// How long nothing may come, to say that nothing comes.
const QUIET: Duration = Duration::from_millis(50);

/// A nested address space with a fault queue, attached.
struct Served<'a> {
    rig: &'a Rig,
    faults: FaultQueue,
    tables: Tables<'a>,
    parent: Id,
    pasid: Option<u32>,
    queue: Queue,
}

impl<'a> Served<'a> {
    fn new(rig: &'a Rig, parent: Id, pasid: Option<u32>) -> Result<Self> {
        let faults = FaultQueue::new(&rig.iommufd)?;
        let tables = rig.space()?;
        rig.attach(rig.nested(parent, &tables, Some(&faults))?, pasid)?;
        Ok(Self { rig, faults, tables, parent, pasid, queue: rig.queue(0, pasid) })
    }

    /// The page request of a waiting descriptor, as expected.
    fn request(&self, ticket: Ticket, address: u64, rights: PageRights) -> Result<u32> {
        let record = self.faults.one()?;
        self.judge(ticket, &record, address, rights)?;
        Ok(record.cookie)
    }

    fn judge(&self, ticket: Ticket, record: &FaultRecord, address: u64, rights: PageRights) -> Result<()> {
        let place = record.address == address && record.pasid == self.pasid;
        ensure!(place && record.device == self.rig.vfio.id(), "expected {address:#x}: {record:x?}");
        // An endpoint may ask for reading besides.
        let enough = record.rights().write == rights.write && (record.rights().read || !rights.read);
        ensure!(enough && record.last, "expected {rights:?}: {record:x?}");
        ensure!(self.queue.poll(ticket).is_none(), "the descriptor did not wait");
        wait_until(patience(), || self.queue.is_waiting()).context("the queue does not say that it waits")
    }

    fn respond(&self, cookie: u32, response: Response) -> Result<()> {
        self.faults.respond(cookie, response).context("cannot answer")
    }
}

/// Page by page, each asked for once; with and without PASID.
fn resumes(bench: &mut Bench<'_>) -> Result<()> {
    let rig = bench.rig()?;
    let parent = rig.parent(0)?;
    for pasid in rig.targets() {
        let mut served = Served::new(&rig, parent, pasid)?;
        let source = View::random(&rig.memory, SOURCE, VIEW, &mut bench.random)?;
        let destination = View::random(&rig.memory, DESTINATION, VIEW, &mut bench.random)?;
        let ticket = served.queue.start(&Operation::copy(SOURCE, DESTINATION, source.len()));
        let mut awaited = Vec::new();
        for page in 0..VIEW {
            awaited.push(((source.page(page), source.pages[page].address), READ));
            awaited.push(((destination.page(page), destination.pages[page].address), WRITE));
        }
        while !awaited.is_empty() {
            // In which order it asks is up to the device.
            let record = served.faults.one()?;
            let known = awaited.iter().position(|((at, _), _)| *at == record.address);
            let ((at, to), rights) = awaited.swap_remove(known.with_context(|| format!("{record:x?}"))?);
            served.judge(ticket, &record, at, rights)?;
            served.tables.map(at, to, READ_WRITE)?;
            served.respond(record.cookie, Response::Success)?;
        }
        let completion = served.queue.wait(ticket)?;
        success(&completion, source.len()).with_context(|| target(pasid))?;
        let asked = usize::from(completion.page_requests);
        ensure!(asked == 2 * VIEW, "{asked} page requests, expected {}", 2 * VIEW);
        same("destination", &destination.read(&rig.memory), &source.read(&rig.memory))?;
        ensure!(served.faults.poll(QUIET)?.is_empty(), "more page requests came");
        let Served { queue, .. } = served;
        drop(queue);
        rig.detach(pasid)?;
    }
    Ok(())
}

/// A page that may only be read is asked for again to be written.
fn write_to_read_only(bench: &mut Bench<'_>) -> Result<()> {
    let rig = bench.rig()?;
    let parent = rig.parent(0)?;
    let mut served = Served::new(&rig, parent, Some(2))?;
    let page = View::random(&rig.memory, DESTINATION, 1, &mut bench.random)?;
    served.tables.map(DESTINATION, page.pages[0].address, READ_ONLY)?;
    success(&served.queue.run(&Operation::compare(DESTINATION, DESTINATION, PAGE))?, PAGE)?;
    let ticket = served.queue.start(&Operation::fill(DESTINATION, PAGE, 0x0102_0304_0506_0708));
    let cookie = served.request(ticket, DESTINATION, WRITE)?;
    served.tables.map(DESTINATION, page.pages[0].address, READ_WRITE)?;
    served.respond(cookie, Response::Success)?;
    success(&served.queue.wait(ticket)?, PAGE)?;
    let expected = guest::model::fill(0x0102_0304_0506_0708, PAGE);
    same("the page", &page.read(&rig.memory), &expected)
}

/// The descriptor fails where the page was refused, and the next one goes on.
fn invalid(bench: &mut Bench<'_>) -> Result<()> {
    let rig = bench.rig()?;
    let parent = rig.parent(0)?;
    for pasid in [Some(2), None] {
        let mut served = Served::new(&rig, parent, pasid)?;
        let view = View::random(&rig.memory, DESTINATION, 2, &mut bench.random)?;
        served.tables.map(DESTINATION, view.pages[0].address, READ_WRITE)?;
        let fill = Operation::fill(DESTINATION, view.len(), 1);
        let ticket = served.queue.start(&fill);
        let cookie = served.request(ticket, view.page(1), WRITE)?;
        served.respond(cookie, Response::Invalid)?;
        let completion = served.queue.wait(ticket)?;
        refused(&completion, Reason::NotAccessible, view.page(1), true)?;
        ensure!(completion.completed == PAGE_BYTES, "{:#x} bytes were written", completion.completed);
        served.tables.map(view.page(1), view.pages[1].address, READ_WRITE)?;
        success(&served.queue.run(&fill)?, view.len()).context("afterwards")?;
        let Served { queue, .. } = served;
        drop(queue);
        rig.detach(pasid)?;
    }
    Ok(())
}

/// Success without the page: the device asks again.
fn answered_too_early(bench: &mut Bench<'_>) -> Result<()> {
    let rig = bench.rig()?;
    let parent = rig.parent(0)?;
    let mut served = Served::new(&rig, parent, Some(2))?;
    let page = View::random(&rig.memory, DESTINATION, 1, &mut bench.random)?;
    let ticket = served.queue.start(&Operation::fill(DESTINATION, PAGE, 1));
    for _ in 0..3 {
        let cookie = served.request(ticket, DESTINATION, WRITE)?;
        served.respond(cookie, Response::Success)?;
    }
    let cookie = served.request(ticket, DESTINATION, WRITE)?;
    page.show(&mut served.tables)?;
    served.respond(cookie, Response::Success)?;
    let completion = served.queue.wait(ticket)?;
    success(&completion, PAGE)?;
    ensure!(completion.page_requests == 4, "{} page requests, expected 4", completion.page_requests);
    Ok(())
}

/// Groups of several queues, answered in another order than they came in.
fn several_at_once(bench: &mut Bench<'_>) -> Result<()> {
    const QUEUES: usize = 4;
    let rig = bench.rig()?;
    let parent = rig.parent(0)?;
    let mut served = Served::new(&rig, parent, Some(2))?;
    let view = View::random(&rig.memory, DESTINATION, QUEUES, &mut bench.random)?;
    let more: Vec<Queue> = (1..QUEUES).map(|index| rig.queue(index, Some(2))).collect();
    let queues: Vec<&Queue> = std::iter::once(&served.queue).chain(&more).collect();
    let fill = |index| Operation::fill(view.page(index), PAGE, index as u64);
    let tickets: Vec<Ticket> =
        queues.iter().enumerate().map(|(index, queue)| queue.start(&fill(index))).collect();
    let mut records = served.faults.wait(QUEUES)?;
    records.sort_by_key(|record| record.address);
    for (index, record) in records.iter().enumerate().rev() {
        ensure!(record.address == view.page(index), "{record:x?} is not of queue {index}");
        ensure!(queues[index].poll(tickets[index]).is_none(), "queue {index} did not wait");
        served.tables.map(view.page(index), view.pages[index].address, READ_WRITE)?;
        served.faults.respond(record.cookie, Response::Success)?;
        success(&queues[index].wait(tickets[index])?, PAGE).with_context(|| format!("queue {index}"))?;
        for waiting in 0..index {
            ensure!(queues[waiting].poll(tickets[waiting]).is_none(), "queue {waiting} did not wait");
        }
    }
    Ok(())
}

/// The kernel answers what is open when the table goes.
fn detach_ends_it(bench: &mut Bench<'_>) -> Result<()> {
    ends_it(bench, |served| served.rig.detach(served.pasid))
}

/// As above, when another table takes its place.
fn replace_ends_it(bench: &mut Bench<'_>) -> Result<()> {
    ends_it(bench, |served| {
        let tables = served.rig.space()?;
        served.rig.attach(served.rig.nested(served.parent, &tables, None)?, served.pasid)
    })
}

fn ends_it(bench: &mut Bench<'_>, end: fn(&Served<'_>) -> Result<()>) -> Result<()> {
    const EINVAL: i32 = 22;
    let rig = bench.rig()?;
    let parent = rig.parent(0)?;
    let served = Served::new(&rig, parent, Some(2))?;
    let ticket = served.queue.start(&Operation::fill(DESTINATION, PAGE, 1));
    let cookie = served.request(ticket, DESTINATION, WRITE)?;
    end(&served)?;
    // With the table gone, not even a record may come. The device has its answer.
    served.queue.rest()?;
    let late = served.faults.respond(cookie, Response::Success);
    let code = late.as_ref().err().and_then(std::io::Error::raw_os_error);
    ensure!(code == Some(EINVAL), "a late answer: {late:?}");
    Ok(())
}

/// Nobody can be asked: the kernel refuses at once.
fn without_queue(bench: &mut Bench<'_>) -> Result<()> {
    let rig = bench.rig()?;
    let parent = rig.parent(0)?;
    // The unit's page request handling is on as long as some table of the device has a fault queue.
    let _served = Served::new(&rig, parent, Some(2))?;
    let tables = rig.space()?;
    rig.attach(rig.nested(parent, &tables, None)?, Some(3))?;
    let queue = rig.queue(1, Some(3));
    let completion = queue.run(&Operation::fill(DESTINATION, PAGE, 1))?;
    refused(&completion, Reason::NotAccessible, DESTINATION, true)?;
    ensure!(completion.page_requests == 1, "{} page requests, expected 1", completion.page_requests);
    Ok(())
}

fn strange_answers(bench: &mut Bench<'_>) -> Result<()> {
    const EINVAL: i32 = 22;
    let rig = bench.rig()?;
    let parent = rig.parent(0)?;
    let mut served = Served::new(&rig, parent, Some(2))?;
    let page = View::random(&rig.memory, DESTINATION, 1, &mut bench.random)?;
    let ticket = served.queue.start(&Operation::fill(DESTINATION, PAGE, 1));
    let cookie = served.request(ticket, DESTINATION, WRITE)?;
    let refused = |outcome: std::io::Result<()>| {
        let code = outcome.as_ref().err().and_then(std::io::Error::raw_os_error);
        ensure!(code == Some(EINVAL), "accepted: {outcome:?}");
        Ok(())
    };
    refused(served.faults.respond(cookie + 1, Response::Success)).context("no such cookie")?;
    ensure!(served.queue.poll(ticket).is_none(), "the descriptor did not wait");
    page.show(&mut served.tables)?;
    served.respond(cookie, Response::Success)?;
    success(&served.queue.wait(ticket)?, PAGE)?;
    refused(served.faults.respond(cookie, Response::Success)).context("answered twice")
}
