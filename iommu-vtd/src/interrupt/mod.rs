//! Chapter 5: interrupt remapping.
//!
//! [`remap`] reads messages and entries, [`post`] updates posted-interrupt descriptors, [`cache`] keeps entries.
//! Here they are put together: what commands latch, what is cached, and who wants to know of changes.
//!
//! # Locks
//!
//! A delivery holds `latch` shared until the message is with the sink. Commands and invalidations take it alone:
//! that is the drain of interrupts in flight. Below it `cache` is taken, and nothing else but guest memory and the
//! sink's own locks.

pub mod cache;
pub mod post;
pub mod remap;

use std::sync::Weak;

use iommu_core::sync::{Mutex, RwLock};
use iommu_core::{
    Access, Completion, Fault, FaultClass, FaultReason, Iova, Msi, MsiSink, Request, RouteListener, SourceId,
};

use crate::capability::Capability;
use crate::invalidation::InterruptScope;
use crate::memory::TableMemory;
use crate::spec::interrupt::{InterruptReason, TableAddress};
use cache::EntryCache;
use remap::{Action, Entry, InterruptRules, Latch, Path};

/// A message that was blocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// Why.
    pub reason: InterruptReason,
    /// The interrupt index that the record names; 0 if the reason names none.
    pub index: u16,
    /// The entry asks for no record.
    pub silent: bool,
}

impl Blocked {
    /// As the fault log takes it.
    #[must_use]
    pub fn fault(&self, source: SourceId, msi: Msi) -> Fault {
        Fault {
            request: Request::untranslated(source, None, Iova(msi.address), Access::Write),
            reason: FaultReason { class: FaultClass::Interrupt, code: self.reason.code().into() },
            completion: Completion::UnsupportedRequest,
            log: !(self.silent && self.reason.qualified()),
        }
    }
}

/// A command, as far as it is about interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch {
    /// Remapping is wanted on (IRE).
    pub enabled: bool,
    /// Compatibility format is wanted to pass (CFI).
    pub compatibility: bool,
    /// A new table (SIRTP).
    pub table: Option<TableAddress>,
}

/// The interrupt side of a unit.
pub struct Interrupts {
    rules: InterruptRules,
    /// ESIRTPS.
    table_invalidates: bool,
    latch: RwLock<Latch>,
    cache: Mutex<EntryCache>,
    listeners: Mutex<Vec<Weak<dyn RouteListener>>>,
}

impl Interrupts {
    /// After power-on.
    #[must_use]
    pub fn new(capability: &Capability) -> Self {
        Self {
            rules: InterruptRules::new(capability),
            table_invalidates: capability.cap().esirtps(),
            latch: RwLock::new(Latch::OFF),
            cache: Mutex::new(EntryCache::default()),
            listeners: Mutex::new(Vec::new()),
        }
    }

    /// What commands have set.
    #[must_use]
    pub fn latch(&self) -> Latch {
        *self.latch.read()
    }

    /// See [`iommu_core::InterruptRemapper::deliver`].
    ///
    /// # Errors
    /// The message is blocked; the guest is still to be told.
    pub fn deliver(
        &self,
        memory: &impl TableMemory,
        source: SourceId,
        msi: Msi,
        sink: &dyn MsiSink,
    ) -> Result<(), Blocked> {
        let latch = self.latch.read();
        match remap::path(&latch, msi).map_err(|(reason, index)| unread(reason, index))? {
            Path::Memory => log::debug!("{source}: message to {:#x} is no interrupt", msi.address),
            Path::Unchanged => sink.send(source, msi),
            Path::Entry(index) => {
                let entry = self.entry(memory, &latch, index, source)?;
                let interrupt = match entry.action {
                    Action::Deliver(interrupt) => Some(interrupt),
                    Action::Post(posting) => post::post(memory, &posting, latch.extended())
                        .map_err(|reason| Blocked { reason, index, silent: entry.silent })?,
                };
                if let Some(interrupt) = interrupt {
                    sink.send(source, interrupt.message());
                }
            }
        }
        Ok(())
    }

    /// See [`iommu_core::InterruptRemapper::resolve`].
    pub fn resolve(&self, memory: &impl TableMemory, source: SourceId, msi: Msi) -> Option<Msi> {
        let latch = self.latch.read();
        match remap::path(&latch, msi).ok()? {
            Path::Memory => None,
            Path::Unchanged => Some(msi),
            Path::Entry(index) => match self.entry(memory, &latch, index, source).ok()?.action {
                Action::Deliver(interrupt) => Some(interrupt.message()),
                Action::Post(_) => None,
            },
        }
    }

    /// The entry of an index, from the cache or from memory. Caches nothing that is not present or has mistakes.
    fn entry(
        &self,
        memory: &impl TableMemory,
        latch: &Latch,
        index: u16,
        source: SourceId,
    ) -> Result<Entry, Blocked> {
        let mut cache = self.cache.lock();
        if let Some(entry) = cache.get(index) {
            let admitted = entry.admit(source).map(|()| entry.clone());
            return admitted.map_err(|reason| Blocked { reason, index, silent: entry.silent });
        }
        let gpa =
            remap::locate(latch, &self.rules, index).ok_or_else(|| unread(InterruptReason::Index, index))?;
        let words = load_pair(memory, gpa).ok_or_else(|| unread(InterruptReason::TableAccess, index))?;
        let entry = remap::decode(words, source, latch.extended(), &self.rules)
            .map_err(|reason| Blocked { reason, index, silent: remap::is_silent(words) })?;
        cache.insert(index, entry.clone());
        Ok(entry)
    }

    /// Carries out a command. On return no delivery by the old state is under way, and routes are resolved anew.
    /// Not with a lock held that a listener takes.
    pub fn switch(&self, switch: &Switch) {
        let mut latch = self.latch.write();
        let before = *latch;
        latch.enabled = switch.enabled;
        latch.compatibility = switch.compatibility;
        latch.table = switch.table.unwrap_or(before.table);
        let stale = switch.table.is_some() || before.enabled && !switch.enabled;
        if stale && self.table_invalidates {
            self.cache.lock().invalidate(InterruptScope::All);
        }
        let changed = *latch != before || switch.table.is_some();
        drop(latch);
        if changed {
            log::debug!("interrupt remapping: {switch:?}");
            self.notify();
        }
    }

    /// Drops entries that are cached. On return no delivery by one of them is under way, and routes are resolved
    /// anew. Not with a lock held that a listener takes.
    pub fn invalidate(&self, scope: InterruptScope) {
        let latch = self.latch.write();
        self.cache.lock().invalidate(scope);
        drop(latch);
        self.notify();
    }

    /// Back to the state after power-on; listeners stay.
    pub fn reset(&self) {
        self.restore(Latch::OFF);
    }

    /// Puts `saved` in place of what commands have set. Nothing stays cached, and routes are resolved anew.
    pub fn restore(&self, saved: Latch) {
        let mut latch = self.latch.write();
        *latch = saved;
        self.cache.lock().invalidate(InterruptScope::All);
        drop(latch);
        self.notify();
    }

    /// Adds a listener, for as long as it lives.
    pub fn add_listener(&self, listener: Weak<dyn RouteListener>) {
        self.listeners.lock().push(listener);
    }

    fn notify(&self) {
        let listeners: Vec<_> = {
            let mut listeners = self.listeners.lock();
            listeners.retain(|listener| listener.strong_count() > 0);
            listeners.iter().filter_map(Weak::upgrade).collect()
        };
        for listener in listeners {
            listener.routes_changed();
        }
    }
}

/// Blocked before an entry was read.
fn unread(reason: InterruptReason, index: u16) -> Blocked {
    Blocked { reason, index: if reason.names_index() { index } else { 0 }, silent: false }
}

/// How often an entry is read until it has been read twice the same.
const READS: u32 = 16;

/// Reads both halves of an entry as they stood at one moment: software may exchange all 16 bytes at once. If they
/// keep changing, software does not, and gets what was read last.
fn load_pair(memory: &impl TableMemory, gpa: iommu_core::Gpa) -> Option<[u64; 2]> {
    let mut words = memory.load_words::<2>(gpa)?;
    for _ in 0..READS {
        let again = memory.load_words::<2>(gpa)?;
        if again == words {
            break;
        }
        words = again;
    }
    Some(words)
}
