//! What every case works with.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use guest::endpoint::{self, Completion, Device, Endpoint, Operation, PciEndpoint, Queue, Status};
use guest::expect::{describe, same, success};
use guest::model::Random;
use guest::sys::{Mapping, PAGE};
use guest::wait::{patience, wait_until};

use crate::board::{Board, Flaw};
use crate::kernel_log::KernelLog;

/// How long the kernel may take to say something, where patience is not shorter.
const SOON: Duration = Duration::from_secs(30);
/// A fault that is not told by then fell victim to the kernel's rate limit, of ten lines in five seconds.
const TOLD: Duration = Duration::from_millis(700);

/// How long the kernel may take to say something.
pub(crate) fn soon() -> Duration {
    SOON.min(patience())
}

/// The surroundings of a case.
pub(crate) struct Bench<'a> {
    /// The endpoint. Nobody has it open when a case starts.
    pub(crate) endpoint: PciEndpoint,
    /// Its switchboard.
    pub(crate) board: Board,
    /// What the kernel says since the case began.
    pub(crate) log: KernelLog,
    flaw: Flaw,
    random: Random,
    /// Lines for whoever reads the output.
    pub(crate) notes: &'a mut Vec<String>,
}

impl<'a> Bench<'a> {
    /// The endpoint as it is found.
    pub(crate) fn new(seed: u64, flaw: Flaw, notes: &'a mut Vec<String>) -> Result<Self> {
        let endpoint = PciEndpoint::find()?;
        let board = Board::new(endpoint.peek()?, flaw)?;
        Ok(Self { endpoint, board, log: KernelLog::from_now()?, flaw, random: Random::new(seed), notes })
    }

    /// Looks at the endpoint anew, when it left and came back; and at the log from now on.
    pub(crate) fn renew(&mut self) -> Result<()> {
        self.endpoint = PciEndpoint::find()?;
        self.board = Board::new(self.endpoint.peek()?, self.flaw)?;
        self.log = KernelLog::from_now()?;
        Ok(())
    }

    /// Runs a case, and sees that the endpoint works afterwards.
    pub(crate) fn judge(mut self, run: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let outcome = run(&mut self);
        let Self { notes, flaw, mut random, .. } = self;
        // The endpoint may have left and come back meanwhile.
        let after = Bench::new(0, flaw, notes)?;
        if after.board.is_gone() {
            after.board.bring_back();
        }
        after.board.off();
        outcome?;
        lives_on(&after.endpoint, &mut random).context("afterwards")
    }

    /// Binds this process and enables queue 0.
    pub(crate) fn lane(&self) -> Result<Lane> {
        let device = Device::open(&self.endpoint)?;
        let queue = device.queue(0)?;
        Ok(Lane { queue, device })
    }

    /// Present, writable pages with random bytes, and a copy of these.
    pub(crate) fn resident(&mut self, pages: usize) -> Result<(Mapping, Vec<u8>)> {
        resident(&mut self.random, pages)
    }

    /// Function-level reset, as the kernel does it. The endpoint must be closed.
    pub(crate) fn reset_function(&self) -> Result<()> {
        fs::write(folder()?.join("reset"), "1").context("the function is not reset")
    }

    /// Does something again and again until the kernel tells of it in a line with all of `texts`: it tells few faults
    /// in a time.
    pub(crate) fn told(
        &mut self,
        texts: &[&str],
        mut provoke: impl FnMut(&Board) -> Result<()>,
    ) -> Result<()> {
        let started = Instant::now();
        // Twice as long as for anything else: most faults are not told.
        while started.elapsed() < soon() * 2 {
            provoke(&self.board)?;
            if self.log.wait(texts, TOLD).is_ok() {
                return Ok(());
            }
        }
        provoke(&self.board)?;
        self.log.wait(texts, soon())
    }

    /// The PRI status register.
    pub(crate) fn pri_status(&self) -> Result<u16> {
        let config = self.endpoint.config()?;
        let at = config.extended_capability(0x13).context("the function has no PRI")?;
        Ok(config.word(at + 6))
    }
}

/// The endpoint's folder in sysfs.
pub(crate) fn folder() -> Result<PathBuf> {
    endpoint::find()
}

/// The endpoint open, with queue 0 enabled.
pub(crate) struct Lane {
    /// Queue 0; goes first when the lane is dropped.
    pub(crate) queue: Queue,
    /// The endpoint.
    pub(crate) device: Device,
}

impl Lane {
    /// Runs an operation that must end in a fault.
    pub(crate) fn faults(&self, operation: &Operation) -> Result<Completion> {
        let completion = self.queue.run(operation)?;
        ensure!(completion.status == Status::Fault, "expected a fault: {}", describe(&completion));
        Ok(completion)
    }

    /// Waits until something holds.
    pub(crate) fn until(&self, what: &'static str, condition: impl FnMut() -> bool) -> Result<()> {
        wait_until(soon(), condition).context(what)
    }
}

/// Pages that are mapped but not there.
pub(crate) fn fresh(pages: usize) -> Result<Mapping> {
    Ok(Mapping::anonymous(pages * PAGE)?)
}

fn resident(random: &mut Random, pages: usize) -> Result<(Mapping, Vec<u8>)> {
    let bytes = random.bytes(pages * PAGE);
    let mapping = Mapping::anonymous(bytes.len())?;
    mapping.write(0, &bytes);
    Ok((mapping, bytes))
}

/// A process binds, has pages brought, moves its bytes, and takes pages away.
fn lives_on(endpoint: &PciEndpoint, random: &mut Random) -> Result<()> {
    let device = Device::open(endpoint)?;
    let queue = device.queue(0)?;
    let (source, bytes) = resident(random, 8)?;
    let destination = fresh(8)?;
    for _ in 0..2 {
        let completion = queue.run(&Operation::copy(source.address(), destination.address(), bytes.len()))?;
        success(&completion, bytes.len())?;
        ensure!(completion.page_requests > 0, "no page was asked for");
        same("destination", &destination.read_all(), &bytes)?;
        destination.discard(0..destination.len())?;
    }
    Ok(())
}
