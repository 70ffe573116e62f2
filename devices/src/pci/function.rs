//! A PCI function as the root sees it, and what configuration writes tell a function.

/// Number of base address registers of a type 0 header.
pub const BAR_COUNT: usize = 6;

/// The guest-physical range that a BAR answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarRange {
    /// First address.
    pub start: u64,
    /// Length in bytes, not 0.
    pub len: u64,
}

/// What a function's BARs answer now; `None` for a BAR that does not exist or does not decode.
pub type DecodedBars = [Option<BarRange>; BAR_COUNT];

/// One PCI function as the root sees it. Called from any vCPU thread, several at once.
///
/// No method may panic, whatever the guest sends, nor call back into the root.
/// The root holds no lock during these calls, except [`Self::bars`], which therefore only looks.
pub trait PciFunction: Send + Sync {
    /// Reads configuration space. `offset + data.len()` is at most 4096; 1 to 8 bytes of any alignment.
    fn config_read(&self, offset: u16, data: &mut [u8]);

    /// Writes configuration space, same limits. The root asks for [`Self::bars`] again afterwards.
    fn config_write(&self, offset: u16, data: &[u8]);

    /// The ranges that BARs answer now: none while memory space is disabled.
    fn bars(&self) -> DecodedBars;

    /// Reads from BAR `bar`, `offset` bytes into it. `data` lies wholly inside the BAR.
    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]);

    /// Writes to BAR `bar`. `data` lies wholly inside the BAR. A write may still arrive shortly after
    /// the BAR was moved or disabled by another vCPU.
    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]);

    /// Conventional reset: everything back to its power-on state. On return no DMA is in flight.
    fn reset(&self);
}

/// The ATS control register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AtsState {
    /// Translation requests may be made.
    pub enabled: bool,
    /// Smallest translation unit: translations are at least `2^(stu + 12)` bytes. At most 31.
    pub stu: u8,
}

/// The PRI control and allocation registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PriState {
    /// Page requests may be made.
    pub enabled: bool,
    /// Number of page requests (not groups) that may be outstanding. At most the declared capacity.
    pub allocation: u32,
}

/// The PASID control register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PasidState {
    /// Requests may carry a PASID.
    pub enabled: bool,
}

/// Something a configuration write changed that the function has to act on, in the order it happened.
///
/// The readable state has changed already when the event is handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FunctionEvent {
    /// Bus mastering went on or off. Off: no new DMA.
    BusMaster(bool),
    /// PASID was enabled or disabled.
    Pasid(PasidState),
    /// ATS was enabled or disabled, or its STU changed.
    Ats(AtsState),
    /// Drop every cached translation: ATS was enabled or disabled, or PASID changed. (Dropped as ATS goes off,
    /// none is there to be used in the moment after it went on.)
    FlushDeviceTlb,
    /// PRI was enabled.
    PriEnabled(PriState),
    /// PRI was disabled: no new page requests. Call
    /// [`FunctionBase::pri_stopped`](super::base::FunctionBase::pri_stopped) once none is outstanding.
    PriDisabled,
    /// Forget outstanding page requests now; answers to them may still come and are to be ignored.
    PriReset,
    /// Function-level reset. The configuration space is already back in its initial state, with all of
    /// the above disabled: drop work, cached translations and page requests, and reset the registers.
    FunctionReset,
}
