//! What an assigned function needs of the machine that it is in.

use std::io;
use std::sync::Arc;

use devices::irq::IrqLine;
use iommu_core::{HostError, InterruptRemapper, Msi, MsiSink, SourceId};
use vmm_sys_util::eventfd::EventFd;

use crate::function_file::FunctionFile;
use crate::memory::{DeviceMemory, SharedMemory};

/// What a function is connected to.
pub struct Connections {
    /// What the guest knows it by.
    pub source: SourceId,
    /// The device, bound.
    pub file: Arc<dyn FunctionFile>,
    /// Where the guest finds the device's memory.
    pub slots: Arc<dyn MemorySlots>,
    /// Where interrupts go that are not led past this process.
    pub interrupts: Arc<dyn MsiSink>,
    /// What stands between them and the guest's CPUs.
    pub remapper: Option<Arc<dyn InterruptRemapper>>,
    /// Ways past this process.
    pub shortcuts: Arc<dyn InterruptShortcuts>,
    /// Where its interrupt line leads, if it has one. Whoever gives one calls
    /// [`EndOfInterrupt`](devices::irq::EndOfInterrupt) of the function.
    pub line: Option<Arc<dyn IrqLine>>,
    /// The IOMMU's side.
    pub host: Arc<dyn HostSide>,
}

/// Memory that a guest sees; it sees it no longer when this is dropped.
pub type Shown = Box<dyn Send + Sync>;

/// Where a guest finds memory.
pub trait MemorySlots: Send + Sync {
    /// Shows a device's memory at a guest-physical address, page-aligned, until the answer is dropped. The memory
    /// stays mapped until then.
    ///
    /// # Errors
    /// It cannot be there: something else is, or no device has its place there, or there is no slot left. Accesses are
    /// emulated then, if they arrive at all.
    fn show(&self, guest_address: u64, memory: &Arc<DeviceMemory>) -> io::Result<Shown>;
}

/// Ways from an event to a guest's interrupt that leave this process out.
pub trait InterruptShortcuts: Send + Sync {
    /// A way for the signals of one event. It leads nowhere yet.
    ///
    /// # Errors
    /// There is none left.
    fn shortcut(&self, event: &EventFd) -> io::Result<Box<dyn Shortcut>>;
}

/// One such way. It ends when it is dropped.
pub trait Shortcut: Send + Sync {
    /// From now on each signal is delivered as this message, also one that nobody took yet; with `None`, signals stay
    /// for those who read the event. On return nothing is delivered as before.
    ///
    /// # Errors
    /// The way leads nowhere.
    fn lead(&self, msi: Option<Msi>) -> io::Result<()>;
}

/// The IOMMU's side of a function.
pub trait HostSide: Send + Sync {
    /// Calls `reset` once, at a time when no binding of the device changes, and sees to it that nothing that the
    /// device asked for before is answered afterwards.
    fn around_reset(&self, source: SourceId, reset: &mut dyn FnMut());

    /// Lets the guest's other devices at memory of this one, from a guest-physical address on, until the answer is
    /// dropped. Called while the memory is on; the answer is dropped before it is switched off.
    ///
    /// # Errors
    /// The host refused, or knows no way: then other devices do not reach it.
    fn share(&self, guest_address: u64, memory: &SharedMemory) -> Result<Shown, HostError>;
}
