//! What the register pages, the workers and the PCI function share: the state of the device, and what its
//! switches and resets do (section 8).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use iommu_core::{DeviceTlbCompletion, DeviceTlbInvalidation, PageResponse};

use super::atc::DeviceTlb;
use super::command::{Commands, Ended};
use super::engines::Engines;
use super::misbehaviour::{Kind, Misbehaviour, Plan};
use super::portal::{Portal, Window, windows};
use super::pri::PageRequests;
use super::queue::Queue;
use super::spec::{BATCH_LOG2, Caps, GROUP_PAGES, GlobalStatus, Limits, WINDOWS};
use super::stats::{Clock, Counters, Timeline};

/// How the endpoint is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SvmConfig {
    /// Number of queues, 1 to [`MAX_QUEUES`](super::spec::MAX_QUEUES).
    pub queues: u8,
    /// Logarithm of a queue's depth, in [`DEPTH_LOG2`](super::spec::DEPTH_LOG2).
    pub depth_log2: u8,
    /// The function has ATS.
    pub ats: bool,
    /// The function has PRI; of no effect without ATS.
    pub pri: bool,
    /// Bits of its PASIDs, 1 to 20.
    pub pasid_bits: u8,
    /// Number of engines, 1 to [`MAX_ENGINES`](super::spec::MAX_ENGINES).
    pub engines: u8,
    /// What it does wrong from power-on on.
    pub misbehaviour: Plan,
}

impl Default for SvmConfig {
    fn default() -> Self {
        Self {
            queues: 8,
            depth_log2: 6,
            ats: true,
            pri: true,
            pasid_bits: 20,
            engines: 8,
            misbehaviour: Plan::default(),
        }
    }
}

impl SvmConfig {
    /// CAPS.
    #[must_use]
    pub fn caps(&self) -> Caps {
        Caps::DEFAULT
            .with_queues(self.queues)
            .with_depth(self.depth_log2)
            .with_ats(self.ats)
            .with_pri(self.ats && self.pri)
    }

    /// LIMITS.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits::DEFAULT
            .with_engines(self.engines)
            .with_windows(WINDOWS)
            .with_group(GROUP_PAGES)
            .with_batch(BATCH_LOG2)
    }
}

/// What the device tells its PCI side. Called without a lock but a queue's own gate; never blocks.
pub trait PciSide: Send + Sync {
    /// Sends an MSI-X vector, or nothing if it does not exist.
    fn interrupt(&self, vector: u16);
    /// PRI status RF.
    fn pri_response_failure(&self);
    /// PRI status UPRGI.
    fn pri_unexpected_group(&self);
    /// PRI status STOPPED, if PRI is disabled.
    fn pri_stopped(&self);
}

/// The device without its configuration space and its threads.
pub struct Device {
    /// As built.
    pub config: SvmConfig,
    /// Queues.
    pub queues: Vec<Queue>,
    /// Portals, one per queue.
    pub portals: Vec<Portal>,
    /// Windows.
    pub windows: Vec<Window>,
    /// Engines.
    pub engines: Engines,
    /// Commands.
    pub commands: Commands,
    /// Counters.
    pub counters: Arc<Counters>,
    /// Timeline.
    pub timeline: Timeline,
    /// Clock of the timeline.
    pub clock: Clock,
    /// Device-TLB.
    pub device_tlb: DeviceTlb,
    /// Page requests.
    pub pri: PageRequests,
    /// What it does wrong when told to.
    pub misbehaviour: Arc<Misbehaviour>,
    /// PCI side.
    pub pci: Arc<dyn PciSide>,
    /// [`GlobalStatus`] without PRI.
    switches: AtomicU32,
}

impl Device {
    /// In its power-on state. `config` is within its limits.
    #[must_use]
    pub fn new(config: SvmConfig, pci: Arc<dyn PciSide>) -> Self {
        let clock = Clock::default();
        let misbehaviour = Arc::new(Misbehaviour::new(&config.misbehaviour));
        Self {
            config,
            queues: (0..config.queues).map(|number| Queue::new(number, config.depth_log2)).collect(),
            portals: (0..config.queues).map(|_| Portal::default()).collect(),
            windows: windows(),
            engines: Engines::new(config.engines),
            commands: Commands::default(),
            counters: Arc::default(),
            timeline: Timeline::default(),
            clock,
            device_tlb: DeviceTlb::default(),
            pri: PageRequests::new(clock, misbehaviour.clone()),
            misbehaviour,
            pci,
            switches: AtomicU32::new(0),
        }
    }

    /// STATUS without PRI: what a worker looks at inside the gate.
    #[must_use]
    pub fn switches(&self) -> GlobalStatus {
        GlobalStatus::new_with_raw_value(self.switches.load(Ordering::Acquire))
    }

    /// STATUS.
    #[must_use]
    pub fn status(&self) -> GlobalStatus {
        self.switches().with_pri(self.pri.enabled())
    }

    /// Changes switches. On return nothing is under way that went by the old ones.
    fn switch(&self, change: impl Fn(GlobalStatus) -> GlobalStatus) {
        let apply = |raw| Some(change(GlobalStatus::new_with_raw_value(raw)).raw_value());
        // The closure always returns a value, so this cannot fail.
        let _ = self.switches.fetch_update(Ordering::AcqRel, Ordering::Acquire, apply);
        self.drain();
    }

    fn drain(&self) {
        for queue in &self.queues {
            queue.drain();
        }
    }

    /// Bus mastering was switched. Off: on return no DMA is under way.
    pub fn set_bus_master(&self, on: bool) {
        self.switch(|status| status.with_bus_master(on));
    }

    /// ATS was switched. The device-TLB is to be flushed, before ATS is used again.
    pub fn set_ats(&self, on: bool) {
        self.switch(|status| status.with_ats(on));
    }

    /// PASID was switched. The device-TLB is to be flushed.
    pub fn set_pasid(&self, on: bool) {
        self.switch(|status| status.with_pasid(on));
    }

    /// PRI was disabled. On return no page request is made any more.
    pub fn disable_pri(&self) {
        self.pri.disable();
        self.drain();
        self.tell_if_stopped();
    }

    /// PRI was reset, which it can be only while it is disabled. On return no page request is made any more.
    pub fn reset_pri(&self) {
        self.pri.reset();
        self.drain();
        self.tell_if_stopped();
    }

    /// Shows STOPPED if it is due.
    pub fn tell_if_stopped(&self) {
        if self.pri.stopped() {
            self.pci.pri_stopped();
        }
    }

    /// ENABLE of a queue goes to 0.
    pub fn disable_queue(&self, queue: &Queue) {
        queue.disable();
        self.pri.wake();
    }

    /// CTRL.RESET.
    pub fn reset(&self) {
        for window in &self.windows {
            window.disable();
        }
        for queue in &self.queues {
            queue.disable();
        }
        self.pri.wake();
        self.device_tlb.flush();
    }

    /// Function-level or conventional reset. On return no DMA is under way, and none follows.
    pub fn function_reset(&self) {
        self.abandon();
        self.misbehaviour.reset();
    }

    /// Drops all work without a trace, and goes back to the state after power-on. On return no DMA is under way, and
    /// none follows.
    pub fn abandon(&self) {
        for queue in &self.queues {
            queue.reset();
        }
        self.pri.reset();
        self.switch(|_| GlobalStatus::DEFAULT);
        self.device_tlb.flush();
        self.device_tlb.forget_hits();
        self.portals.iter().for_each(Portal::clear);
        self.windows.iter().for_each(Window::clear);
        self.engines.use_only(self.engines.count());
        self.commands.clear();
        for queue in &self.queues {
            queue.clear_counters();
        }
        self.counters.clear();
        self.timeline.clear();
    }

    /// COMMAND is written.
    pub fn start_command(&self, value: u32) {
        self.tell_of_command(self.commands.start(value, &self.queues));
        // What is aborted may wait for a page.
        self.pri.wake();
        self.look_at_command();
    }

    /// A descriptor has ended: perhaps the command under way has, too.
    pub fn look_at_command(&self) {
        self.tell_of_command(self.commands.progress(&self.queues));
    }

    fn tell_of_command(&self, ended: Option<Ended>) {
        if ended.is_some_and(|ended| ended.interrupt) {
            self.pci.interrupt(0);
        }
    }

    /// The function goes away: workers end. The caller joins them.
    pub fn exit(&self) {
        for queue in &self.queues {
            queue.exit();
        }
        self.pri.wake();
    }

    /// A device-TLB invalidation. Waits for open sessions, for nothing else.
    pub fn invalidate_device_tlb(&self, invalidation: &DeviceTlbInvalidation) -> DeviceTlbCompletion {
        self.counters.invalidations.count();
        self.misbehaviour.invalidation(|| self.device_tlb.invalidate(invalidation))
    }

    /// A page group response.
    pub fn page_group_response(&self, response: &PageResponse) {
        if self.misbehaviour.gone() || self.misbehaviour.happens(Kind::IgnoredResponse).is_some() {
            return;
        }
        let received = self.pri.receive(response, &self.counters);
        if received.unexpected {
            self.pci.pri_unexpected_group();
        }
        if received.failure {
            self.pci.pri_response_failure();
        }
        if received.stopped {
            self.pci.pri_stopped();
        }
    }
}
