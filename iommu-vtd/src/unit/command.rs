//! Chapter 11: commands of GCMD.

use iommu_core::sync::atomic::Ordering;

use iommu_core::{DeviceTlbCompletion, DeviceTlbInvalidation, IovaRange};

use super::Unit;
use crate::fault::FaultLog;
use crate::memory::TableMemory;
use crate::queue::Ring;
use crate::regs::{GSTS, IQA, IQH, RTADDR};
use crate::spec::registers::{GlobalCommand, QueueOffset};
use crate::tables::RootLatch;

/// Commands of GCMD that are levels: the bit stands for the state wanted. The others are one-shot.
pub(super) const LEVELS: u32 =
    GlobalCommand::DEFAULT.with_te(true).with_qie(true).with_ire(true).with_cfi(true).raw_value();

impl<M: TableMemory> Unit<M> {
    /// Carries out a command: one-shot bits that are set, and the difference of all levels. A level that is
    /// missing from a one-shot command is thereby switched off.
    ///
    /// Setting the root pointer drops what is cached if ESRTPS says so; without it the driver's own global
    /// invalidations do. Switching translation drops everything: off because the manual says so, on because ports
    /// keep addresses that passed untranslated.
    ///
    /// The status tells the truth at any moment: "root pointer set" goes away while it is being set, and
    /// translation is not reported off before in-flight DMA has drained.
    pub(super) fn command(&self, command: GlobalCommand) {
        let mut hosts = self.turn.lock();
        let queue = command.qie() && self.capability.ecap().qi();
        let command = self.offered(command.with_qie(queue));
        let mut state = self.state.lock();
        let status = state.file.get(GSTS);
        let before = self.root();
        let mut root = before.with_enabled(command.te());
        if command.srtp() {
            root = RootLatch::new(state.file.get(RTADDR).raw_value(), command.te());
            state.file.set(GSTS, status.with_srtp(false));
        }
        if command.sirtp() {
            let status = state.file.get(GSTS);
            state.file.set(GSTS, status.with_sirtp(false));
        }
        self.root.store(root.to_raw(), Ordering::Release);
        drop(state);
        // Tables of another kind must not be read with entries of the old; the manual leaves it undefined.
        let other_mode = root.mode() != before.mode();
        if command.srtp() && (self.capability.cap().esrtps() || other_mode) || command.te() != status.te() {
            self.invalidate_all();
        }
        if command.srtp() || command.te() != status.te() {
            self.drain_page_requests();
            self.rebind_all(&mut hosts);
        }
        if command.te() != status.te() {
            log::info!("translation {}, {:?} tables", if command.te() { "on" } else { "off" }, root.mode());
        }
        if status.te() && !command.te() {
            self.clear_device_tlbs();
        }
        self.switch_interrupts(command);
        self.finish(command, status);
    }

    /// While translation is off, translated requests are refused. Hits in a device-TLB are not seen here, so
    /// device-TLBs are emptied; a translation request that would fill them again is refused.
    fn clear_device_tlbs(&self) {
        let endpoints: Vec<_> =
            self.endpoints.read().iter().filter_map(|(source, e)| Some((*source, e.upgrade()?))).collect();
        for (source, endpoint) in endpoints {
            for all_pasids in [false, true] {
                let range = IovaRange::ALL;
                let all = DeviceTlbInvalidation { source, pasid: None, all_pasids, range };
                if endpoint.invalidate_device_tlb(&all) == DeviceTlbCompletion::TimedOut {
                    log::debug!("{source} keeps translations though translation is off");
                }
            }
        }
    }

    fn finish(&self, command: GlobalCommand, before: GlobalCommand) {
        let mut state = self.state.lock();
        let status = before
            .with_te(command.te())
            .with_srtp(before.srtp() || command.srtp())
            .with_qie(command.qie())
            .with_ire(command.ire())
            .with_sirtp(before.sirtp() || command.sirtp())
            .with_cfi(command.cfi());
        if command.qie() != before.qie() {
            log::debug!("queued invalidation {}", if command.qie() { "on" } else { "off" });
            state.ring = command.qie().then(|| Ring::latch(state.file.get(IQA)));
            state.file.set(IQH, QueueOffset::DEFAULT);
        }
        if !status.te() && !status.ire() {
            state.log = FaultLog::default();
        }
        state.file.set(GSTS, status);
    }
}
