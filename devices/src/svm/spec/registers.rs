//! Registers (section 2).

use arbitrary_int::{u4, u11, u20, u24};
use bitbybit::bitfield;

/// CAPS.
#[bitfield(u32, default = 0, debug, forbid_overlaps)]
pub struct Caps {
    /// Number of queues.
    #[bits(0..=7, rw)]
    queues: u8,
    /// Logarithm of a queue's depth.
    #[bits(8..=15, rw)]
    depth: u8,
    /// PRI capability present.
    #[bit(16, rw)]
    pri: bool,
    /// ATS capability present.
    #[bit(17, rw)]
    ats: bool,
}

/// Global CTRL.
#[bitfield(u32, default = 0, debug, forbid_overlaps)]
pub struct GlobalControl {
    /// Reset.
    #[bit(0, rw)]
    reset: bool,
}

/// Global STATUS.
#[bitfield(u32, default = 0, debug, forbid_overlaps)]
#[derive(PartialEq, Eq)]
pub struct GlobalStatus {
    /// Bus mastering is on.
    #[bit(0, rw)]
    bus_master: bool,
    /// ATS is enabled.
    #[bit(1, rw)]
    ats: bool,
    /// PRI is enabled.
    #[bit(2, rw)]
    pri: bool,
    /// PASID is enabled.
    #[bit(3, rw)]
    pasid: bool,
}

/// LIMITS.
#[bitfield(u32, default = 0, debug, forbid_overlaps)]
pub struct Limits {
    /// Engines that there are.
    #[bits(0..=7, rw)]
    engines: u8,
    /// Window pages.
    #[bits(8..=15, rw)]
    windows: u8,
    /// Most pages in one page request group.
    #[bits(16..=23, rw)]
    group: u8,
    /// Logarithm of the most descriptors of a batch.
    #[bits(24..=31, rw)]
    batch: u8,
}

/// COMMAND.
#[bitfield(u32, default = 0, debug, forbid_overlaps)]
pub struct Command {
    /// [`CommandOperation`] if known.
    #[bits(0..=3, rw)]
    operation: u4,
    /// The operand is a PASID, else a queue.
    #[bit(4, rw)]
    by_pasid: bool,
    /// Send vector 0 at the end.
    #[bit(5, rw)]
    interrupt: bool,
    /// Queue or PASID.
    #[bits(8..=27, rw)]
    operand: u20,
}

impl Command {
    /// Bits that keep what is written.
    pub const WRITABLE: u32 = 0x0fff_ff3f;
}

/// Operations of COMMAND.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CommandOperation {
    /// Wait until descriptors have ended.
    Drain = 1,
    /// End them, and wait for that.
    Abort = 2,
}

/// COMMAND_STATUS.
#[bitfield(u32, default = 0, debug, forbid_overlaps)]
pub struct CommandStatus {
    /// [`CommandState`].
    #[bits(0..=3, rw)]
    state: u4,
    /// A command was ignored, because one was under way.
    #[bit(4, rw)]
    overrun: bool,
}

/// States of COMMAND_STATUS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum CommandState {
    /// There was no command.
    #[default]
    None = 0,
    /// One is under way.
    Active = 1,
    /// The last one is done.
    Done = 2,
    /// The last one was none.
    Refused = 3,
}

/// CTRL of a window.
#[bitfield(u32, default = 0, debug, forbid_overlaps)]
pub struct WindowControl {
    /// The window takes descriptors.
    #[bit(0, rw)]
    enable: bool,
    /// For this queue.
    #[bits(8..=11, rw)]
    queue: u4,
}

/// CTRL of a queue.
#[bitfield(u32, default = 0, debug, forbid_overlaps)]
pub struct QueueControl {
    /// The queue takes descriptors.
    #[bit(0, rw)]
    enable: bool,
    /// They come through windows, not through the portal.
    #[bit(1, rw)]
    shared: bool,
}

/// STATUS of a queue.
#[bitfield(u32, default = 0, debug, forbid_overlaps)]
pub struct QueueStatus {
    /// The queue takes descriptors.
    #[bit(0, rw)]
    enabled: bool,
    /// There are descriptors in it.
    #[bit(1, rw)]
    active: bool,
    /// One waits for a page response.
    #[bit(2, rw)]
    waiting: bool,
    /// Descriptors come through windows.
    #[bit(3, rw)]
    shared: bool,
}

/// PRIORITY of a queue.
#[bitfield(u32, default = 0, debug, forbid_overlaps)]
pub struct PriorityRegister {
    /// The share of the engines is in proportion to this plus 1.
    #[bits(0..=3, rw)]
    priority: u4,
}

impl PriorityRegister {
    /// Bits that keep what is written.
    pub const WRITABLE: u32 = 0xf;
}

/// OUTCOME of a submission.
#[bitfield(u32, default = 0, debug, forbid_overlaps)]
pub struct Outcome {
    /// [`OutcomeCode`].
    #[bits(0..=7, rw)]
    code: u8,
    /// Submissions through the page.
    #[bits(8..=31, rw)]
    sequence: u24,
}

/// What became of a submission.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum OutcomeCode {
    /// There was none.
    #[default]
    None = 0,
    /// The queue has it.
    Accepted = 1,
    /// The queue was full.
    Full = 2,
    /// Page or queue takes nothing.
    Disabled = 3,
}

/// PASID of a queue.
#[bitfield(u32, default = 0, debug, forbid_overlaps)]
pub struct PasidRegister {
    /// PASID of requests.
    #[bits(0..=19, rw)]
    pasid: u20,
    /// Requests carry it.
    #[bit(31, rw)]
    valid: bool,
}

impl PasidRegister {
    /// Bits that keep what is written.
    pub const WRITABLE: u32 = 0x800f_ffff;
}

/// IRQ of a queue.
#[bitfield(u32, default = 0, debug, forbid_overlaps)]
pub struct IrqRegister {
    /// MSI-X vector.
    #[bits(0..=10, rw)]
    vector: u11,
    /// Interrupts are sent.
    #[bit(31, rw)]
    enable: bool,
}

impl IrqRegister {
    /// Bits that keep what is written.
    pub const WRITABLE: u32 = 0x8000_07ff;
}
