//! This process's memory as the model's device sees it: page by page, through the kernel.

use std::collections::HashMap;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::Flaw;
use crate::endpoint::Reason;
use crate::sys::{PAGE, PAGE_BYTES, PageMap, PageState, copy_from_self, copy_to_self};

/// How long a page request takes; about what a guest's kernel needs.
const REQUEST: Duration = Duration::from_micros(100);

/// Why a page could not be reached.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refusal {
    /// The address.
    pub(super) address: u64,
    /// Whether it was to be written.
    pub(super) write: bool,
    /// Why.
    pub(super) reason: Reason,
}

/// A queue's way to memory.
pub(super) struct Memory {
    flaw: Flaw,
    page_map: PageMap,
    /// Whether absent pages may be asked for.
    pub(super) asks: bool,
    /// Page requests so far.
    pub(super) requests: u64,
    /// Groups of them.
    pub(super) groups: u64,
    /// There is an address space behind the PASID.
    pub(super) reachable: bool,
    ahead: u64,
    /// Ends of what will be read and written.
    ends: [u64; 2],
    /// Addresses asked for, the last one.
    pub(super) asked: Option<u64>,
    /// For the flaw `Stale`: pages as they were when the device saw them last.
    kept: HashMap<u64, Kept>,
}

/// A translation that outlives its page: what is done with it misses the page that is there now.
struct Kept {
    frame: u64,
    written: bool,
    bytes: Vec<u8>,
}

impl Memory {
    pub(super) fn new(flaw: Flaw) -> Result<Self> {
        let page_map = PageMap::open().context("cannot open the page map")?;
        Ok(Self {
            flaw,
            page_map,
            asks: true,
            requests: 0,
            groups: 0,
            reachable: true,
            ahead: 0,
            ends: [0; 2],
            asked: None,
            kept: HashMap::new(),
        })
    }

    /// Pages up to these ends may be asked for together with one that is missing, this many at most.
    pub(super) fn expect(&mut self, ahead: u8, read_end: u64, write_end: u64) {
        (self.ahead, self.ends) = (ahead.into(), [read_end, write_end]);
    }

    /// Brings a page in, if it can be; says whether it is there then.
    pub(super) fn fetch(&mut self, address: u64, write: bool) -> bool {
        let there = self.is_there(address, write);
        if there || self.flaw == Flaw::NoPri {
            return there;
        }
        self.requests += 1;
        self.touch(address, write);
        self.is_there(address, write)
    }

    fn touch(&self, address: u64, write: bool) {
        let mut byte = [0];
        if copy_from_self(address, &mut byte).is_ok() && write {
            // Refused or not: whoever needs the page will see.
            let _ = copy_to_self(address, &byte);
        }
    }

    /// Asks for pages behind one that was missing.
    fn look_ahead(&mut self, address: u64, write: bool) -> Result<(), Refusal> {
        self.groups += 1;
        let end = self.ends[usize::from(write)];
        let ahead = if self.flaw == Flaw::AsksForOne { 0 } else { self.ahead };
        for number in 1..=ahead {
            let page = (address & !(PAGE_BYTES - 1)).saturating_add(number * PAGE_BYTES);
            if page < end && (self.flaw == Flaw::AsksForAll || !self.is_there(page, write)) {
                self.requests += 1;
                self.touch(page, write);
                if self.flaw == Flaw::OneForAll && !self.is_there(page, write) {
                    return Err(self.refused(address, write));
                }
            }
        }
        Ok(())
    }

    /// Ends what is known of this process's memory.
    pub(super) fn forget(&mut self) {
        self.kept.clear();
    }

    /// Reads up to the end of the page.
    pub(super) fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Refusal> {
        let address = self.wire(address);
        if let Some(kept) = self.stale(address, false) {
            let start = offset(address);
            bytes.copy_from_slice(&kept[start..start + bytes.len()]);
            return Ok(());
        }
        if self.flaw == Flaw::SeesEverything && copy_from_self(address, bytes).is_err() {
            bytes.fill(0);
            return Ok(());
        }
        self.reach(address, false)?;
        copy_from_self(address, bytes).map_err(|_| self.refused(address, false))?;
        self.keep(address, false);
        Ok(())
    }

    /// Writes up to the end of the page.
    pub(super) fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Refusal> {
        if let Some(kept) = self.stale(address, true) {
            let start = offset(address);
            kept[start..start + bytes.len()].copy_from_slice(bytes);
            return Ok(());
        }
        self.write_now(address, bytes)
    }

    /// The same past every kept translation: records are not what the flaw is about.
    pub(super) fn write_now(&mut self, address: u64, bytes: &[u8]) -> Result<(), Refusal> {
        let address = self.wire(address);
        self.reach(address, true)?;
        if self.flaw == Flaw::IgnoresRights && self.force(address, bytes) {
            return Ok(());
        }
        copy_to_self(address, bytes).map_err(|_| self.refused(address, true))?;
        self.keep(address, true);
        Ok(())
    }

    /// Makes sure that the page is there, or refuses as the descriptor says.
    fn reach(&mut self, address: u64, write: bool) -> Result<(), Refusal> {
        if self.is_there(address, write) {
            return Ok(());
        }
        if self.flaw == Flaw::NoPri && self.asks {
            return Err(Refusal { address, write, reason: Reason::NoPageRequests });
        }
        if !self.asks && self.flaw != Flaw::AlwaysBlocks {
            return Err(self.refused(address, write));
        }
        self.requests += if self.flaw == Flaw::CountsTwice { 2 } else { 1 };
        self.asked = Some(address & !(PAGE_BYTES - 1));
        thread::sleep(REQUEST);
        self.look_ahead(address, write)
    }

    /// What of an address reaches the bus.
    fn wire(&self, address: u64) -> u64 {
        if self.flaw == Flaw::Narrow { address & ((1 << 47) - 1) } else { address }
    }

    fn refused(&self, address: u64, write: bool) -> Refusal {
        Refusal { address, write, reason: Reason::NotAccessible }
    }

    /// Whether the kernel has the page in place, and for this process alone if it is to be written.
    /// That it may be written at all is not to be seen here.
    fn is_there(&self, address: u64, write: bool) -> bool {
        let Some(page) = self.page(address) else { return false };
        // In this order: to try an access brings an absent page in.
        page.is_present()
            && if write {
                page.is_exclusive() && !page.is_of_file() && !page.is_watched() && !self.lacks_right(address)
            } else {
                copy_from_self(address, &mut [0]).is_ok()
            }
    }

    fn page(&self, address: u64) -> Option<PageState> {
        self.page_map.page(address).ok()
    }

    /// Whether writing the page would fail; tried with the byte that is there.
    fn lacks_right(&self, address: u64) -> bool {
        if self.flaw == Flaw::IgnoresRights {
            return false;
        }
        let mut byte = [0];
        copy_from_self(address, &mut byte).is_err() || copy_to_self(address, &byte).is_err()
    }

    fn force(&self, address: u64, bytes: &[u8]) -> bool {
        let memory = std::fs::OpenOptions::new().write(true).open("/proc/self/mem");
        memory.and_then(|memory| memory.write_all_at(bytes, address)).is_ok()
    }

    /// The kept copy of a page that has gone, or is elsewhere now, or may no longer be written.
    fn stale(&mut self, address: u64, write: bool) -> Option<&mut Vec<u8>> {
        if self.flaw != Flaw::Stale {
            return None;
        }
        let here = self.is_there(address, write);
        let frame = self.page(address).map_or(0, PageState::frame);
        let kept = self.kept.get_mut(&(address / PAGE_BYTES))?;
        let valid = here && frame == kept.frame;
        (!valid && (kept.written || !write)).then_some(&mut kept.bytes)
    }

    fn keep(&mut self, address: u64, write: bool) {
        if self.flaw != Flaw::Stale {
            return;
        }
        let mut bytes = vec![0; PAGE];
        if copy_from_self(address & !(PAGE_BYTES - 1), &mut bytes).is_ok() {
            let frame = self.page(address).map_or(0, PageState::frame);
            let number = address / PAGE_BYTES;
            let written = write || self.kept.get(&number).is_some_and(|kept| kept.written);
            self.kept.insert(number, Kept { frame, written, bytes });
        }
    }
}

/// Where in its page an address is.
pub(super) fn offset(address: u64) -> usize {
    usize::try_from(address % PAGE_BYTES).unwrap_or(0)
}
