//! This process's memory as the model's device sees it: page by page, through the kernel.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::Flaw;
use crate::endpoint::Reason;
use crate::sys::{PAGE, PAGE_BYTES, copy_from_self, copy_to_self};

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
    page_map: File,
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
    kept: HashMap<u64, Vec<u8>>,
}

impl Memory {
    pub(super) fn new(flaw: Flaw) -> Result<Self> {
        let page_map = File::open("/proc/self/pagemap").context("cannot open the page map")?;
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

    /// Reads up to the end of the page.
    pub(super) fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Refusal> {
        if let Some(kept) = self.stale(address) {
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
        self.keep(address);
        Ok(())
    }

    /// Writes up to the end of the page.
    pub(super) fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Refusal> {
        if let Some(kept) = self.stale(address) {
            let start = offset(address);
            kept[start..start + bytes.len()].copy_from_slice(bytes);
            return Ok(());
        }
        self.reach(address, true)?;
        if self.flaw == Flaw::IgnoresRights && self.force(address, bytes) {
            return Ok(());
        }
        copy_to_self(address, bytes).map_err(|_| self.refused(address, true))?;
        self.keep(address);
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

    fn refused(&self, address: u64, write: bool) -> Refusal {
        Refusal { address, write, reason: Reason::NotAccessible }
    }

    /// Whether the kernel has the page in place, and for this process alone if it is to be written.
    /// That it may be written at all is not to be seen here.
    fn is_there(&self, address: u64, write: bool) -> bool {
        const PRESENT: u64 = 1 << 63;
        const FILE: u64 = 1 << 61;
        const EXCLUSIVE: u64 = 1 << 56;
        let mut entry = [0; 8];
        if self.page_map.read_exact_at(&mut entry, address / PAGE_BYTES * 8).is_err() {
            return false;
        }
        let entry = u64::from_le_bytes(entry);
        // In this order: to try an access brings an absent page in.
        entry & PRESENT != 0
            && if write {
                entry & EXCLUSIVE != 0 && entry & FILE == 0 && !self.lacks_right(address)
            } else {
                copy_from_self(address, &mut [0]).is_ok()
            }
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

    /// The kept copy of a page that has gone.
    fn stale(&mut self, address: u64) -> Option<&mut Vec<u8>> {
        if self.flaw != Flaw::Stale || self.is_there(address, false) {
            return None;
        }
        self.kept.get_mut(&(address / PAGE_BYTES))
    }

    fn keep(&mut self, address: u64) {
        if self.flaw == Flaw::Stale {
            let mut page = vec![0; PAGE];
            if copy_from_self(address & !(PAGE_BYTES - 1), &mut page).is_ok() {
                self.kept.insert(address / PAGE_BYTES, page);
            }
        }
    }
}

/// Where in its page an address is.
pub(super) fn offset(address: u64) -> usize {
    usize::try_from(address % PAGE_BYTES).unwrap_or(0)
}
