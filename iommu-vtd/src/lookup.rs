//! What a look-up starts from: where the tables lie, what they may hold, and what is known of them already.

use iommu_core::Gpa;

use crate::memory::{Reader, TableMemory};
use crate::rules::Rules;
use crate::spec::registers::{RootTableAddress, TranslationTableMode};

/// What the last "set root table pointer" latched, and whether translation is enabled.
///
/// One word, so that a unit can keep it in an atomic: bit 0 is TES, bits 11:10 TTM, bits 63:12 the address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RootLatch(u64);

impl RootLatch {
    const ENABLED: u64 = 1;

    /// A latch. `register` is RTADDR: table mode and address are taken from it, the rest is dropped.
    #[must_use]
    pub const fn new(register: u64, enabled: bool) -> Self {
        Self(register & !0x3ff | if enabled { Self::ENABLED } else { 0 })
    }

    /// From [`Self::to_raw`].
    #[must_use]
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// As one word.
    #[must_use]
    pub const fn to_raw(self) -> u64 {
        self.0
    }

    /// Whether requests are translated at all.
    #[inline]
    #[must_use]
    pub const fn enabled(self) -> bool {
        self.0 & Self::ENABLED != 0
    }

    /// The same latch with translation enabled or not.
    #[must_use]
    pub const fn with_enabled(self, enabled: bool) -> Self {
        Self::new(self.0, enabled)
    }

    /// Translation table mode.
    #[inline]
    #[must_use]
    pub const fn mode(self) -> TranslationTableMode {
        RootTableAddress::new_with_raw_value(self.0).ttm()
    }

    /// Address of the root table.
    #[inline]
    #[must_use]
    pub const fn table(self) -> Gpa {
        Gpa(self.0 & !0xfff)
    }
}

/// Everything that a look-up sees.
#[derive(Clone, Copy)]
pub struct Context<'a, M> {
    /// Where the tables lie.
    pub memory: &'a M,
    /// What the tables may hold.
    pub rules: &'a Rules,
    /// Where they start.
    pub root: RootLatch,
}

/// One look-up: what a [`Context`] holds, where in memory it read last, and what caches know.
pub(crate) struct Lookup<'a, M: TableMemory, C> {
    pub(crate) memory: Reader<'a, M>,
    pub(crate) rules: &'a Rules,
    pub(crate) root: RootLatch,
    pub(crate) caches: &'a C,
}

impl<'a, M: TableMemory, C> Lookup<'a, M, C> {
    #[inline]
    pub(crate) fn new(cx: &Context<'a, M>, caches: &'a C) -> Self {
        Self { memory: Reader::new(cx.memory), rules: cx.rules, root: cx.root, caches }
    }
}

/// Nothing is cached: every look-up reads the tables as they stand.
pub(crate) struct NoCaches;
