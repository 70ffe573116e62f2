//! DMA of a running device: one session after the other, none of them longer than a moment.

use std::sync::Arc;

use iommu_core::{Port, SESSION_LIMIT_BYTES, Session};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::chain::Segments;
use super::core::Core;
use super::stop::{Denied, Gone};

/// Most bytes that one call may move.
pub const MOST_BYTES: usize = SESSION_LIMIT_BYTES / 2;

/// The way of one start of a device into guest memory.
pub struct Lane<M> {
    core: Arc<Core>,
    port: Port<M>,
    epoch: u64,
}

impl<M: GuestMemoryBackend> Lane<M> {
    /// For a device that is not started yet.
    pub(super) fn new(core: Arc<Core>, port: Port<M>) -> Self {
        Self { core, port, epoch: 0 }
    }

    /// From now on for this start.
    pub(super) fn set_epoch(&mut self, epoch: u64) {
        self.epoch = epoch;
    }

    /// Runs `work` in a session; waits before it while the function may not master the bus. `work` neither blocks
    /// nor moves more than [`MOST_BYTES`].
    ///
    /// # Errors
    /// The device was reset; `work` did not run.
    pub fn session<R>(&mut self, work: impl FnOnce(&Session<'_, M>) -> R) -> Result<R, Gone> {
        let _gate = self.core.enter(self.epoch)?;
        let session = self.port.session(None);
        Ok(work(&session))
    }

    /// Fills `data`, of at most [`MOST_BYTES`], from `offset` of what the driver wrote.
    ///
    /// # Errors
    /// `data` is not filled, or only in part.
    pub fn read(&mut self, from: &Segments, offset: u64, data: &mut [u8]) -> Result<(), Denied> {
        let wanted = data.len();
        let moved = self.session(|session| {
            let mut moved = 0;
            for (address, len) in from.pieces(offset, wanted) {
                let part = &mut data[moved..moved + len];
                if session.read_slice(part, GuestAddress(address.0)).is_err() {
                    break;
                }
                moved += len;
            }
            moved
        })?;
        if moved == wanted { Ok(()) } else { Err(Denied::Fault) }
    }

    /// Writes `data`, of at most [`MOST_BYTES`], to `offset` of what the driver wants to read.
    ///
    /// # Errors
    /// `data` is not written, or only in part.
    pub fn write(&mut self, to: &Segments, offset: u64, data: &[u8]) -> Result<(), Denied> {
        let moved = self.session(|session| {
            let mut moved = 0;
            for (address, len) in to.pieces(offset, data.len()) {
                let part = &data[moved..moved + len];
                if session.write_slice(part, GuestAddress(address.0)).is_err() {
                    break;
                }
                moved += len;
            }
            moved
        })?;
        if moved == data.len() { Ok(()) } else { Err(Denied::Fault) }
    }

    /// Tells the driver of used buffers.
    ///
    /// # Errors
    /// The device was reset.
    pub(super) fn interrupt(&self, queue: u16) -> Result<(), Gone> {
        self.core.interrupt(self.epoch, queue)
    }
}
