//! Mappings that come and go while the device copies between them.

use anyhow::{Context, Result};
use guest::endpoint::{Operation, Queue};
use guest::expect::{same, success};
use guest::sys::{Mapping, PAGE};

use super::{Case, Needs};
use crate::bench::{Bench, refusal, refused};
use crate::rig::{MEMORY, Rig};

pub(super) const CASES: &[Case] = &[Case::new("map-unmap-churn", Needs::Translation, churn).provoking()];

/// Places that memory may be mapped at.
const PLACES: usize = 12;
/// Pages of a place, the last of which is never mapped.
const STRIDE: usize = 8;
const ROUNDS: usize = 240;

/// A place, and the memory that is there.
struct Place {
    address: u64,
    memory: Option<(Mapping, Vec<u8>)>,
}

/// Every copy brings exactly the bytes that the memory behind its addresses has at this moment, and where nothing is
/// mapped any more there is no access.
fn churn(bench: &mut Bench<'_>) -> Result<()> {
    let rig = bench.rig()?;
    rig.attach(rig.ioas, None)?;
    rig.map_all()?;
    rig.iommufd.unmap(rig.ioas, MEMORY, rig.memory.mapping().len() as u64).context("IOAS_UNMAP")?;
    let queue = rig.queue(0, None);
    let place = |index: usize| Place { address: MEMORY + (index * STRIDE * PAGE) as u64, memory: None };
    let mut places: Vec<Place> = (0..PLACES).map(place).collect();
    let (mut copies, mut refusals) = (0, 0);
    for round in 0..ROUNDS {
        let (from, to) = (bench.random.below(PLACES), bench.random.below(PLACES));
        let kind = bench.random.below(4);
        let outcome = match (kind, places[from].memory.is_some()) {
            (0, false) | (1, false) => appear(bench, &rig, &mut places[from]),
            (0, true) => vanish(&rig, &mut places[from]),
            (_, false) => {
                refusals += 1;
                nothing_there(&rig, &queue, &places[from])
            }
            (_, true) if from != to && places[to].memory.is_some() => {
                copies += 1;
                copy(&queue, &mut places, (from, to))
            }
            (_, true) => Ok(()),
        };
        outcome.with_context(|| format!("round {round}, places {from} and {to}"))?;
    }
    bench.notes.push(format!("{copies} copies, {refusals} refusals"));
    Ok(())
}

fn appear(bench: &mut Bench<'_>, rig: &Rig, place: &mut Place) -> Result<()> {
    let memory = Mapping::anonymous((1 + bench.random.below(STRIDE - 1)) * PAGE)?;
    let bytes = bench.random.bytes(memory.len());
    memory.write(0, &bytes);
    rig.iommufd.map(rig.ioas, &memory, place.address, true).context("IOAS_MAP")?;
    place.memory = Some((memory, bytes));
    Ok(())
}

fn vanish(rig: &Rig, place: &mut Place) -> Result<()> {
    if let Some((memory, bytes)) = place.memory.take() {
        rig.iommufd.unmap(rig.ioas, place.address, memory.len() as u64).context("IOAS_UNMAP")?;
        same("what was unmapped", &memory.read_all(), &bytes)?;
    }
    Ok(())
}

fn nothing_there(rig: &Rig, queue: &Queue, place: &Place) -> Result<()> {
    let copy = Operation::copy(place.address, place.address + PAGE as u64, PAGE).without_block();
    refused(&queue.run(&copy)?, refusal(rig), place.address, false)
}

fn copy(queue: &Queue, places: &mut [Place], (from, to): (usize, usize)) -> Result<()> {
    let (source, target) = (places[from].address, places[to].address);
    let Some(bytes) = places[from].memory.as_ref().map(|(_, bytes)| bytes.clone()) else { return Ok(()) };
    let Some((memory, expected)) = places[to].memory.as_mut() else { return Ok(()) };
    let length = bytes.len().min(expected.len());
    success(&queue.run(&Operation::copy(source, target, length))?, length)?;
    expected[..length].copy_from_slice(&bytes[..length]);
    same("the destination", &memory.read_all(), expected)
}
