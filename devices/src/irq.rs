//! Interrupt lines, as devices raise them.

/// A level-triggered interrupt line into an interrupt controller.
pub trait IrqLine: Send + Sync {
    /// Sets the level; setting it again has no effect. Never blocks.
    fn set(&self, asserted: bool);
}

/// A line that leads nowhere.
pub struct NoIrq;

impl IrqLine for NoIrq {
    fn set(&self, _: bool) {}
}

/// Hears when a guest ends a level-triggered interrupt: whoever cannot lower its line by itself does it now, and raises
/// it again if there still is a reason.
pub trait EndOfInterrupt: Send + Sync {
    /// The interrupt ended. Called on the guest CPU's thread that ended it, with no lock held; never blocks.
    fn ended(&self);
}
