//! What the command line of svmm switches on:
//! `misbehave=late-invalidation:1/4@20,misbehave=lost-invalidation:1/5@2,misbehave=execute-request:1/6,seed=5`.

use anyhow::{Result, ensure};
use guest::endpoint::{Device, Operation, Status};
use guest::expect::{describe, same};
use guest::sys::PAGE;

use super::{Case, Needs::PageRequests};
use crate::bench::{Bench, fresh};
use crate::board::{How, Kind};

pub(super) const CASES: &[Case] = &[Case::new("planned", PageRequests, planned).provoking()];

const EXPECTED: [Kind; 3] = [Kind::LateInvalidation, Kind::LostInvalidation, Kind::ExecuteRequest];
const ROUNDS: usize = 60;

/// Under what was planned, work goes on; what faults is tried again. A reset puts the plan back.
fn planned(bench: &mut Bench<'_>) -> Result<()> {
    let all = EXPECTED.iter().fold(0, |set, &kind| set | 1 << kind as u32);
    let on = bench.board.on();
    ensure!(on == all, "the kinds {on:#x} are on, not {all:#x}");
    let device = Device::open(&bench.endpoint)?;
    let queue = device.queue(0)?;
    let (source, bytes) = bench.resident(1)?;
    let destination = fresh(1)?;
    let mut refused = 0;
    for _ in 0..ROUNDS {
        let copy = Operation::copy(source.address(), destination.address(), PAGE);
        let completion = loop {
            let completion = queue.run(&copy)?;
            if completion.status != Status::Fault {
                break completion;
            }
            refused += 1;
        };
        ensure!(completion.status == Status::Success, "{}", describe(&completion));
        same("destination", &destination.read_all(), &bytes)?;
        destination.discard(0..PAGE)?;
    }
    let happened = EXPECTED.map(|kind| bench.board.happened(kind));
    bench.notes.push(format!("{EXPECTED:?} happened {happened:?} times; {refused} descriptors faulted"));
    ensure!(happened.iter().all(|&times| times > 0) && refused > 0, "{happened:?}, {refused} refused");
    // The plan is not the guest's.
    bench.board.off();
    bench.board.sow(1);
    bench.board.switch(Kind::ForeignPasid, How::OneIn(3));
    drop((queue, device));
    bench.reset_function()?;
    let on = bench.board.on();
    ensure!(on == all, "after a reset, the kinds {on:#x} are on, not {all:#x}");
    Ok(())
}
