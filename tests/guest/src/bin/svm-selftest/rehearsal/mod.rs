//! A model of the endpoint inside this process, to try the suite without the device, and to see
//! that it notices a device with a flaw.
//!
//! It reaches memory by system calls, so it faults as the kernel says, and it counts as page requests
//! the pages that the kernel's own page map calls absent or not exclusively this process's. It has
//! no device-TLB but for one flaw, and every process has a model of its own.
//!
//! It leaves the machine's settings alone, so cases that change them are skipped, unless it is told that it
//! may: in a guest nothing is lost.

mod batch;
mod engine;
mod memory;
mod operation;
mod page;
mod queue;
mod sharing;

use std::ffi::OsString;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;
use clap::ValueEnum;

use crate::endpoint::{ConfigSpace, Endpoint, Registers, Session};
use engine::Engine;

/// Something wrong with the model, for the suite to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Flaw {
    /// Nothing.
    None,
    /// There are no page requests.
    NoPri,
    /// Translations outlive their pages.
    Stale,
    /// Rights do not matter.
    IgnoresRights,
    /// A copy of more than a page leaves its last byte out.
    LosesByte,
    /// CRCs start from another value.
    WrongCrc,
    /// Page requests are counted twice.
    CountsTwice,
    /// A fault's record says nothing of what was done before.
    ForgetsPart,
    /// All queues share one worker.
    OneWorker,
    /// Missing pages are asked for whatever the descriptor says.
    AlwaysBlocks,
    /// Every descriptor sends an interrupt.
    Chatty,
    /// Aborted descriptors get no record.
    SilentAbort,
    /// The last descriptor of a batch is left out.
    ShortBatch,
    /// A batch says that it succeeded whatever its descriptors did.
    SunnyBatch,
    /// Fences let everything pass.
    NoFences,
    /// Submissions seem to be accepted, always.
    AlwaysAccepts,
    /// All windows reach the address space of their queue's owner.
    MixesWindows,
    /// Commands are done before they are.
    HastyCommands,
    /// Page requests are made one by one.
    AsksForOne,
    /// Pages ahead are asked for even if they are there.
    AsksForAll,
    /// A page ahead that is refused is a fault of the one that is needed.
    OneForAll,
    /// PREFETCH does nothing.
    LazyPrefetch,
    /// PREFETCH faults where a page cannot be had.
    StrictPrefetch,
    /// Descriptors that should be invalid are carried out.
    TakesAnything,
    /// The last descriptor goes first.
    Reorders,
    /// A queue holds fewer descriptors than it says.
    Shallow,
    /// The function's counters stand still.
    Uncounted,
    /// The source is read before the length is looked at.
    Eager,
    /// FILL starts its pattern again in every page.
    RestartsPattern,
    /// COMPARE says in which page the difference is, not where.
    ComparesPages,
    /// A list's end is taken for another node.
    ChasesNull,
    /// Addresses lose what is above bit 46.
    Narrow,
    /// The driver shows another number each time, and none is a PASID.
    WanderingPasid,
    /// With one engine, only the queues of the highest priority get it.
    Starves,
    /// PASIDs of 5 bits, of which there are always more.
    EndlessPasids,
    /// Configuration space says that neither ATS nor PASID is on.
    SwitchedOff,
    /// Other processes' address spaces can be reached, or seem so: a read of a strange address is zeros.
    SeesEverything,
}

/// A process's number stands for its address space, as a PASID does.
fn own_pasid() -> u32 {
    std::process::id() & 0xf_ffff
}

/// Reaches the model.
pub(crate) struct Rehearsal {
    flaw: Flaw,
    engine: Arc<Engine>,
    interrupts: File,
    opened: AtomicU32,
}

impl Rehearsal {
    /// A model with this flaw.
    pub(crate) fn new(flaw: Flaw) -> Result<Self> {
        let (reader, mut writer) = UnixStream::pair()?;
        let mut count = 0_u32;
        let interrupt = move || {
            count = count.wrapping_add(1);
            let _ = writer.write_all(&count.to_ne_bytes());
        };
        let engine = Engine::new(flaw, Box::new(interrupt))?;
        Ok(Self { flaw, engine, interrupts: OwnedFd::from(reader).into(), opened: AtomicU32::new(0) })
    }
}

impl Endpoint for Rehearsal {
    fn open(&self) -> Result<Session> {
        let registers: Arc<dyn Registers> = self.engine.clone();
        let pasid = match self.flaw {
            Flaw::WanderingPasid => (1 << 20) + self.opened.fetch_add(1, Ordering::Relaxed),
            _ => own_pasid(),
        };
        Ok(Session { registers, pasid, interrupts: self.interrupts.try_clone()? })
    }

    fn peek(&self) -> Result<Arc<dyn Registers>> {
        Ok(self.engine.clone())
    }

    fn config(&self) -> Result<ConfigSpace> {
        const ATS: usize = 0x100;
        const PASID: usize = 0x110;
        const PRI: usize = 0x120;
        let mut bytes = vec![0; 4096];
        let mut set = |at: usize, value: u16| bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
        let last = if self.flaw == Flaw::NoPri { 0 } else { 0x1201 };
        set(4, 0b110);
        for (at, id, next, control) in [(ATS, 0xf, 0x1101, 1 << 15), (PASID, 0x1b, last, 1)] {
            set(at, id);
            set(at + 2, next);
            set(at + 6, if self.flaw == Flaw::SwitchedOff { 0 } else { control });
        }
        if self.flaw == Flaw::EndlessPasids {
            set(PASID + 4, 5 << 8);
        }
        if self.flaw != Flaw::NoPri {
            set(PRI, 0x13);
            set(PRI + 2, 1);
            set(PRI + 4, 1);
            set(PRI + 6, 1 << 15 | 1 << 8);
        }
        Ok(ConfigSpace::new(bytes))
    }

    fn is_shared(&self) -> bool {
        false
    }

    fn again(&self) -> Result<Box<dyn Endpoint>> {
        Ok(Box::new(Self::new(self.flaw)?))
    }

    fn arguments(&self) -> Vec<OsString> {
        let name = self.flaw.to_possible_value().map_or("none".into(), |value| value.get_name().to_owned());
        vec![format!("--rehearse={name}").into()]
    }
}
