//! Pages that are not there yet, go away, move, or change under the device.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};

use super::{Case, Needs};
use crate::bench::{Bench, Lane, copy_all, fresh, requests, same, success};
use crate::endpoint::{NO_DIFFERENCE, Operation};
use crate::model;
use crate::sys::{self, Mapping, PAGE, Protection, Sharing};

use Needs::{PageRequests, Translation};

pub(super) const CASES: &[Case] = &[
    Case::new("demand-fault", PageRequests, demand_fault),
    Case::new("demand-fault-source", PageRequests, demand_fault_source),
    Case::new("demand-fault-every-opcode", PageRequests, demand_fault_every_opcode),
    Case::new("demand-fault-pointer-chase", PageRequests, demand_fault_chase),
    Case::new("demand-fault-record", PageRequests, demand_fault_record),
    Case::new("file-source-tmpfs", PageRequests, file_source_tmpfs),
    Case::new("file-source-program", PageRequests, file_source_program),
    Case::new("file-destination-shared", PageRequests, file_destination_shared),
    Case::new("file-destination-private", PageRequests, file_destination_private),
    Case::new("discard-destination", PageRequests, discard_destination),
    Case::new("discard-source", PageRequests, discard_source),
    Case::new("discard-and-touch", Translation, discard_and_touch),
    Case::new("replace-at-same-address", Translation, replace_at_same_address),
    Case::new("move-mapping", Translation, move_mapping),
    Case::new("protect-takes-write-away", Translation, protect_takes_write_away),
    Case::new("fork-copy-on-write", PageRequests, fork_copy_on_write),
    Case::new("huge-page", PageRequests, huge_page),
];

/// The main thing: the device writes where nobody ever wrote, one page request a page.
fn demand_fault(bench: &mut Bench<'_>) -> Result<()> {
    const PAGES: usize = 32;
    let (source, bytes) = bench.resident(PAGES)?;
    let destination = fresh(PAGES)?;
    let lane = bench.lane()?;
    let before = lane.device.timeline()?.map(|timeline| timeline.sequence);
    requests(lane.counted(&copy_all(&source, &destination), bytes.len())?, PAGES)?;
    same("destination", &destination.read_all(), &bytes)?;
    requests(lane.counted(&copy_all(&source, &destination), bytes.len())?, 0).context("the second time")?;

    let timeline = lane.device.timeline()?.context("the device has no timeline")?;
    ensure!(before != Some(timeline.sequence), "the timeline is an old one");
    ensure!(timeline.moments.is_sorted(), "the timeline goes back in time: {timeline:?}");
    let pages = destination.address()..destination.at(destination.len());
    ensure!(pages.contains(&timeline.address), "the timeline is about {:#x}", timeline.address);
    bench.notes.push(format!("timeline {}", crate::report::timeline("demand-fault", &timeline)));
    Ok(())
}

/// Reads of untouched memory see zeros.
fn demand_fault_source(bench: &mut Bench<'_>) -> Result<()> {
    const PAGES: usize = 16;
    let source = fresh(PAGES)?;
    let (destination, bytes) = bench.resident(PAGES)?;
    requests(bench.lane()?.counted(&copy_all(&source, &destination), bytes.len())?, PAGES)?;
    same("destination", &destination.read_all(), &vec![0; bytes.len()])
}

fn demand_fault_every_opcode(bench: &mut Bench<'_>) -> Result<()> {
    const PAGES: usize = 4;
    const LENGTH: usize = PAGES * PAGE;
    let lane = bench.lane()?;
    let filled = fresh(PAGES)?;
    requests(
        lane.counted(&Operation::fill(filled.address(), LENGTH, 0x1122_3344_5566_7788), LENGTH)?,
        PAGES,
    )?;
    same("filled", &filled.read_all(), &model::fill(0x1122_3344_5566_7788, LENGTH))?;

    let (left, right) = (fresh(PAGES)?, fresh(PAGES)?);
    let (compared, count) = lane.run_counted(&Operation::compare(left.address(), right.address(), LENGTH))?;
    success(&compared, LENGTH)?;
    requests(count, 2 * PAGES)?;
    ensure!(compared.result == NO_DIFFERENCE, "zeros differ from zeros at {:#x}", compared.result);

    let source = fresh(PAGES)?;
    let (summed, count) = lane.run_counted(&Operation::crc(source.address(), LENGTH, 0))?;
    success(&summed, LENGTH)?;
    requests(count, PAGES)?;
    let expected = u64::from(model::crc32c(&[0; LENGTH], 0));
    ensure!(summed.result == expected, "CRC of zeros: {:#x}, expected {expected:#x}", summed.result);
    Ok(())
}

/// Every hop may meet a page that is in the file only.
fn demand_fault_chase(bench: &mut Bench<'_>) -> Result<()> {
    const PAGES: usize = 32;
    let file = scratch_file("chase", &vec![0; PAGES * PAGE])?;
    let list = Mapping::file(&file, PAGES * PAGE, Protection::Read, Sharing::Shared)?;
    let nodes = model::random_list(&mut bench.random, list.len());
    for (node, next) in nodes.iter().zip(nodes.iter().skip(1)) {
        file.write_all_at(&list.at(*next).to_le_bytes(), *node as u64)?;
    }
    let (completion, count) = bench.lane()?.run_counted(&Operation::chase(list.at(nodes[0]), 1 << 20))?;
    success(&completion, nodes.len() - 1)?;
    let last = list.at(nodes[nodes.len() - 1]);
    ensure!(completion.result == last, "the last node is {:#x}, not {last:#x}", completion.result);
    around(count, PAGES)
}

/// The completion record's own page may be missing.
fn demand_fault_record(bench: &mut Bench<'_>) -> Result<()> {
    use crate::endpoint::poll_record;
    let lane = bench.lane()?;
    let before = lane.device.counters().page_requests;
    let record = fresh(1)?;
    lane.queue.submit(&Operation::nop().encode(77, record.at(64)));
    // Not by looking at the record: that would bring the page in.
    lane.queue.rest()?;
    requests(lane.device.counters().page_requests - before, 1)?;
    let completion = poll_record(&record, 64).context("there is no record")?;
    ensure!(completion.tag == 77, "the record says {completion:?}");
    success(&completion, 0)
}

fn file_source_tmpfs(bench: &mut Bench<'_>) -> Result<()> {
    const PAGES: usize = 40;
    let bytes = bench.random.bytes(PAGES * PAGE);
    let file = scratch_file("source", &bytes)?;
    for sharing in [Sharing::Private, Sharing::Shared] {
        let source = Mapping::file(&file, bytes.len(), Protection::Read, sharing)?;
        let (destination, _) = bench.resident(PAGES)?;
        around(bench.lane()?.counted(&copy_all(&source, &destination), bytes.len())?, PAGES)?;
        same(&format!("{sharing:?} destination"), &destination.read_all(), &bytes)?;
    }
    Ok(())
}

/// This program's own file, wherever the root file system keeps it.
fn file_source_program(bench: &mut Bench<'_>) -> Result<()> {
    const PAGES: usize = 16;
    let path = "/proc/self/exe";
    let mut bytes = fs::read(path)?;
    bytes.truncate(PAGES * PAGE);
    ensure!(bytes.len() == PAGES * PAGE, "{path} is too short");
    let source = Mapping::file(&File::open(path)?, bytes.len(), Protection::Read, Sharing::Private)?;
    let (destination, _) = bench.resident(PAGES)?;
    around(bench.lane()?.counted(&copy_all(&source, &destination), bytes.len())?, PAGES)?;
    same("destination", &destination.read_all(), &bytes)
}

/// What the device writes into a shared mapping is in the file.
fn file_destination_shared(bench: &mut Bench<'_>) -> Result<()> {
    const PAGES: usize = 8;
    let (source, bytes) = bench.resident(PAGES)?;
    let file = scratch_file("shared", &vec![0; bytes.len()])?;
    let destination = Mapping::file(&file, bytes.len(), Protection::ReadWrite, Sharing::Shared)?;
    around(bench.lane()?.counted(&copy_all(&source, &destination), bytes.len())?, PAGES)?;
    drop(destination);
    same("file", &read_scratch(&file, bytes.len())?, &bytes)
}

/// What the device writes into a private mapping is not, also where the CPU had read the page.
fn file_destination_private(bench: &mut Bench<'_>) -> Result<()> {
    const PAGES: usize = 8;
    let (source, bytes) = bench.resident(PAGES)?;
    let original = bench.random.bytes(bytes.len());
    let file = scratch_file("private", &original)?;
    let destination = Mapping::file(&file, bytes.len(), Protection::ReadWrite, Sharing::Private)?;
    same("before", &destination.read(0..PAGE), &original[..PAGE])?;
    requests(bench.lane()?.counted(&copy_all(&source, &destination), bytes.len())?, PAGES)?;
    same("destination", &destination.read_all(), &bytes)?;
    same("file", &read_scratch(&file, bytes.len())?, &original)
}

/// A device that kept its translation would write into the page that was taken away.
fn discard_destination(bench: &mut Bench<'_>) -> Result<()> {
    const PAGES: usize = 8;
    let (source, bytes) = bench.resident(PAGES)?;
    let (destination, _) = bench.resident(PAGES)?;
    let lane = bench.lane()?;
    requests(lane.counted(&copy_all(&source, &destination), bytes.len())?, 0)?;
    for round in 0..3 {
        destination.discard(0..destination.len())?;
        if round == 1 {
            // The CPU's reads bring the zero page, which the device must not write.
            same("discarded", &destination.read_all(), &vec![0; bytes.len()])?;
        }
        requests(lane.counted(&copy_all(&source, &destination), bytes.len())?, PAGES)?;
        same("destination", &destination.read_all(), &bytes)?;
    }
    Ok(())
}

/// A device that kept its translation would read what was thrown away.
fn discard_source(bench: &mut Bench<'_>) -> Result<()> {
    const PAGES: usize = 8;
    let (source, bytes) = bench.resident(PAGES)?;
    let (destination, _) = bench.resident(PAGES)?;
    let lane = bench.lane()?;
    requests(lane.counted(&copy_all(&source, &destination), bytes.len())?, 0)?;
    source.discard(2 * PAGE..5 * PAGE)?;
    let mut expected = bytes;
    expected[2 * PAGE..5 * PAGE].fill(0);
    requests(lane.counted(&copy_all(&source, &destination), expected.len())?, 3)?;
    same("destination", &destination.read_all(), &expected)
}

/// As above, but the CPU brings the new pages: no page request, so this holds without PRI too.
fn discard_and_touch(bench: &mut Bench<'_>) -> Result<()> {
    const PAGES: usize = 8;
    let (source, _) = bench.resident(PAGES)?;
    let (destination, _) = bench.resident(PAGES)?;
    let lane = bench.lane()?;
    for _ in 0..8 {
        let bytes = bench.random.bytes(source.len());
        source.write(0, &bytes);
        requests(lane.counted(&copy_all(&source, &destination), bytes.len())?, 0)?;
        same("destination", &destination.read_all(), &bytes)?;
        for mapping in [&source, &destination] {
            mapping.discard(0..mapping.len())?;
            mapping.write(0, &bench.random.bytes(mapping.len()));
        }
    }
    Ok(())
}

/// Another mapping at the same address, with other contents.
fn replace_at_same_address(bench: &mut Bench<'_>) -> Result<()> {
    const PAGES: usize = 8;
    let (destination, _) = bench.resident(PAGES)?;
    let (mut source, mut bytes) = bench.resident(PAGES)?;
    let address = source.address();
    let lane = bench.lane()?;
    for round in 0..6 {
        requests(lane.counted(&copy_all(&source, &destination), bytes.len())?, 0)?;
        same(&format!("round {round}"), &destination.read_all(), &bytes)?;
        if round % 2 == 0 {
            drop(source);
            source = Mapping::anonymous_at(address, bytes.len())?;
        } else {
            source.replace(0..source.len())?;
        }
        bytes = bench.random.bytes(bytes.len());
        source.write(0, &bytes);
    }
    Ok(())
}

/// The old address is nobody's, the new one has the bytes.
fn move_mapping(bench: &mut Bench<'_>) -> Result<()> {
    const PAGES: usize = 4;
    let (source, bytes) = bench.resident(PAGES)?;
    let (destination, before) = bench.resident(PAGES)?;
    let lane = bench.lane()?;
    lane.counted(&Operation::crc(source.address(), bytes.len(), 0), bytes.len())?;
    let old = source.address();
    let source = source.relocate()?;
    let operation = Operation::copy(old, destination.address(), bytes.len()).without_block();
    let stale = lane.queue.run(&operation)?;
    let expected = crate::bench::ExpectedFault { address: old, write: false, completed: 0 };
    crate::bench::faulted(&stale, expected).context("at the old address")?;
    same("destination", &destination.read_all(), &before)?;
    requests(lane.counted(&copy_all(&source, &destination), bytes.len())?, 0)
        .context("at the new address")?;
    same("destination", &destination.read_all(), &bytes)
}

/// The device had the right to write before.
fn protect_takes_write_away(bench: &mut Bench<'_>) -> Result<()> {
    let (memory, _) = bench.resident(3)?;
    let lane = bench.lane()?;
    let fill = |pattern| Operation::fill(memory.address(), memory.len(), pattern).without_block();
    success(&lane.queue.run(&fill(0x5555))?, memory.len())?;
    memory.protect(PAGE..2 * PAGE, Protection::Read)?;
    let mut expected = memory.read_all();
    let refused = lane.queue.run(&fill(0x6666))?;
    let fault = crate::bench::ExpectedFault { address: memory.at(PAGE), write: true, completed: PAGE as u64 };
    crate::bench::faulted(&refused, fault)?;
    expected[..PAGE].copy_from_slice(&model::fill(0x6666, PAGE));
    same("memory", &memory.read_all(), &expected)?;
    memory.protect(PAGE..2 * PAGE, Protection::None)?;
    let read = Operation::crc(memory.address(), memory.len(), 0).without_block();
    let refused = lane.queue.run(&read)?;
    crate::bench::faulted(&refused, crate::bench::ExpectedFault { write: false, ..fault })
}

/// After a fork, what the device writes is this process's alone.
fn fork_copy_on_write(bench: &mut Bench<'_>) -> Result<()> {
    const PAGES: usize = 4;
    let (source, bytes) = bench.resident(PAGES)?;
    let (destination, original) = bench.resident(PAGES)?;
    let lane = bench.lane()?;
    lane.counted(&copy_all(&source, &destination), bytes.len())?;
    destination.write(0, &original);
    let mut outcome = Ok(());
    let child_keeps_its_bytes = sys::fork_and(
        || {
            outcome = overwrite_shared(&lane, &source, &destination);
            outcome.is_ok()
        },
        || destination.read_all() == original,
    )?;
    outcome?;
    ensure!(child_keeps_its_bytes, "the device wrote into the child's memory");
    same("destination", &destination.read_all(), &bytes)
}

/// The record's page is this process's own again as soon as the record is zeroed.
fn overwrite_shared(lane: &Lane, source: &Mapping, destination: &Mapping) -> Result<()> {
    requests(lane.counted(&copy_all(source, destination), source.len())?, destination.len() / PAGE)
}

/// One page request brings two megabytes, and a hole in them is seen.
fn huge_page(bench: &mut Bench<'_>) -> Result<()> {
    const HUGE: usize = 2 << 20;
    let mapping = fresh(2 * HUGE / PAGE)?;
    let setting = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    if setting.contains("[never]") || mapping.prefer_huge().is_err() {
        return Err(crate::bench::Skip("the kernel has no transparent huge pages").into());
    }
    let start = usize::try_from(mapping.address().next_multiple_of(HUGE as u64) - mapping.address())?;
    let lane = bench.lane()?;
    let fill = |pattern| Operation::fill(mapping.at(start), HUGE, pattern);
    let count = lane.counted(&fill(0x1111_1111), HUGE)?;
    requests(count, 1).context("2 MiB that prefer huge pages")?;
    requests(lane.counted(&fill(0x2222_2222), HUGE)?, 0)?;

    // The huge page stays. The kernel's own thread, which looks for pages to make huge ones of, must not fill the hole.
    mapping.refuse_huge()?;
    let hole = start + 100 * PAGE..start + 101 * PAGE;
    mapping.discard(hole)?;
    let mut expected = model::fill(0x2222_2222, HUGE);
    expected[100 * PAGE..101 * PAGE].fill(0);
    let (summed, count) = lane.run_counted(&Operation::crc(mapping.at(start), HUGE, 0))?;
    success(&summed, HUGE)?;
    requests(count, 1).context("a hole of one page")?;
    let sum = u64::from(model::crc32c(&expected, 0));
    ensure!(summed.result == sum, "CRC {:#x}, expected {sum:#x}", summed.result);
    same("memory", &mapping.read(start..start + HUGE), &expected)
}

/// At least one page request, and at most one a page: for files the kernel maps what is around.
fn around(count: u64, pages: usize) -> Result<()> {
    ensure!((1..=pages as u64).contains(&count), "{count} page requests for {pages} pages of a file");
    Ok(())
}

/// A file in memory, without a name once it is open.
fn scratch_file(name: &str, bytes: &[u8]) -> Result<File> {
    let path = std::env::temp_dir().join(format!("svm-selftest-{}-{name}", std::process::id()));
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path);
    let file = file.with_context(|| format!("cannot create {}", path.display()))?;
    fs::remove_file(&path)?;
    file.write_all_at(bytes, 0)?;
    Ok(file)
}

fn read_scratch(file: &File, length: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}
