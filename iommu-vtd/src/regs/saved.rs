//! Registers as plain numbers, and back.

use std::collections::BTreeMap;

use super::{CAP, ECAP, ROWS, RegisterFile, Row, TABLE, VER, row};
use crate::capability::FAULT_RECORDS;
use crate::spec::bits;

/// Bits that hardware sets and software cannot write, by register. A bit that is missing here makes every state
/// with it unfit to be restored, so it is noticed at once.
const HARDWARE: &[(&str, u64)] = &[
    ("GSTS", bits(31, 30) | bits(26, 23)),
    ("CCMD", bits(60, 59)),
    ("FSTS", bits(15, 8) | bits(1, 1)),
    ("FECTL", bits(30, 30)),
    ("IQH", bits(18, 4)),
    ("IECTL", bits(30, 30)),
    ("IQERCD", bits(63, 32) | bits(3, 0)),
    ("PECTL", bits(30, 30)),
    ("IOTLB", bits(58, 57)),
];

/// Bits that software sets and hardware clears before the write is done.
const BUSY: &[(&str, u64)] = &[("CCMD", bits(63, 63)), ("IOTLB", bits(63, 63))];

/// Registers that the profile decides.
const CONSTANT: [u16; 3] = [VER.offset, CAP.offset, ECAP.offset];

/// A register that cannot be taken over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRegister {
    /// One that this unit has is not there.
    #[error("register {name} is missing")]
    Missing {
        /// The manual's name.
        name: &'static str,
    },
    /// This unit has none of that name.
    #[error("there is no register {name}")]
    Unknown {
        /// As saved.
        name: String,
    },
    /// It has bits that it cannot have.
    #[error("register {name} cannot be {value:#x}: its bits are {allowed:#x}")]
    Bits {
        /// The manual's name.
        name: &'static str,
        /// As saved.
        value: u64,
        /// Bits that it may have.
        allowed: u64,
    },
    /// The fault records are more or fewer than this unit has.
    #[error("{found} fault records where there are {FAULT_RECORDS}")]
    Records {
        /// As saved.
        found: usize,
    },
}

fn mask(table: &[(&str, u64)], name: &str) -> u64 {
    table.iter().find(|(register, _)| *register == name).map_or(0, |(_, mask)| *mask)
}

impl RegisterFile {
    /// Every register by its name, write-only bits included; not those that the profile decides, and not the
    /// fault records.
    #[must_use]
    pub fn save(&self) -> BTreeMap<String, u64> {
        self.named().map(|row| (row.name.to_owned(), self.raw(row))).collect()
    }

    /// The fault records: bits 63:0 and 127:64 of each.
    #[must_use]
    pub fn save_records(&self) -> Vec<[u64; 2]> {
        let words: Vec<u64> = (TABLE.len()..ROWS).map(|index| self.raw(&row(index))).collect();
        words.chunks_exact(2).map(|pair| [pair[0], pair[1]]).collect()
    }

    /// Takes over what [`Self::save`] gave. `self` is at its reset values; after an error it is of no use.
    ///
    /// # Errors
    /// A register is missing or unknown, or has bits that it cannot have.
    pub fn load(&mut self, saved: &BTreeMap<String, u64>) -> Result<(), BadRegister> {
        let rows: Vec<Row> = self.named().copied().collect();
        if let Some(name) = saved.keys().find(|name| !rows.iter().any(|row| row.name == **name)) {
            return Err(BadRegister::Unknown { name: name.clone() });
        }
        for row in rows {
            let name = row.name;
            let value = *saved.get(name).ok_or(BadRegister::Missing { name })?;
            let allowed = (self.writable(&row) | mask(HARDWARE, name)) & !mask(BUSY, name);
            if value & !allowed != 0 {
                return Err(BadRegister::Bits { name, value, allowed });
            }
            self.set_raw(&row, value);
        }
        Ok(())
    }

    /// Takes over what [`Self::save_records`] gave.
    ///
    /// # Errors
    /// There are more or fewer of them than here.
    pub fn load_records(&mut self, saved: &[[u64; 2]]) -> Result<(), BadRegister> {
        if saved.len() != usize::from(FAULT_RECORDS) {
            return Err(BadRegister::Records { found: saved.len() });
        }
        for (index, value) in (TABLE.len()..ROWS).zip(saved.as_flattened()) {
            self.set_raw(&row(index), *value);
        }
        Ok(())
    }

    fn named(&self) -> impl Iterator<Item = &'static Row> {
        TABLE.iter().filter(|row| self.has(row) && !CONSTANT.contains(&row.offset))
    }

    /// Bits that software may change.
    fn writable(&self, row: &Row) -> u64 {
        let word = &self.words[usize::from(row.offset / 8)];
        (word.rw | word.w1c) >> shift(row) & width(row)
    }

    fn raw(&self, row: &Row) -> u64 {
        self.words[usize::from(row.offset / 8)].value >> shift(row) & width(row)
    }

    fn set_raw(&mut self, row: &Row, value: u64) {
        let lane = width(row) << shift(row);
        let word = &mut self.words[usize::from(row.offset / 8)].value;
        *word = *word & !lane | value << shift(row) & lane;
    }
}

/// Position of the register in its word.
fn shift(row: &Row) -> u32 {
    u32::from(row.offset % 8) * 8
}

/// The register's bits, from 0 on.
fn width(row: &Row) -> u64 {
    if row.bytes == 4 { bits(31, 0) } else { u64::MAX }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_name_registers() {
        for (name, _) in HARDWARE.iter().chain(BUSY) {
            assert!(TABLE.iter().any(|row| row.name == *name), "{name}");
        }
    }
}
