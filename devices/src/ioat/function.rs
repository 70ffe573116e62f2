//! The engine as a PCI function.

use std::sync::Arc;
use std::thread::JoinHandle;

use iommu_core::{Dma, MsiSink};
use parking_lot::Mutex;
use vm_memory::GuestMemoryBackend;

use super::channel::Channel;
use super::device::{Device, IoatConfig};
use super::regs;
use super::spec::{
    BAR0_BYTES, CLASS, DEVICE, MAX_CHANNELS, MSIX_PENDING, MSIX_TABLE, TRANSFER_LOG2, VENDOR, config,
};
use super::worker::Worker;
use crate::pci::{
    BarSpec, DecodedBars, ExpressSpec, FunctionBase, FunctionEvent, FunctionSpec, Identity, MsixSpec,
    PciFunction, SpecError,
};

/// The function cannot be built so.
#[derive(Debug, thiserror::Error)]
pub enum IoatError {
    /// Number of channels.
    #[error("{0} channels asked for; 1 to {MAX_CHANNELS} are possible")]
    Channels(u8),
    /// Longest transfer.
    #[error("transfers of 2^{0} bytes asked for; 2^{min} to 2^{max} are possible", min = TRANSFER_LOG2.start(), max = TRANSFER_LOG2.end())]
    Transfer(u8),
    /// The PCI side.
    #[error("PCI function")]
    Pci(#[from] SpecError),
}

/// The function. Dropping it ends its threads.
pub struct IoatFunction<M> {
    device: Arc<Device>,
    dma: Dma<M>,
    /// One slot per channel: its thread, once it was given work.
    workers: Mutex<Vec<Option<JoinHandle<()>>>>,
}

impl<M: GuestMemoryBackend + Clone + Send + 'static> IoatFunction<M> {
    /// The function in its power-on state, at the place and behind the IOMMU that `dma` names. Its interrupts go to
    /// `msi`.
    ///
    /// # Errors
    /// `config` is out of its limits.
    pub fn new(config: IoatConfig, dma: &Dma<M>, msi: Arc<dyn MsiSink>) -> Result<Self, IoatError> {
        if !(1..=MAX_CHANNELS).contains(&config.channels) {
            return Err(IoatError::Channels(config.channels));
        }
        if !TRANSFER_LOG2.contains(&config.transfer_log2) {
            return Err(IoatError::Transfer(config.transfer_log2));
        }
        let base = Arc::new(FunctionBase::new(function_spec(&config), dma.source(), msi)?);
        let device = Arc::new(Device::new(config, base));
        let workers = Mutex::new((0..config.channels).map(|_| None).collect());
        Ok(Self { device, dma: dma.clone(), workers })
    }

    /// Sees that a channel has a worker. Without one, which only happens if the host has no thread to give, the
    /// channel is reset.
    fn start(&self, number: u8) {
        let mut workers = self.workers.lock();
        let Some(slot) = workers.get_mut(usize::from(number)).filter(|slot| slot.is_none()) else { return };
        let worker = Worker::new(self.device.clone(), number, &self.dma);
        match std::thread::Builder::new().name(format!("ioat-{number}")).spawn(move || worker.run()) {
            Ok(handle) => *slot = Some(handle),
            Err(error) => {
                log::error!("IOAT {}: no thread for channel {number}: {error}", self.dma.source());
                self.device.channels[usize::from(number)].reset();
            }
        }
    }

    fn react(&self, event: FunctionEvent) {
        match event {
            FunctionEvent::BusMaster(_) => self.device.drain(),
            FunctionEvent::FunctionReset => self.device.reset(),
            _ => {}
        }
    }
}

fn function_spec(config: &IoatConfig) -> FunctionSpec {
    let bytes = |bytes: u64| u32::try_from(bytes).unwrap_or(0);
    let mut bars = [None; crate::pci::function::BAR_COUNT];
    bars[0] = Some(BarSpec { len: bytes(BAR0_BYTES) });
    FunctionSpec {
        identity: Identity {
            vendor: VENDOR,
            device: DEVICE,
            revision: 4,
            class: CLASS,
            subsystem_vendor: VENDOR,
            subsystem: 0,
        },
        bars,
        express: Some(ExpressSpec { function_reset: true, end_end_prefix: false }),
        msix: Some(MsixSpec {
            vectors: config.channels.into(),
            bar: 0,
            table_offset: bytes(MSIX_TABLE),
            pba_offset: bytes(MSIX_PENDING),
        }),
        registers: config::REGISTERS,
        ..FunctionSpec::default()
    }
}

impl<M: GuestMemoryBackend + Clone + Send + Sync + 'static> PciFunction for IoatFunction<M> {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.device.base.config_read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        self.device.base.config_write(offset, data, |event| self.react(event));
    }

    fn bars(&self) -> DecodedBars {
        self.device.base.bars()
    }

    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        if !self.device.base.bar_read(bar, offset, data) {
            regs::read(&self.device, offset, data);
        }
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        if !self.device.base.bar_write(bar, offset, data) {
            regs::write(&self.device, offset, data).into_iter().for_each(|channel| self.start(channel));
        }
    }

    fn reset(&self) {
        self.device.base.reset(|event| self.react(event));
    }
}

impl<M> Drop for IoatFunction<M> {
    fn drop(&mut self) {
        self.device.channels.iter().for_each(Channel::exit);
        for worker in self.workers.get_mut().iter_mut().filter_map(Option::take) {
            // The last reference may end on a worker, inside a call into the IOMMU; that one ends by itself.
            let own = worker.thread().id() == std::thread::current().id();
            if !own && worker.join().is_err() {
                log::error!("IOAT: a channel's thread panicked");
            }
        }
    }
}
