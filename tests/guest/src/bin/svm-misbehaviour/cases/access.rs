//! Memory requests that the IOMMU has to refuse.

use anyhow::{Context, Result, ensure};
use guest::endpoint::{Operation, Reason};
use guest::expect::{describe, same, success};
use guest::sys::PAGE;

use super::{Case, Needs::Translation};
use crate::bench::{Bench, fresh};
use crate::board::{How, Kind};

pub(super) const CASES: &[Case] = &[
    Case::new("untranslated-access", Translation, untranslated).provoking(),
    Case::new("translated-access", Translation, translated).provoking(),
    Case::new("foreign-pasid", Translation, foreign_pasid).provoking(),
    Case::new("interrupt-range", Translation, interrupt_range).provoking(),
    Case::new("interrupt-range-with-pasid", Translation, interrupt_range_with_pasid).provoking(),
];

/// Untranslated requests with a PASID reach what is there; what is missing cannot be asked for, and is a fault: not
/// present, in the first stage.
fn untranslated(bench: &mut Bench<'_>) -> Result<()> {
    let lane = bench.lane()?;
    let (source, bytes) = bench.resident(2)?;
    let (destination, _) = bench.resident(2)?;
    bench.board.switch(Kind::UntranslatedAccess, How::Always);
    let copy = Operation::copy(source.address(), destination.address(), bytes.len());
    success(&lane.queue.run(&copy)?, bytes.len())?;
    same("destination", &destination.read_all(), &bytes)?;
    let missing = fresh(1)?;
    let pasid = format!("[DMA Write PASID {:#x}]", lane.device.pasid());
    let address = format!("fault addr {:#x} ", missing.address());
    bench.told(&[&pasid, &address, "[fault reason 0x71]"], |_| {
        let completion = lane.faults(&Operation::fill(missing.address(), PAGE, 7))?;
        let as_expected = completion.reason == Reason::Refused && completion.page_requests == 0;
        ensure!(as_expected, "{}", describe(&completion));
        Ok(())
    })
}

/// The descriptor itself is as honest as ever; the stray request is told with these words.
fn stray(bench: &mut Bench<'_>, kind: Kind, argument: Option<u32>, texts: &[&str]) -> Result<()> {
    let lane = bench.lane()?;
    let (memory, _) = bench.resident(1)?;
    let address = memory.address();
    bench.told(texts, |board| {
        match argument {
            Some(argument) => board.switch_with(kind, How::Count(1), argument),
            None => board.switch(kind, How::Count(1)),
        }
        success(&lane.queue.run(&Operation::fill(address, PAGE, 7))?, PAGE).context("beside it")
    })
}

/// Beyond what this machine can address at all, since a user's addresses are wider.
fn translated(bench: &mut Bench<'_>) -> Result<()> {
    stray(bench, Kind::TranslatedAccess, None, &["[DMA Write NO_PASID]", "[fault reason 0x83]"])
}

/// The last PASID: its directory entry is not present.
fn foreign_pasid(bench: &mut Bench<'_>) -> Result<()> {
    stray(bench, Kind::ForeignPasid, None, &["[DMA Write PASID 0xfffff]", "[fault reason 0x51]"])
}

/// Without PASID these are interrupts, and a read is none.
fn interrupt_range(bench: &mut Bench<'_>) -> Result<()> {
    let texts = ["[DMA Read NO_PASID]", "fault addr 0xfee00000 ", "[fault reason 0x29]"];
    stray(bench, Kind::InterruptRange, None, &texts)
}

/// With a PASID, it is an address like any other, and nothing is there.
fn interrupt_range_with_pasid(bench: &mut Bench<'_>) -> Result<()> {
    let texts = ["[DMA Read PASID ", "fault addr 0xfee00000 ", "[fault reason 0x71]"];
    stray(bench, Kind::InterruptRange, Some(1), &texts)
}
