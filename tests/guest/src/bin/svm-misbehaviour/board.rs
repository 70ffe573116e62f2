//! The endpoint's switchboard as a driver sees it.

use std::sync::Arc;

use anyhow::{Result, ensure};
use clap::ValueEnum;
use guest::registers::Registers;

const KINDS: usize = 0x400;
const ON: usize = 0x404;
const SEED: usize = 0x408;
const SELECT: usize = 0x40c;
const ARGUMENT: usize = 0x410;
const HOW: usize = 0x414;
const HAPPENED: usize = 0x418;
const COMMAND: usize = 0x41c;

/// One way to misbehave, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Kind {
    LateInvalidation = 0,
    LostInvalidation = 1,
    StaleTranslation = 2,
    WrongGroup = 3,
    ExcessRequest = 4,
    UntranslatedAccess = 5,
    TranslatedAccess = 6,
    ForeignPasid = 7,
    InterruptRange = 8,
    RequestFlood = 9,
    IgnoredResponse = 10,
    PrivilegedRequest = 11,
    ExecuteRequest = 12,
    StrangeAddress = 13,
    UnfinishedGroup = 14,
    SurpriseRemoval = 15,
}

impl Kind {
    /// A kind with other consequences, of those that end with the case.
    fn another(self) -> Self {
        match self {
            Self::LateInvalidation => Self::LostInvalidation,
            Self::LostInvalidation | Self::StaleTranslation => Self::LateInvalidation,
            Self::WrongGroup => Self::IgnoredResponse,
            Self::PrivilegedRequest => Self::StrangeAddress,
            Self::TranslatedAccess => Self::ForeignPasid,
            Self::ForeignPasid => Self::InterruptRange,
            Self::InterruptRange => Self::TranslatedAccess,
            _ => Self::PrivilegedRequest,
        }
    }
}

/// Something wrong with the endpoint's misbehaviour, for the cases to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Flaw {
    /// Nothing.
    None,
    /// It behaves, whatever it is told.
    Honest,
    /// It misbehaves in another way than it is told, and says that it is the one.
    Another,
}

/// How often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    Always,
    Count(u32),
    OneIn(u32),
}

impl How {
    fn raw(self) -> u32 {
        match self {
            Self::Always => 1,
            Self::Count(count) => count << 8 | 2,
            Self::OneIn(times) => times << 8 | 3,
        }
    }
}

/// The registers.
#[derive(Clone)]
pub(crate) struct Board {
    registers: Arc<dyn Registers>,
    flaw: Flaw,
}

impl Board {
    /// The switchboard in these registers.
    pub(crate) fn new(registers: Arc<dyn Registers>, flaw: Flaw) -> Result<Self> {
        let kinds = registers.read32(KINDS);
        ensure!(kinds & 0xffff == 0xffff, "the endpoint knows the kinds {kinds:#x} only");
        Ok(Self { registers, flaw })
    }

    /// Switches a kind on, with its default argument.
    pub(crate) fn switch(&self, kind: Kind, how: How) {
        self.select(kind);
        self.start(how);
    }

    /// The same with an argument.
    pub(crate) fn switch_with(&self, kind: Kind, how: How, argument: u32) {
        self.select(kind);
        self.registers.write32(ARGUMENT, argument);
        self.start(how);
    }

    fn select(&self, kind: Kind) {
        let kind = if self.flaw == Flaw::Another { kind.another() } else { kind };
        self.registers.write32(SELECT, kind as u32);
    }

    fn start(&self, how: How) {
        if self.flaw != Flaw::Honest {
            self.registers.write32(HOW, how.raw());
        }
    }

    /// How often it happened.
    pub(crate) fn happened(&self, kind: Kind) -> u32 {
        self.select(kind);
        self.registers.read32(HAPPENED)
    }

    /// Kinds that are on.
    pub(crate) fn on(&self) -> u32 {
        self.registers.read32(ON)
    }

    /// Starts the dice anew.
    pub(crate) fn sow(&self, seed: u32) {
        self.registers.write32(SEED, seed);
    }

    /// Everything off.
    pub(crate) fn off(&self) {
        self.registers.write32(COMMAND, 1);
    }

    /// A function that is gone comes back.
    pub(crate) fn bring_back(&self) {
        self.registers.write32(COMMAND, 2);
    }

    /// Whether the function is gone.
    pub(crate) fn is_gone(&self) -> bool {
        self.registers.read32(KINDS) == u32::MAX
    }
}
