//! ATS, PRI and PASID as a function's worker threads see them: lock-free, written on configuration writes.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use super::function::{AtsState, PasidState, PriState};

const ENABLED_32: u32 = 1 << 31;
const ENABLED_64: u64 = 1 << 63;

/// Control state that worker threads read. Each of them is one atomic, so a reader never sees half a change.
#[derive(Debug, Default)]
pub(super) struct LiveState {
    bus_master: AtomicBool,
    pasid: AtomicBool,
    /// [`ENABLED_32`] and the STU.
    ats: AtomicU32,
    /// [`ENABLED_64`] and the allocation.
    pri: AtomicU64,
}

impl LiveState {
    pub(super) fn bus_master(&self) -> bool {
        self.bus_master.load(Ordering::Acquire)
    }

    pub(super) fn pasid(&self) -> PasidState {
        PasidState { enabled: self.pasid.load(Ordering::Acquire) }
    }

    pub(super) fn ats(&self) -> AtsState {
        let word = self.ats.load(Ordering::Acquire);
        AtsState { enabled: word & ENABLED_32 != 0, stu: word.to_le_bytes()[0] }
    }

    pub(super) fn pri(&self) -> PriState {
        let word = self.pri.load(Ordering::Acquire);
        let [a, b, c, d, ..] = word.to_le_bytes();
        PriState { enabled: word & ENABLED_64 != 0, allocation: u32::from_le_bytes([a, b, c, d]) }
    }

    pub(super) fn set_bus_master(&self, enabled: bool) {
        self.bus_master.store(enabled, Ordering::Release);
    }

    pub(super) fn set_pasid(&self, state: PasidState) {
        self.pasid.store(state.enabled, Ordering::Release);
    }

    pub(super) fn set_ats(&self, state: AtsState) {
        let enabled = if state.enabled { ENABLED_32 } else { 0 };
        self.ats.store(enabled | u32::from(state.stu), Ordering::Release);
    }

    pub(super) fn set_pri(&self, state: PriState) {
        let enabled = if state.enabled { ENABLED_64 } else { 0 };
        self.pri.store(enabled | u64::from(state.allocation), Ordering::Release);
    }
}
