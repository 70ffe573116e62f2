//! The pages through which descriptors come.

use super::Flaw;
use crate::endpoint::{DESCRIPTOR_WORDS, portal};

/// A portal or window page.
#[derive(Clone, Copy, Default)]
pub(super) struct Page {
    staging: [u64; DESCRIPTOR_WORDS],
    dropped: u32,
    outcome: u32,
}

impl Page {
    pub(super) fn read(&self, register: usize, free: u32) -> u32 {
        match register {
            portal::FREE => free,
            portal::DROPPED => self.dropped,
            portal::OUTCOME => self.outcome,
            _ => 0,
        }
    }

    /// A descriptor, if this store completes it.
    pub(super) fn write(&mut self, register: usize, value: u64) -> Option<[u64; DESCRIPTOR_WORDS]> {
        *self.staging.get_mut(register / 8)? = value;
        (register / 8 == DESCRIPTOR_WORDS - 1).then(|| std::mem::take(&mut self.staging))
    }

    pub(super) fn note(&mut self, outcome: u32, flaw: Flaw) {
        self.dropped += u32::from(outcome != portal::ACCEPTED);
        let told = if flaw == Flaw::AlwaysAccepts { portal::ACCEPTED } else { outcome };
        self.outcome = told | ((self.outcome >> 8) + 1) << 8;
    }
}
