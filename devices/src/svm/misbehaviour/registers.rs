//! The switchboard in the global page: all 32 bits wide.

use std::ops::Range;

use super::board::Misbehaviour;
use super::kind::Kind;
use super::plan::{How, MOST, Setting};

/// Where it is in the global page.
pub const RANGE: Range<u64> = 0x400..0x500;

/// Kinds that there are, RO.
const KINDS: u64 = 0x400;
/// Kinds that are on, RO.
const ON: u64 = 0x404;
/// Seed of the dice; writing starts them anew.
const SEED: u64 = 0x408;
/// Which kind the next three are about.
const SELECT: u64 = 0x40c;
/// Argument that comes with the next write of HOW.
const ARGUMENT: u64 = 0x410;
/// How often. Writing switches.
const HOW: u64 = 0x414;
/// How often it happened, RO.
const HAPPENED: u64 = 0x418;
/// Commands.
const COMMAND: u64 = 0x41c;

/// COMMAND: everything off.
const ALL_OFF: u32 = 1 << 0;
/// COMMAND: a function that is gone comes back. The only write that one that is gone takes.
const BRING_BACK: u32 = 1 << 1;

/// Offset in BAR0 of the register that a function takes even while it is gone.
pub const WAY_BACK: u64 = COMMAND;

/// Whether a write to [`WAY_BACK`] brings the function back.
#[must_use]
pub fn brings_back(data: &[u8]) -> bool {
    data.first().is_some_and(|&byte| u32::from(byte) & BRING_BACK != 0)
}

impl How {
    /// As in HOW: 1:0 mode, 31:8 count or N.
    #[must_use]
    pub fn to_raw(self) -> u32 {
        let (mode, value) = match self {
            Self::Off => (0, 0),
            Self::Always => (1, 0),
            Self::Count(count) => (2, count),
            Self::OneIn(times) => (3, times),
        };
        value.min(MOST) << 8 | mode
    }

    /// From HOW. Bits 7:2 are ignored.
    #[must_use]
    pub fn from_raw(raw: u32) -> Self {
        match raw & 3 {
            0 => Self::Off,
            1 => Self::Always,
            2 => Self::Count(raw >> 8),
            _ => Self::OneIn(raw >> 8),
        }
    }
}

impl Misbehaviour {
    /// Reads the register at an offset in [`RANGE`], a multiple of 4; 0 where there is none.
    #[must_use]
    pub fn read(&self, offset: u64) -> u32 {
        let (select, argument) = self.chosen();
        let of_kind = |look: &dyn Fn(Kind) -> u32| Kind::of_number(select).map_or(0, look);
        match offset {
            KINDS => Kind::all().fold(0, |set, kind| set | kind.bit()),
            ON => self.on(),
            SEED => self.seed(),
            SELECT => select,
            ARGUMENT => argument,
            HOW => of_kind(&|kind| self.setting(kind).how.to_raw()),
            HAPPENED => of_kind(&|kind| self.happened(kind)),
            _ => 0,
        }
    }

    /// Writes the register at an offset in [`RANGE`], a multiple of 4.
    pub fn write(&self, offset: u64, value: u32) {
        match offset {
            SEED => self.sow(value),
            SELECT => self.select(value),
            ARGUMENT => self.set_argument(value),
            HOW => {
                let (select, argument) = self.chosen();
                if let Some(kind) = Kind::of_number(select) {
                    self.switch(kind, Setting::new(kind, How::from_raw(value), argument));
                }
            }
            COMMAND if value & ALL_OFF != 0 => self.all_off(),
            _ => {}
        }
    }
}
