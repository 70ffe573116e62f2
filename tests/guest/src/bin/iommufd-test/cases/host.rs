//! The endpoint with the kernel's own page tables over an I/O address space.

use anyhow::{Context, Result, ensure};
use guest::endpoint::{Operation, global};
use guest::expect::success;
use guest::sys::PAGE;

use super::{Case, Needs};
use crate::bench::{Bench, lost, refusal, refused};
use crate::fault_queue::FaultQueue;
use crate::rig::{MEMORY, target};
use crate::sys::{Response, hwpt_flags};
use crate::view::View;

pub(super) const CASES: &[Case] = &[
    Case::new("identify", Needs::Translation, identify),
    Case::new("address-space", Needs::Translation, address_space),
    Case::new("address-space-unmap", Needs::Translation, unmap).provoking(),
    Case::new("address-space-on-pasids", Needs::Translation, on_pasids),
    Case::new("pasid-wants-a-table-for-pasids", Needs::Translation, wants_table_for_pasids),
    Case::new("detached-reaches-nothing", Needs::Translation, detached).provoking(),
    Case::new("address-space-page-request", Needs::PageRequests, page_request),
];

/// Requests without PASID read and write at the addresses of the memory.
const PLAIN: usize = 5;

fn identify(bench: &mut Bench<'_>) -> Result<()> {
    const VTD: u32 = 1;
    let rig = bench.rig()?;
    let info = rig.info;
    bench.notes.push(format!(
        "cap={:#x} ecap={:#x} pasid-bits={} capabilities={:#x} status={:#x}",
        info.cap,
        info.ecap,
        info.pasid_bits,
        info.capabilities,
        rig.status()
    ));
    ensure!(info.kind == VTD, "the unit is of type {}", info.kind);
    ensure!(info.pasid_bits == 20, "{} bits of PASID", info.pasid_bits);
    // Binding resets the function; the kernel restores what it had enabled.
    ensure!(rig.status() & global::PASID_ENABLED != 0, "PASID is off: status {:#x}", rig.status());
    Ok(())
}

fn address_space(bench: &mut Bench<'_>) -> Result<()> {
    let rig = bench.rig()?;
    rig.attach(rig.ioas, None)?;
    rig.map_all()?;
    let queue = rig.queue(0, None);
    let source = View::plain(&rig.memory, PLAIN, &mut bench.random)?;
    let destination = View::plain(&rig.memory, PLAIN, &mut bench.random)?;
    bench.copies_between(&rig.memory, &queue, &source, &destination)
}

fn unmap(bench: &mut Bench<'_>) -> Result<()> {
    let rig = bench.rig()?;
    rig.attach(rig.ioas, None)?;
    rig.map_all()?;
    let queue = rig.queue(0, None);
    let (source, _) = rig.memory.random(1, &mut bench.random)?;
    let (destination, _) = rig.memory.random(1, &mut bench.random)?;
    let copy = Operation::copy(source.address, destination.address, PAGE).without_block();
    success(&queue.run(&copy)?, PAGE)?;
    let bytes =
        rig.iommufd.unmap(rig.ioas, MEMORY, rig.memory.mapping().len() as u64).context("IOAS_UNMAP")?;
    ensure!(bytes == rig.memory.mapping().len() as u64, "{bytes:#x} bytes are unmapped");
    refused(&queue.run(&copy)?, refusal(&rig), source.address, false)?;
    rig.iommufd.map(rig.ioas, rig.memory.mapping(), MEMORY, true).context("IOAS_MAP again")?;
    success(&queue.run(&copy)?, PAGE)
}

fn on_pasids(bench: &mut Bench<'_>) -> Result<()> {
    let rig = bench.rig()?;
    let hwpt = rig.paging(hwpt_flags::PASID, None)?;
    let source = View::plain(&rig.memory, PLAIN, &mut bench.random)?;
    let destination = View::plain(&rig.memory, PLAIN, &mut bench.random)?;
    for pasid in rig.targets() {
        rig.attach(hwpt, pasid)?;
        let queue = rig.queue(0, pasid);
        bench.copies_between(&rig.memory, &queue, &source, &destination).context(target(pasid))?;
    }
    Ok(())
}

fn wants_table_for_pasids(bench: &mut Bench<'_>) -> Result<()> {
    const EINVAL: i32 = 22;
    let rig = bench.rig()?;
    let hwpt = rig.paging(0, None)?;
    let refused = rig.vfio.attach(hwpt, Some(1));
    let code = refused.as_ref().err().and_then(std::io::Error::raw_os_error);
    ensure!(code == Some(EINVAL), "attached to a PASID: {refused:?}");
    rig.attach(hwpt, None)
}

fn detached(bench: &mut Bench<'_>) -> Result<()> {
    let rig = bench.rig()?;
    let hwpt = rig.paging(hwpt_flags::PASID, None)?;
    let source = View::plain(&rig.memory, 1, &mut bench.random)?;
    let destination = View::plain(&rig.memory, 1, &mut bench.random)?;
    let copy = Operation::copy(source.address, destination.address, PAGE).without_block();
    for pasid in rig.targets() {
        rig.attach(hwpt, pasid)?;
        let queue = rig.queue(0, pasid);
        success(&queue.run(&copy)?, PAGE)?;
        rig.detach(pasid)?;
        let before = destination.read(&rig.memory);
        source.write(&rig.memory, &bench.random.bytes(PAGE));
        lost(&rig, &queue, &copy).context(target(pasid))?;
        ensure!(destination.read(&rig.memory) == before, "{}: the device wrote", target(pasid));
    }
    Ok(())
}

fn page_request(bench: &mut Bench<'_>) -> Result<()> {
    let rig = bench.rig()?;
    let faults = FaultQueue::new(&rig.iommufd)?;
    let hwpt = rig.paging(hwpt_flags::PASID, Some(&faults))?;
    for pasid in [None, Some(3)] {
        rig.attach(hwpt, pasid)?;
        let queue = rig.queue(0, pasid);
        let (source, bytes) = rig.memory.random(1, &mut bench.random)?;
        let (destination, _) = rig.memory.random(1, &mut bench.random)?;
        rig.iommufd.unmap(rig.ioas, MEMORY, rig.memory.mapping().len() as u64)?;
        let ticket = queue.start(&Operation::copy(source.address, destination.address, PAGE));
        let record = faults.one()?;
        ensure!(record.pasid == pasid && record.device == rig.vfio.id(), "{record:x?}");
        ensure!(record.address == source.address && record.last, "{record:x?}");
        ensure!(queue.poll(ticket).is_none(), "the descriptor did not wait");
        rig.iommufd.map(rig.ioas, rig.memory.mapping(), MEMORY, true)?;
        faults.respond(record.cookie, Response::Success)?;
        success(&queue.wait(ticket)?, PAGE)?;
        ensure!(rig.memory.read(&destination) == bytes, "the copy is wrong");
        drop(queue);
        rig.detach(pasid)?;
    }
    Ok(())
}
