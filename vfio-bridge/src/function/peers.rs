//! Other devices' way to a device's memory (peer-to-peer): what the guest sees of a BAR, other devices of the guest reach
//! at the same guest-physical address.
//!
//! The host takes such a mapping back for good when the device is reset or its memory is switched off. Both are steps of
//! this crate's, before which nothing is shown any more; what is shown again later is mapped again.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use iommu_core::{HostError, SourceId};
use rustix::io::Errno;

use super::ways::{HostSide, Shown};
use crate::function_file::FunctionFile;
use crate::memory::SharedMemory;

/// Whoever lets other devices at a device's memory. A host that cannot is told of once, and not asked again.
pub(super) struct Peers {
    source: SourceId,
    host: Arc<dyn HostSide>,
    /// The host cannot.
    never: AtomicBool,
}

impl Peers {
    pub(super) fn new(source: SourceId, host: Arc<dyn HostSide>) -> Self {
        Self { source, host, never: AtomicBool::new(false) }
    }

    /// Makes a part of a BAR known to other devices.
    pub(super) fn export(&self, file: &dyn FunctionFile, bar: u8, part: &Range<u64>) -> Option<SharedMemory> {
        if self.never.load(Ordering::Relaxed) {
            return None;
        }
        let shared = file.share(bar.into(), part.clone());
        shared.inspect_err(|errno| self.give_up(format_args!("BAR {bar}: {errno}"))).ok()
    }

    /// Lets other devices at it, where the guest sees it.
    pub(super) fn share(&self, start: u64, memory: &SharedMemory) -> Option<Shown> {
        if self.never.load(Ordering::Relaxed) {
            return None;
        }
        let shared = self.host.share(start, memory);
        shared.inspect_err(|error| self.refused(error)).ok()
    }

    fn refused(&self, error: &HostError) {
        let HostError { object, source, .. } = error;
        match Errno::from_io_error(source) {
            // What the host lacks it will lack next time.
            Some(Errno::NOTTY | Errno::OPNOTSUPP) => self.give_up(format_args!("{object}: {source}")),
            // Guests move their BARs as often as they like.
            _ => log::debug!("{}: other devices do not reach its memory: {error}: {source}", self.source),
        }
    }

    fn give_up(&self, reason: std::fmt::Arguments<'_>) {
        if !self.never.swap(true, Ordering::Relaxed) {
            log::info!("{}: other devices do not reach its memory: {reason}", self.source);
        }
    }
}
