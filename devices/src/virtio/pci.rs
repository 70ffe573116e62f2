//! A virtio device as a PCI function (§4.1).

use std::sync::Arc;
use std::thread::JoinHandle;

use iommu_core::{Dma, MsiSink, SourceId};
use parking_lot::Mutex;
use vm_memory::GuestMemoryBackend;
use zerocopy::FromBytes;

use super::common::{Effect, Registers};
use super::core::Core;
use super::device::{Description, Service};
use super::spec::{
    CAPABILITIES, CAPABILITY_HEAD, Capability, DEVICE_BASE, MAX_QUEUES, SUBSYSTEM, VENDOR, bar, feature,
    structure,
};
use super::worker::Worker;
use crate::irq::IrqLine;
use crate::pci::spec::{capability, header};
use crate::pci::{
    BarSpec, DecodedBars, ExpressSpec, FunctionBase, FunctionEvent, FunctionSpec, Identity, MsixSpec,
    PciFunction, SpecError,
};

/// A device cannot be built so.
#[derive(Debug, thiserror::Error)]
pub enum VirtioError {
    /// Number of queues, or the size of one.
    #[error("queues of {0:?} descriptors: 1 to {MAX_QUEUES} powers of two are possible")]
    Queues(Vec<u16>),
    /// The PCI side.
    #[error("PCI function")]
    Pci(#[from] SpecError),
}

/// Where a device's interrupts go.
pub struct Interrupts {
    /// Those of MSI-X.
    pub messages: Arc<dyn MsiSink>,
    /// INTA, for drivers that use no messages.
    pub line: Option<Arc<dyn IrqLine>>,
}

/// The worker: what it will run, then its thread.
enum WorkerThread {
    Waiting(Box<dyn FnOnce() + Send>),
    Running(JoinHandle<()>),
    /// The host had no thread to give.
    None,
}

/// A virtio device. Dropping it ends its thread, after the request that the thread is at.
pub struct VirtioFunction {
    base: Arc<FunctionBase>,
    core: Arc<Core>,
    config: Vec<u8>,
    /// Held over every access to them and what follows from it. Never taken by the worker.
    registers: Mutex<Registers>,
    worker: Mutex<WorkerThread>,
    source: SourceId,
    /// Offset of the capability by which BARs are reached through configuration space.
    window: u16,
}

impl VirtioFunction {
    /// A device in its power-on state, at the place and behind the IOMMU that `dma` names. Its interrupts go to `interrupts`.
    ///
    /// # Errors
    /// The description is not within its limits.
    pub fn new<M, S>(
        description: Description,
        service: S,
        dma: &Dma<M>,
        interrupts: Interrupts,
    ) -> Result<Arc<Self>, VirtioError>
    where
        M: GuestMemoryBackend + Clone + Send + 'static,
        S: Service<M> + 'static,
    {
        let Description { queue_sizes, features, .. } = &description;
        let good = |size: &u16| size.is_power_of_two();
        if !(1..=MAX_QUEUES).contains(&queue_sizes.len()) || !queue_sizes.iter().all(good) {
            return Err(VirtioError::Queues(description.queue_sizes));
        }
        let vectors = u16::try_from(queue_sizes.len()).unwrap_or(u16::MAX).saturating_add(1);
        let base =
            FunctionBase::new(function_spec(&description, vectors), dma.source(), interrupts.messages)?;
        let base = Arc::new(match interrupts.line {
            Some(line) => base.with_line(line),
            None => base,
        });
        let core = Arc::new(Core::new(base.clone(), queue_sizes.len()));
        let registers = Registers::new(features | feature::ALWAYS, queue_sizes, vectors);
        let worker = Worker::new(core.clone(), dma, service);
        Ok(Arc::new(Self {
            window: find_window(&base),
            base,
            core,
            config: description.config,
            registers: Mutex::new(registers),
            worker: Mutex::new(WorkerThread::Waiting(Box::new(move || worker.run()))),
            source: dma.source(),
        }))
    }

    /// Sees that the worker's thread runs; `false`: there is none to be had.
    fn start_worker(&self) -> bool {
        let mut worker = self.worker.lock();
        match std::mem::replace(&mut *worker, WorkerThread::None) {
            WorkerThread::Waiting(run) => {
                let name = format!("virtio {}", self.source);
                match std::thread::Builder::new().name(name).spawn(run) {
                    Ok(handle) => *worker = WorkerThread::Running(handle),
                    Err(error) => log::error!("virtio device {}: no thread: {error}", self.source),
                }
            }
            other => *worker = other,
        }
        matches!(*worker, WorkerThread::Running(_))
    }

    fn act(&self, effect: Effect) {
        match effect {
            Effect::Reset => self.core.reset(),
            Effect::Start(setup) => {
                if self.start_worker() {
                    self.core.start(setup);
                } else {
                    self.core.give_up_at_once();
                }
            }
            Effect::ConfigVector(vector) => self.core.set_config_vector(vector),
            Effect::QueueVector(queue, vector) => self.core.set_queue_vector(queue, vector),
        }
    }

    fn react(&self, event: FunctionEvent) {
        match event {
            FunctionEvent::BusMaster(on) => self.core.set_bus_master(on),
            FunctionEvent::FunctionReset => {
                let mut registers = self.registers.lock();
                registers.reset();
                self.core.set_bus_master(false);
                self.core.reset();
            }
            // Not declared.
            _ => {}
        }
    }

    fn read_structures(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Some((page, at)) = split(offset) else { return };
        match page {
            bar::COMMON => {
                let registers = self.registers.lock();
                registers.read(at, data, self.core.needs_reset());
            }
            bar::ISR => {
                if let (0, [first, ..]) = (at, data) {
                    *first = self.core.take_isr();
                }
            }
            bar::DEVICE => {
                let config = self.config.iter().skip(at);
                data.iter_mut().zip(config).for_each(|(slot, byte)| *slot = *byte);
            }
            _ => {}
        }
    }

    fn write_structures(&self, offset: u64, data: &[u8]) {
        match split(offset) {
            Some((bar::COMMON, at)) => {
                let mut registers = self.registers.lock();
                for effect in registers.write(at, data) {
                    self.act(effect);
                }
            }
            // The address tells the queue; what is written only repeats it.
            Some((bar::NOTIFY, at)) => self.core.kick(at / bar::NOTIFY_MULTIPLIER as usize),
            _ => {}
        }
    }

    /// Where an access to configuration space at `offset` touches the window's data: the first byte of the access
    /// that does, and the BAR, offset and length it stands for (§4.1.4.9.1).
    fn window(&self, offset: u16, len: usize) -> Option<(usize, u8, u64, usize)> {
        let data = self.window + CAPABILITY_HEAD + u16::try_from(size_of::<Capability>()).ok()?;
        let first = usize::from(data.saturating_sub(offset));
        if self.window == 0 || offset > data || first >= len {
            return None;
        }
        let mut bytes = [0; size_of::<Capability>()];
        self.base.config_read(self.window + CAPABILITY_HEAD, &mut bytes);
        let capability = Capability::read_from_bytes(&bytes).ok()?;
        let length = usize::try_from(capability.length.get()).ok().filter(|n| matches!(n, 1 | 2 | 4))?;
        let (at, bar_len) = (capability.offset.get(), bar_len(capability.bar)?);
        let inside = at.is_multiple_of(capability.length.get()) && at < bar_len;
        inside.then_some((first, capability.bar, at.into(), length))
    }
}

fn function_spec(description: &Description, vectors: u16) -> FunctionSpec {
    let mut bars = [None; crate::pci::function::BAR_COUNT];
    bars[usize::from(bar::STRUCTURES)] = Some(BarSpec { len: bar::STRUCTURES_LEN });
    bars[usize::from(bar::MSIX)] = Some(BarSpec { len: bar::MSIX_LEN });
    FunctionSpec {
        identity: Identity {
            vendor: VENDOR,
            device: DEVICE_BASE.saturating_add(description.kind),
            revision: 1,
            class: description.class,
            subsystem_vendor: VENDOR,
            subsystem: SUBSYSTEM,
        },
        bars,
        power_management: true,
        express: Some(ExpressSpec { function_reset: true, end_end_prefix: false }),
        msix: Some(MsixSpec { vectors, bar: bar::MSIX, table_offset: 0, pba_offset: bar::MSIX_PENDING }),
        vendor: CAPABILITIES,
        ..FunctionSpec::default()
    }
}

fn bar_len(number: u8) -> Option<u32> {
    match number {
        bar::STRUCTURES => Some(bar::STRUCTURES_LEN),
        bar::MSIX => Some(bar::MSIX_LEN),
        _ => None,
    }
}

/// The page of BAR0 that an offset lies in, and the offset in the page.
fn split(offset: u64) -> Option<(u32, usize)> {
    let offset = u32::try_from(offset).ok()?;
    let at = offset % bar::PAGE;
    Some((offset - at, usize::try_from(at).ok()?))
}

/// Walks the capabilities as a guest does; 0: there is none such.
fn find_window(base: &FunctionBase) -> u16 {
    let byte = |offset: u16| {
        let mut byte = [0];
        base.config_read(offset, &mut byte);
        byte[0]
    };
    let mut at = byte(header::CAPABILITIES);
    while at != 0 {
        let start = u16::from(at);
        if byte(start) == capability::VENDOR && byte(start + 3) == structure::PCI {
            return start;
        }
        at = byte(start + 1);
    }
    0
}

impl PciFunction for VirtioFunction {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.base.config_read(offset, data);
        if let Some((first, bar, at, len)) = self.window(offset, data.len()) {
            let mut found = [0; 4];
            self.bar_read(bar, at, &mut found[..len]);
            data[first..].iter_mut().zip(&found[..len]).for_each(|(slot, byte)| *slot = *byte);
        }
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        self.base.config_write(offset, data, |event| self.react(event));
        if let Some((first, bar, at, len)) = self.window(offset, data.len())
            && let Some(bytes) = data.get(first..first + len)
        {
            self.bar_write(bar, at, bytes);
        }
    }

    fn bars(&self) -> DecodedBars {
        self.base.bars()
    }

    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        if bar == bar::STRUCTURES {
            self.read_structures(offset, data);
        } else if !self.base.bar_read(bar, offset, data) {
            data.fill(0);
        }
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        if bar == bar::STRUCTURES {
            self.write_structures(offset, data);
        } else {
            self.base.bar_write(bar, offset, data);
        }
    }

    fn reset(&self) {
        self.base.reset(|event| self.react(event));
    }
}

impl Drop for VirtioFunction {
    fn drop(&mut self) {
        self.core.exit();
        if let WorkerThread::Running(handle) = std::mem::replace(self.worker.get_mut(), WorkerThread::None)
            && handle.join().is_err()
        {
            log::error!("virtio device {}: the worker's thread panicked", self.source);
        }
    }
}
