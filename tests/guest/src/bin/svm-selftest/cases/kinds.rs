//! Memory of every kind that a program has: where it comes from must not matter to a device.

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use rustix::fs::{FallocateFlags, fallocate, ftruncate};

use super::{Case, Needs};
use crate::bench::{
    Bench, ExpectedFault, Lane, Skip, copy_all, faulted, fresh, memory_file, requests, same, success,
};
use crate::endpoint::Operation;
use crate::model;
use crate::sys::{self, Child, Mapping, PAGE, Protection, Sharing};

use Needs::{PageRequests, Translation};

pub(super) const CASES: &[Case] = &[
    Case::new("heap-memory", Translation, heap_memory),
    Case::new("stack-memory", Translation, stack_memory),
    Case::new("memfd-with-a-hole", PageRequests, memfd_with_a_hole),
    Case::new("memfd-cut-short", PageRequests, memfd_cut_short),
    Case::new("shared-with-a-child", PageRequests, shared_with_a_child),
    Case::new("file-mapped-read-only", PageRequests, file_mapped_read_only),
    Case::new("protect-and-back", Translation, protect_and_back),
    Case::new("grow-mapping", PageRequests, grow_mapping),
    Case::new("copy-on-write-by-the-cpu", Translation, copy_on_write_by_the_cpu),
    Case::new("copy-on-write-in-the-child", PageRequests, copy_on_write_in_the_child),
    Case::new("above-47-bits", PageRequests, above_47_bits),
];

/// The device writes the words and reads them back; they are the program's own variables.
fn variables(bench: &mut Bench<'_>, words: &[AtomicU64]) -> Result<()> {
    let length = size_of_val(words);
    let (source, bytes) = bench.resident(length.div_ceil(PAGE))?;
    let (back, _) = bench.resident(length.div_ceil(PAGE))?;
    let lane = bench.lane()?;
    let address = words.as_ptr() as u64;
    lane.counted(&Operation::copy(source.address(), address, length), length)?;
    let seen: Vec<u8> = words.iter().flat_map(|word| word.load(Ordering::SeqCst).to_le_bytes()).collect();
    same("variables", &seen, &bytes[..length])?;

    words.iter().for_each(|word| word.store(bench.random.bits(), Ordering::SeqCst));
    lane.counted(&Operation::copy(address, back.address(), length), length)?;
    let stored: Vec<u8> = words.iter().flat_map(|word| word.load(Ordering::SeqCst).to_le_bytes()).collect();
    same("what the device read", &back.read(0..length), &stored)
}

fn heap_memory(bench: &mut Bench<'_>) -> Result<()> {
    // One block out of the heap proper, and one that the allocator maps.
    for words in [3000, 40_000] {
        let block: Vec<AtomicU64> = (0..words).map(AtomicU64::new).collect();
        variables(bench, &block).with_context(|| format!("{words} words"))?;
    }
    Ok(())
}

fn stack_memory(bench: &mut Bench<'_>) -> Result<()> {
    let block = [const { AtomicU64::new(1) }; 3000];
    variables(bench, &block)
}

/// A page that was punched out of the file is gone from the mapping as well.
fn memfd_with_a_hole(bench: &mut Bench<'_>) -> Result<()> {
    const PAGES: usize = 8;
    const HOLE: std::ops::Range<usize> = 3 * PAGE..5 * PAGE;
    let (source, bytes) = bench.resident(PAGES)?;
    let (back, _) = bench.resident(PAGES)?;
    let file = memory_file(bytes.len())?;
    let memory = Mapping::file(&file, bytes.len(), Protection::ReadWrite, Sharing::Shared)?;
    let lane = bench.lane()?;
    let asked = lane.counted(&copy_all(&source, &memory), bytes.len())?;
    ensure!((1..=PAGES as u64).contains(&asked), "{asked} page requests for {PAGES} pages");
    let mut expected = vec![0; bytes.len()];
    file.read_exact_at(&mut expected, 0)?;
    same("file", &expected, &bytes)?;

    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, punch, HOLE.start as u64, HOLE.len() as u64)?;
    expected[HOLE].fill(0);
    let asked = lane.counted(&copy_all(&memory, &back), bytes.len())?;
    ensure!(asked > 0, "no page request for a hole");
    same("file with a hole", &back.read_all(), &expected)
}

/// What is behind the end of a file is nobody's, though it is mapped.
fn memfd_cut_short(bench: &mut Bench<'_>) -> Result<()> {
    const PAGES: usize = 6;
    const LEFT: usize = 2 * PAGE;
    let (source, bytes) = bench.resident(PAGES)?;
    let file = memory_file(bytes.len())?;
    let memory = Mapping::file(&file, bytes.len(), Protection::ReadWrite, Sharing::Shared)?;
    let lane = bench.lane()?;
    lane.counted(&copy_all(&source, &memory), bytes.len())?;
    ftruncate(&file, LEFT as u64)?;
    let (completion, asked) = lane.run_counted(&copy_all(&source, &memory))?;
    faulted(&completion, ExpectedFault { address: memory.at(LEFT), write: true, completed: LEFT as u64 })?;
    ensure!(asked > 0, "nobody was asked for a page behind the end");

    ftruncate(&file, bytes.len() as u64)?;
    let tail = Operation::crc(memory.at(LEFT), bytes.len() - LEFT, 0);
    let (summed, _) = lane.run_counted(&tail)?;
    success(&summed, bytes.len() - LEFT).context("after the file grew again")?;
    let zeros = u64::from(model::crc32c(&vec![0; bytes.len() - LEFT], 0));
    ensure!(summed.result == zeros, "the new tail's CRC is {:#x}, not that of zeros", summed.result);
    Ok(())
}

/// The child sees what the device writes for its parent, and the device what the child writes.
fn shared_with_a_child(bench: &mut Bench<'_>) -> Result<()> {
    const PAGES: usize = 4;
    let (source, bytes) = bench.resident(PAGES)?;
    let memory = Mapping::shared(bytes.len())?;
    let answer = bench.random.bytes(bytes.len());
    let lane = bench.lane()?;
    let mut outcome = Ok(0);
    let child_agrees = sys::fork_and(
        || {
            outcome = lane.counted(&copy_all(&source, &memory), source.len());
            outcome.is_ok()
        },
        || {
            let agrees = memory.read_all() == bytes;
            memory.write(0, &answer);
            agrees
        },
    )?;
    let asked = outcome?;
    ensure!((1..=PAGES as u64).contains(&asked), "{asked} page requests for {PAGES} pages");
    ensure!(child_agrees, "the child does not see what the device wrote");
    let (back, _) = bench.resident(PAGES)?;
    lane.counted(&copy_all(&memory, &back), bytes.len())?;
    same("what the device read", &back.read_all(), &answer)
}

/// Neither the file nor a private copy of it may be written where the program may not.
fn file_mapped_read_only(bench: &mut Bench<'_>) -> Result<()> {
    const PAGES: usize = 2;
    let (source, _) = bench.resident(PAGES)?;
    let original = bench.random.bytes(PAGES * PAGE);
    let file = memory_file(original.len())?;
    file.write_all_at(&original, 0)?;
    let lane = bench.lane()?;
    for sharing in [Sharing::Private, Sharing::Shared] {
        let memory = Mapping::file(&file, original.len(), Protection::Read, sharing)?;
        let (completion, asked) = lane.run_counted(&copy_all(&source, &memory))?;
        let expected = ExpectedFault { address: memory.address(), write: true, completed: 0 };
        faulted(&completion, expected).with_context(|| format!("{sharing:?}"))?;
        requests(asked, 1)?;
        same("mapping", &memory.read_all(), &original)?;
    }
    Ok(())
}

/// Rights go and come back; the device has those of the moment.
fn protect_and_back(bench: &mut Bench<'_>) -> Result<()> {
    const PAGES: usize = 3;
    let (memory, _) = bench.resident(PAGES)?;
    let lane = bench.lane()?;
    for round in 0..4_u64 {
        let fill = Operation::fill(memory.address(), memory.len(), round).without_block();
        lane.counted(&fill, memory.len()).context("while it may be written")?;
        same("filled", &memory.read_all(), &model::fill(round, memory.len()))?;
        memory.protect(0..memory.len(), Protection::Read)?;
        let refused = lane.queue.run(&Operation::fill(memory.at(PAGE), PAGE, 0xbad).without_block())?;
        faulted(&refused, ExpectedFault { address: memory.at(PAGE), write: true, completed: 0 })?;
        let sum = Operation::crc(memory.address(), memory.len(), 0).without_block();
        success(&lane.queue.run(&sum)?, memory.len()).context("reading what may be read")?;
        same("protected", &memory.read_all(), &model::fill(round, memory.len()))?;
        memory.protect(0..memory.len(), Protection::ReadWrite)?;
        // The processor has its right to write when it first uses it.
        (0..PAGES).for_each(|page| memory.store(page * PAGE, 1));
    }
    Ok(())
}

/// The old pages go along, and the new ones are brought when the device wants them.
fn grow_mapping(bench: &mut Bench<'_>) -> Result<()> {
    const PAGES: usize = 4;
    let (memory, _) = bench.resident(PAGES)?;
    let lane = bench.lane()?;
    let mut bytes = model::fill(0x16, memory.len());
    lane.counted(&Operation::fill(memory.address(), bytes.len(), 0x16), bytes.len())?;
    let old = memory.address();
    // What is mapped behind it makes it move; something else may be there already.
    let obstacle = Mapping::anonymous_at(memory.at(memory.len()), PAGE);
    let memory = memory.grow(2 * PAGES * PAGE)?;
    ensure!(memory.address() != old, "a mapping grew over what was behind it");
    let stale = lane.queue.run(&Operation::fill(old, PAGE, 0).without_block())?;
    faulted(&stale, ExpectedFault { address: old, write: true, completed: 0 }).context("where it was")?;
    let tail = Operation::fill(memory.at(PAGES * PAGE), PAGES * PAGE, 0x17);
    requests(lane.counted(&tail, PAGES * PAGE)?, PAGES)?;
    bytes.extend(model::fill(0x17, PAGES * PAGE));
    same("grown", &memory.read_all(), &bytes)?;
    drop(obstacle);
    Ok(())
}

/// After a fork this process's store moves it to a new page, and the old one is the child's alone. A device that
/// kept its translation would read, or write, what is the child's.
fn copy_on_write_by_the_cpu(bench: &mut Bench<'_>) -> Result<()> {
    const PAGES: usize = 4;
    let (memory, original) = bench.resident(PAGES)?;
    let (back, _) = bench.resident(PAGES)?;
    let changed = bench.random.bytes(original.len());
    let lane = bench.lane()?;
    lane.counted(&Operation::fill(memory.address(), memory.len(), 0), memory.len())?;
    memory.write(0, &original);
    let mut outcome = Ok(());
    let child_keeps_its_bytes = sys::fork_and(
        || {
            outcome = store_and_read(&lane, &memory, &changed, &back);
            outcome.is_ok()
        },
        || memory.read_all() == original,
    )?;
    outcome?;
    ensure!(child_keeps_its_bytes, "the device wrote into the child's memory");
    Ok(())
}

fn store_and_read(lane: &Lane, memory: &Mapping, changed: &[u8], back: &Mapping) -> Result<()> {
    memory.write(0, changed);
    // These pages were shared by the fork as well.
    back.write(0, changed);
    back.write(0, &vec![0; back.len()]);
    lane.queue.touch_records();
    lane.counted(&copy_all(memory, back).without_block(), changed.len())?;
    same("what the device read", &back.read_all(), changed)?;
    lane.counted(&Operation::fill(memory.address(), memory.len(), 5).without_block(), memory.len())?;
    same("what the device wrote", &memory.read_all(), &model::fill(5, memory.len()))
}

/// The child binds its own address space: what the device writes there is not its parent's.
fn copy_on_write_in_the_child(bench: &mut Bench<'_>) -> Result<()> {
    const PAGES: usize = 4;
    let (memory, original) = bench.resident(PAGES)?;
    let lane = bench.lane()?;
    lane.counted(&Operation::crc(memory.address(), original.len(), 0), original.len())?;
    drop(lane);
    let endpoint = bench.endpoint;
    let child = Child::start(|_| match in_the_child(endpoint, &memory) {
        Ok(()) => true,
        Err(error) => {
            println!("# the child: {error:#}");
            false
        }
    })?;
    ensure!(child.wait()?, "the child's own copy is not right");
    same("the parent's memory", &memory.read_all(), &original)?;
    let lane = bench.lane()?;
    let sum = lane.queue.run(&Operation::crc(memory.address(), original.len(), 0))?;
    success(&sum, original.len())?;
    let expected = u64::from(model::crc32c(&original, 0));
    ensure!(sum.result == expected, "the device reads {:#x} for the parent, not {expected:#x}", sum.result);
    Ok(())
}

fn in_the_child(endpoint: &dyn crate::endpoint::Endpoint, memory: &Mapping) -> Result<()> {
    let endpoint = endpoint.again()?;
    let bench = Bench::new(endpoint.as_ref(), 1);
    let lane = bench.lane()?;
    let fill = Operation::fill(memory.address(), memory.len(), 0xc0c0);
    requests(lane.counted(&fill, memory.len())?, memory.len() / PAGE)?;
    same("the child's memory", &memory.read_all(), &model::fill(0xc0c0, memory.len()))
}

/// The kernel maps there only what asks for it, and only with five levels of page tables.
fn above_47_bits(bench: &mut Bench<'_>) -> Result<()> {
    const PAGES: usize = 4;
    const HIGH: u64 = 1 << 52;
    let memory = Mapping::anonymous_near(HIGH, PAGES * PAGE)?;
    if memory.address() < 1 << 47 {
        return Err(Skip("page tables have four levels here").into());
    }
    let (source, bytes) = bench.resident(PAGES)?;
    let lane = bench.lane()?;
    requests(lane.counted(&copy_all(&source, &memory), bytes.len())?, PAGES)?;
    same("high memory", &memory.read_all(), &bytes)?;
    let beyond = memory.at(memory.len());
    let refused = lane.queue.run(&Operation::fill(beyond, PAGE, 0).without_block())?;
    faulted(&refused, ExpectedFault { address: beyond, write: true, completed: 0 })?;
    let low = fresh(1)?;
    requests(lane.counted(&Operation::copy(memory.address(), low.address(), PAGE), PAGE)?, 1)?;
    same("low memory", &low.read_all(), &bytes[..PAGE])
}
