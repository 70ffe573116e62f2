//! Faults that nobody can mend: they end one descriptor, tell where, and change nothing else.

use anyhow::{Context, Result, ensure};

use super::{Case, Needs};
use crate::bench::{Bench, ExpectedFault, Lane, copy_all, faulted, fresh, requests, same, success};
use crate::endpoint::{Device, Operation, QueueSetup};
use crate::sys::{Mapping, PAGE, PAGE_BYTES, Protection};

use Needs::{PageRequests, Translation};

pub(super) const CASES: &[Case] = &[
    Case::new("read-only-destination", PageRequests, read_only_destination),
    Case::new("unmapped-destination", PageRequests, unmapped_destination),
    Case::new("unmapped-source", PageRequests, unmapped_source),
    Case::new("unreachable-addresses", PageRequests, unreachable_addresses).provoking(),
    Case::new("partial-fault", PageRequests, partial_fault),
    Case::new("partial-fault-without-block", Translation, partial_fault_without_block),
    Case::new("no-block-reports-at-once", Translation, no_block_reports_at_once),
    Case::new("no-block-respects-rights", Translation, no_block_respects_rights),
    Case::new("record-unwritable", Translation, record_unwritable),
    Case::new("queue-without-pasid", Translation, queue_without_pasid),
];

/// Far from where the kernel puts mappings, so that what is not mapped there stays so.
const LONELY: u64 = 0x12_0000_0000;

/// Pages of which only the first `mapped` are mapped; what follows is nobody's. One at a time.
struct Cliff {
    memory: Mapping,
    bytes: Vec<u8>,
    pages: usize,
}

impl Cliff {
    fn new(bench: &mut Bench<'_>, mapped: usize, pages: usize) -> Result<Self> {
        let mut memory = Mapping::anonymous_at(LONELY, pages * PAGE)?;
        let bytes = bench.random.bytes(mapped * PAGE);
        memory.write(0, &bytes);
        memory.truncate(mapped * PAGE)?;
        Ok(Self { memory, bytes, pages })
    }

    fn edge(&self) -> u64 {
        self.memory.at(self.memory.len())
    }

    fn whole_length(&self) -> usize {
        self.pages * PAGE
    }
}

/// The lane still works after whatever happened.
fn lives_on(bench: &mut Bench<'_>, lane: &Lane) -> Result<()> {
    let (source, bytes) = bench.resident(2)?;
    let (destination, _) = bench.resident(2)?;
    lane.counted(&copy_all(&source, &destination), bytes.len()).context("afterwards")?;
    same("destination afterwards", &destination.read_all(), &bytes)
}

fn read_only_destination(bench: &mut Bench<'_>) -> Result<()> {
    let (source, _) = bench.resident(1)?;
    let (destination, bytes) = bench.resident(1)?;
    destination.protect(0..PAGE, Protection::Read)?;
    let lane = bench.lane()?;
    let (completion, count) = lane.run_counted(&copy_all(&source, &destination))?;
    faulted(&completion, ExpectedFault { address: destination.address(), write: true, completed: 0 })?;
    requests(count, 1)?;
    same("destination", &destination.read_all(), &bytes)?;
    lives_on(bench, &lane)
}

fn unmapped_destination(bench: &mut Bench<'_>) -> Result<()> {
    let (source, _) = bench.resident(1)?;
    let gone = Cliff::new(bench, 0, 1)?;
    let lane = bench.lane()?;
    let operation = Operation::copy(source.address(), gone.edge(), PAGE);
    let (completion, count) = lane.run_counted(&operation)?;
    faulted(&completion, ExpectedFault { address: gone.edge(), write: true, completed: 0 })?;
    requests(count, 1)?;
    lives_on(bench, &lane)
}

fn unmapped_source(bench: &mut Bench<'_>) -> Result<()> {
    let (destination, bytes) = bench.resident(1)?;
    let gone = Cliff::new(bench, 0, 1)?;
    let lane = bench.lane()?;
    let operation = Operation::copy(gone.edge(), destination.address(), PAGE);
    let (completion, count) = lane.run_counted(&operation)?;
    faulted(&completion, ExpectedFault { address: gone.edge(), write: false, completed: 0 })?;
    requests(count, 1)?;
    same("destination", &destination.read_all(), &bytes)?;
    lives_on(bench, &lane)
}

/// Null, the ends of user space, the kernel, and addresses that cannot be.
fn unreachable_addresses(bench: &mut Bench<'_>) -> Result<()> {
    const ADDRESSES: [(&str, u64); 8] = [
        ("null", 0),
        ("page one", PAGE_BYTES),
        ("beyond user space", 0x7fff_ffff_f000),
        ("first that is not canonical", 0x8000_0000_0000),
        ("not canonical", 0x1234_5678_9abc_d000),
        ("direct map of the kernel", 0xffff_8880_0010_0000),
        ("text of the kernel", 0xffff_ffff_8100_0000),
        ("last page", 0xffff_ffff_ffff_f000),
    ];
    let (source, bytes) = bench.resident(1)?;
    let lane = bench.lane()?;
    for (name, address) in ADDRESSES {
        for write in [true, false] {
            let ends = if write { (source.address(), address) } else { (address, source.address()) };
            let completion = lane.queue.run(&Operation::copy(ends.0, ends.1, 8))?;
            let expected = ExpectedFault { address, write, completed: 0 };
            faulted(&completion, expected).with_context(|| format!("{name}, write {write}"))?;
        }
    }
    same("source", &source.read_all(), &bytes)?;
    lives_on(bench, &lane)
}

/// What comes before the fault is done, to the byte, and nothing after it.
fn partial_fault(bench: &mut Bench<'_>) -> Result<()> {
    for (mapped, offset) in [(1, 0), (5, 1), (70, 4000)] {
        let cliff = Cliff::new(bench, mapped, mapped + 3)?;
        let (source, bytes) = bench.resident(mapped + 3)?;
        let lane = bench.lane()?;
        let length = cliff.whole_length() - offset;
        let done = mapped * PAGE - offset;
        let (completion, count) =
            lane.run_counted(&Operation::copy(source.address(), cliff.memory.at(offset), length))?;
        let expected = ExpectedFault { address: cliff.edge(), write: true, completed: done as u64 };
        faulted(&completion, expected)?;
        requests(count, 1)?;
        let mut memory = cliff.bytes.clone();
        memory[offset..].copy_from_slice(&bytes[..done]);
        same(&format!("{mapped} pages"), &cliff.memory.read_all(), &memory)?;
        lives_on(bench, &lane)?;
    }
    Ok(())
}

fn partial_fault_without_block(bench: &mut Bench<'_>) -> Result<()> {
    let cliff = Cliff::new(bench, 5, 8)?;
    let (destination, mut expected) = bench.resident(8)?;
    let lane = bench.lane()?;
    let operation = Operation::copy(cliff.memory.address(), destination.address(), cliff.whole_length());
    let (completion, count) = lane.run_counted(&operation.without_block())?;
    let done = cliff.memory.len();
    faulted(&completion, ExpectedFault { address: cliff.edge(), write: false, completed: done as u64 })?;
    requests(count, 0)?;
    expected[..done].copy_from_slice(&cliff.bytes);
    same("destination", &destination.read_all(), &expected)?;
    lives_on(bench, &lane)
}

/// Memory that a page request would have brought stays away.
fn no_block_reports_at_once(bench: &mut Bench<'_>) -> Result<()> {
    let (source, bytes) = bench.resident(2)?;
    let destination = fresh(2)?;
    let lane = bench.lane()?;
    let operation = copy_all(&source, &destination).without_block();
    for page in [0, PAGE] {
        let (completion, count) = lane.run_counted(&operation)?;
        let expected = ExpectedFault { address: destination.at(page), write: true, completed: page as u64 };
        faulted(&completion, expected)?;
        requests(count, 0)?;
        destination.write(page, &[1]);
    }
    requests(lane.counted(&operation, bytes.len())?, 0)?;
    same("destination", &destination.read_all(), &bytes)
}

fn no_block_respects_rights(bench: &mut Bench<'_>) -> Result<()> {
    let (memory, bytes) = bench.resident(2)?;
    let lane = bench.lane()?;
    memory.protect(0..PAGE, Protection::Read)?;
    let fill = Operation::fill(memory.address(), 2 * PAGE, 7).without_block();
    let written = lane.queue.run(&fill)?;
    faulted(&written, ExpectedFault { address: memory.address(), write: true, completed: 0 })?;
    let read = Operation::crc(memory.address(), 2 * PAGE, 0).without_block();
    success(&lane.queue.run(&read)?, 2 * PAGE).context("reading what is readable")?;
    memory.protect(0..PAGE, Protection::None)?;
    let refused = lane.queue.run(&read)?;
    faulted(&refused, ExpectedFault { address: memory.address(), write: false, completed: 0 })?;
    memory.protect(0..PAGE, Protection::Read)?;
    same("memory", &memory.read_all(), &bytes)
}

/// Nobody can be told but the counters; the queue goes on.
fn record_unwritable(bench: &mut Bench<'_>) -> Result<()> {
    let gone = Cliff::new(bench, 0, 1)?;
    let lane = bench.lane()?;
    let before = lane.device.counters();
    let record = gone.edge() + 96;
    lane.queue.submit(&Operation::nop().encode(5, record));
    lane.queue.rest()?;
    let lost = lane.device.counters().records_lost - before.records_lost;
    ensure!(lost == 1, "the device counted {lost} lost records");
    ensure!(lane.queue.record_lost() == record, "the queue lost a record at {:#x}", lane.queue.record_lost());
    let after = lane.queue.run(&Operation::nop())?;
    success(&after, 0).context("afterwards")
}

/// Requests without PASID do not see this process, not even for a record.
fn queue_without_pasid(bench: &mut Bench<'_>) -> Result<()> {
    let (memory, bytes) = bench.resident(1)?;
    let device = Device::open(bench.endpoint)?;
    let before = device.counters();
    let queue = device.queue_with(0, QueueSetup { pasid: None, vector: None })?;
    let ticket = queue.start(&Operation::fill(memory.address(), PAGE, 9).without_block());
    queue.rest()?;
    ensure!(queue.poll(ticket).is_none(), "a record was written without PASID");
    let lost = device.counters().records_lost - before.records_lost;
    ensure!(lost == 1, "the device counted {lost} lost records");
    let (lost, expected) = (queue.record_lost(), queue.record_address(ticket));
    ensure!(lost == expected, "the queue lost a record at {lost:#x}, not {expected:#x}");
    same("memory", &memory.read_all(), &bytes)
}
