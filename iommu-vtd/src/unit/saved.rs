//! A unit's state taken out and put in.

use iommu_core::sync::atomic::Ordering;

use super::{State, Unit};
use crate::memory::TableMemory;
use crate::state::{Parts, RestoreError, UnitState};

impl<M: TableMemory> Unit<M> {
    /// The whole state, as of a moment at which no register write, fault or page request is half done.
    ///
    /// Waits for register writes and page requests that are under way, so it is called by a thread that holds no
    /// lock of an endpoint and no session. CPUs and functions have been stopped before, if what they do later is
    /// not to be lost. Nothing is changed. Guest memory, with the tables and queues in it, is not part of the
    /// state, and neither is what endpoints keep for themselves: their device-TLBs, and requests without answer.
    #[must_use]
    pub fn save(&self) -> UnitState {
        // A field that is added fails to compile here. Decide: part of the state, or why not.
        let Self {
            capability,
            // What a unit is made from, or follows from that.
            rules: _,
            source: _,
            memory: _,
            msi: _,
            // Caches: see `Self::restore`.
            caches: _,
            ports: _,
            // Wiring of the machine: whoever builds the new unit attaches endpoints to it.
            endpoints: _,
            // Of this unit, not of its guest.
            counters: _,
            root: _,
            interrupts,
            // What is in it is told to hosts, by the tables.
            turn,
            arriving,
            state,
        } = self;
        let _turn = turn.lock();
        let _arriving = arriving.write();
        // The latch comes before `state` in the order of locks; commands, which change both, wait for `turn`.
        let (root, interrupts) = (self.root(), interrupts.latch());
        let State { file, ring, log } = &*state.lock();
        UnitState::of(&Parts { capability: *capability, file, root, interrupts, ring: *ring, log: *log })
    }

    /// Puts a state in, in place of all that was. Nothing is sent and no queue is touched until [`Self::resume`].
    ///
    /// What is cached, here and in ports, is dropped. That is right because a cache may lose anything at any time:
    /// entries are copies of tables in memory, whatever accessed and dirty bits they stand for is in those tables,
    /// and software that relied on a stale entry would have a bug on every hardware. Listeners to interrupt routes
    /// are told to resolve them anew, so guest memory is restored before its units.
    ///
    /// The caller is as for [`Self::save`].
    ///
    /// # Errors
    /// The state is not one that a unit with these capabilities can be in. The unit is as it was.
    pub fn restore(&self, saved: &UnitState) -> Result<(), RestoreError> {
        let Parts { capability: _, file, root, interrupts, ring, log } = saved.parts(&self.capability)?;
        let mut hosts = self.turn.lock();
        let arriving = self.arriving.write();
        self.root.store(root.to_raw(), Ordering::Release);
        *self.state.lock() = State { file, ring, log };
        self.invalidate_all();
        drop(arriving);
        self.rebind_all(&mut hosts);
        self.interrupts.restore(interrupts);
        Ok(())
    }

    /// Goes on where the saved unit stood: descriptors that were in its queue are done now. To be called when
    /// endpoints are restored and attached, before a CPU runs.
    pub fn resume(&self) {
        let mut hosts = self.turn.lock();
        self.process_queue(&mut hosts);
    }
}
