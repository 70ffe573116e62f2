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
