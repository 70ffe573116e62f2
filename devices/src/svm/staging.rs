//! A portal's staging area: one descriptor as it is being written (section 2).

use parking_lot::Mutex;
use zerocopy::{FromZeros, IntoBytes};

use super::spec::{Descriptor, portal};

/// One descriptor as it is being written.
#[derive(Default)]
pub struct Staging(Mutex<Descriptor>);

impl Staging {
    /// Forgets what was written.
    pub fn clear(&self) {
        self.0.lock().zero();
    }

    /// Writes the bytes of one 32-bit word that `mask` selects. The descriptor, if this submits it.
    pub fn write(&self, offset: usize, value: u32, mask: u32) -> Option<Descriptor> {
        let mut staged = self.0.lock();
        let word = staged.as_mut_bytes().get_mut(offset..)?.first_chunk_mut::<4>()?;
        *word = merge(u32::from_le_bytes(*word), value, mask).to_le_bytes();
        let submits = offset + 4 == portal::STAGING_BYTES && mask >> 24 != 0;
        submits.then(|| std::mem::take(&mut *staged))
    }
}

/// The bits of `old` with those that `mask` selects taken from `value`.
pub fn merge(old: u32, value: u32, mask: u32) -> u32 {
    old & !mask | value & mask
}
