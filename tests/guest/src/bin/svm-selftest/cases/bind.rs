//! Binding an address space; what the stock driver enables; the machine around it.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::{Case, Needs};
use crate::bench::{Bench, Skip, copy_all, requests, same};
use crate::endpoint::{Device, Operation, QueueSetup, global};
use crate::sys::{Mapping, PAGE, PageMap, PageState};
use crate::wait::patience;

pub(super) const CASES: &[Case] = &[
    Case::new("bind-shows-a-pasid", Needs::Translation, bind_shows_a_pasid),
    Case::new("bind-again-and-again", Needs::Translation, bind_again_and_again),
    Case::new("function-has-ats-and-pasid-enabled", Needs::Translation, function_has_ats_and_pasid),
    Case::new("function-has-pri-enabled", Needs::PageRequests, function_has_pri),
    Case::new("unit-offers-scalable-mode", Needs::Translation, unit_offers_scalable_mode),
    Case::new("interrupt-per-descriptor", Needs::Translation, interrupt_per_descriptor),
    Case::new("memory-above-4-gib", Needs::Translation, memory_above_4_gib),
];

/// PASIDs have at most 20 bits; 0 is what requests without PASID use.
fn bind_shows_a_pasid(bench: &mut Bench<'_>) -> Result<()> {
    let lane = bench.lane()?;
    let pasid = lane.device.pasid();
    ensure!((1..1 << 20).contains(&pasid), "the driver shows pasid {pasid}");
    bench.notes.push(format!("pasid {pasid}, {} queues of {}", lane.device.queues(), lane.device.depth()));
    Ok(())
}

/// Every bond works, and a process keeps its PASID.
fn bind_again_and_again(bench: &mut Bench<'_>) -> Result<()> {
    let (source, bytes) = bench.resident(1)?;
    let mut pasids = Vec::new();
    for _ in 0..8 {
        let (destination, _) = bench.resident(1)?;
        let lane = bench.lane()?;
        lane.counted(&copy_all(&source, &destination), PAGE)?;
        same("destination", &destination.read_all(), &bytes)?;
        pasids.push(lane.device.pasid());
    }
    ensure!(pasids.iter().all(|pasid| *pasid == pasids[0]), "one process had the pasids {pasids:?}");
    Ok(())
}

fn function_has_ats_and_pasid(bench: &mut Bench<'_>) -> Result<()> {
    const COMMAND: usize = 4;
    const BUS_MASTER: u16 = 1 << 2;
    let config = bench.endpoint.config()?;
    let ats = config.extended_capability(0x000f).context("no ATS capability")?;
    let pasid = config.extended_capability(0x001b).context("no PASID capability")?;
    ensure!(config.word(COMMAND) & BUS_MASTER != 0, "bus mastering is off");
    ensure!(config.word(ats + 6) & (1 << 15) != 0, "ATS is not enabled");
    ensure!(config.word(pasid + 6) & 1 != 0, "PASID is not enabled");
    let status = bench.lane()?.device.status();
    let wanted = global::BUS_MASTER | global::ATS_ENABLED | global::PASID_ENABLED;
    ensure!(status & wanted == wanted, "the device's STATUS is {status:#x}");
    Ok(())
}

fn function_has_pri(bench: &mut Bench<'_>) -> Result<()> {
    const STATUS_PASID_REQUIRED: u16 = 1 << 15;
    const STATUS_FAILURES: u16 = 0b11;
    let config = bench.endpoint.config()?;
    let pri = config.extended_capability(0x0013).context("no PRI capability")?;
    let (control, status) = (config.word(pri + 4), config.word(pri + 6));
    ensure!(control & 1 != 0, "PRI is not enabled");
    ensure!(status & STATUS_PASID_REQUIRED != 0, "PRI status {status:#x}: responses need no PASID");
    ensure!(status & STATUS_FAILURES == 0, "PRI status {status:#x}: responses failed before");
    let status = bench.lane()?.device.status();
    ensure!(status & global::PRI_ENABLED != 0, "the device's STATUS is {status:#x}");
    Ok(())
}

/// The unit's registers as the stock driver read them.
fn unit_offers_scalable_mode(bench: &mut Bench<'_>) -> Result<()> {
    const WANTED: [(&str, u32); 9] = [
        ("coherency", 0),
        ("queued invalidation", 1),
        ("device-TLB", 2),
        ("page requests", 29),
        ("PASID", 40),
        ("drain of page requests", 42),
        ("scalable mode", 43),
        ("first stage", 47),
        ("page-walk snoop", 48),
    ];
    if !bench.endpoint.is_shared() {
        return Err(Skip("a rehearsal has no IOMMU").into());
    }
    let units = fs::read_dir("/sys/class/iommu").context("the kernel has no IOMMU")?;
    let mut names = Vec::new();
    for unit in units.flatten() {
        let folder = unit.path().join("intel-iommu");
        let Ok(text) = fs::read_to_string(folder.join("ecap")) else { continue };
        let ecap = u64::from_str_radix(text.trim(), 16).with_context(|| format!("ecap is {text:?}"))?;
        let missing: Vec<&str> =
            WANTED.iter().filter(|(_, bit)| ecap >> bit & 1 == 0).map(|(name, _)| *name).collect();
        ensure!(missing.is_empty(), "ecap {ecap:#x} lacks {}", missing.join(", "));
        let cap = fs::read_to_string(folder.join("cap")).unwrap_or_default();
        bench.notes.push(format!("cap {}, ecap {}", cap.trim(), text.trim()));
        scalable_mode_is_in_use()?;
        names.push(unit.file_name());
    }
    ensure!(!names.is_empty(), "the kernel drives no VT-d unit");
    Ok(())
}

/// The root table pointer that the driver programmed says so, where debugfs shows it.
fn scalable_mode_is_in_use() -> Result<()> {
    const MODE_SCALABLE: u64 = 0b01;
    let Ok(text) = fs::read_to_string("/sys/kernel/debug/iommu/intel/iommu_regset") else { return Ok(()) };
    let line = text.lines().find(|line| line.starts_with("RTADDR")).context("debugfs shows no RTADDR")?;
    let digits = line.rsplit("0x").next().unwrap_or_default().trim();
    let root = u64::from_str_radix(digits, 16).with_context(|| format!("strange line: {line}"))?;
    ensure!(root >> 10 & 0b11 == MODE_SCALABLE, "the root table is not a scalable-mode one: {line}");
    Ok(())
}

/// uio counts interrupts; one per descriptor that asks for one, none for others.
fn interrupt_per_descriptor(bench: &mut Bench<'_>) -> Result<()> {
    let mut device = Device::open(bench.endpoint)?;
    let setup = QueueSetup { pasid: Some(device.pasid()), vector: Some(0) };
    let queue = device.queue_with(0, setup)?;
    let mut before = None;
    for round in 0..5 {
        for _ in 0..round {
            queue.run(&Operation::nop())?;
        }
        queue.run(&Operation::nop().with_interrupt())?;
        let Some(count) = device.interrupt(patience())? else { bail!("no interrupt in round {round}") };
        let expected = before.map_or(count, |before: u32| before.wrapping_add(1));
        ensure!(count == expected, "{count} interrupts after round {round}, expected {expected}");
        before = Some(count);
    }
    drop(queue);
    let silent = device.queue(0)?;
    silent.run(&Operation::nop().with_interrupt())?;
    let surplus = device.interrupt(Duration::from_millis(50))?;
    ensure!(surplus.is_none(), "an interrupt of a queue that has none enabled: {surplus:?}");
    Ok(())
}

/// Buffers whose page frames lie above the gap.
fn memory_above_4_gib(bench: &mut Bench<'_>) -> Result<()> {
    const PAGES: usize = 64;
    /// A machine with less has nothing above the gap.
    const ENOUGH_KIB: u64 = 4 << 20;
    let text = fs::read_to_string("/proc/meminfo")?;
    let total = text.split_ascii_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok());
    if total.context("/proc/meminfo is strange")? < ENOUGH_KIB {
        return Err(Skip("less than 4 GiB of memory").into());
    }
    let (source, bytes) = bench.resident(PAGES)?;
    let (destination, _) = bench.resident(PAGES)?;
    for mapping in [&source, &destination] {
        let high = frames(mapping)?.iter().filter(|frame| **frame >= 1 << 20).count();
        ensure!(high > 0, "none of {PAGES} pages is above 4 GiB");
        bench.notes.push(format!("{high} of {PAGES} pages above 4 GiB"));
    }
    requests(bench.lane()?.counted(&copy_all(&source, &destination), bytes.len())?, 0)?;
    same("destination", &destination.read_all(), &bytes)
}

/// The page frame numbers of a resident mapping. Needs the right to see them.
fn frames(mapping: &Mapping) -> Result<Vec<u64>> {
    let pages = PageMap::open()?.pages(mapping)?;
    let frames: Vec<u64> = pages.into_iter().map(PageState::frame).collect();
    ensure!(frames.iter().all(|frame| *frame != 0), "the kernel does not show page frames");
    Ok(frames)
}
