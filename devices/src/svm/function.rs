//! The SVM endpoint as a PCI function (section 1) and as what an IOMMU talks to.

use std::sync::Arc;
use std::thread::JoinHandle;

use iommu_core::{DeviceTlbCompletion, DeviceTlbInvalidation, Dma, Endpoint, MsiSink, PageResponse};
use parking_lot::Mutex;
use vm_memory::GuestMemoryBackend;

use super::atc::CountingTranslator;
use super::device::{Device, PciSide, SvmConfig};
use super::misbehaviour::registers::{WAY_BACK, brings_back};
use super::regs;
use super::spec::{BAR0_BYTES, BAR1_BYTES, DEPTH_LOG2, MAX_ENGINES, MAX_QUEUES, PAGE_REQUEST_CAPACITY};
use super::stats::SvmReading;
use super::worker::Worker;
use crate::pci::{
    AtsSpec, BarSpec, DecodedBars, ExpressSpec, FunctionBase, FunctionEvent, FunctionSpec, Identity,
    MsixSpec, PasidSpec, PciFunction, PriSpec, SpecError,
};

/// Vendor of the endpoint.
pub const VENDOR: u16 = 0x1af4;
/// Device id of the endpoint, of the range for experiments.
pub const DEVICE: u16 = 0x10f0;

/// The endpoint cannot be built so.
#[derive(Debug, thiserror::Error)]
pub enum SvmError {
    /// Number of queues.
    #[error("{0} queues asked for; 1 to {MAX_QUEUES} are possible")]
    Queues(u8),
    /// Depth of the queues.
    #[error("queue depth 2^{0} asked for; 2^{min} to 2^{max} are possible", min = DEPTH_LOG2.start(), max = DEPTH_LOG2.end())]
    Depth(u8),
    /// Number of engines.
    #[error("{0} engines asked for; 1 to {MAX_ENGINES} are possible")]
    Engines(u8),
    /// The PCI side.
    #[error("PCI function")]
    Pci(#[from] SpecError),
}

/// The SVM endpoint. Dropping it ends its threads.
pub struct SvmFunction<M> {
    base: Arc<FunctionBase>,
    device: Arc<Device>,
    dma: Dma<M>,
    /// One slot per queue: its thread, once it was enabled.
    workers: Mutex<Vec<Option<JoinHandle<()>>>>,
}

impl PciSide for FunctionBase {
    fn interrupt(&self, vector: u16) {
        self.trigger(vector);
    }

    fn pri_response_failure(&self) {
        Self::pri_response_failure(self);
    }

    fn pri_unexpected_group(&self) {
        Self::pri_unexpected_group(self);
    }

    fn pri_stopped(&self) {
        Self::pri_stopped(self);
    }
}

impl<M: GuestMemoryBackend + Clone + Send + 'static> SvmFunction<M> {
    /// The endpoint in its power-on state, at the place and behind the IOMMU that `dma` names. Its interrupts
    /// go to `msi`.
    ///
    /// # Errors
    /// `config` is out of its limits.
    pub fn new(config: SvmConfig, dma: &Dma<M>, msi: Arc<dyn MsiSink>) -> Result<Arc<Self>, SvmError> {
        if !(1..=MAX_QUEUES).contains(&config.queues) {
            return Err(SvmError::Queues(config.queues));
        }
        if !DEPTH_LOG2.contains(&config.depth_log2) {
            return Err(SvmError::Depth(config.depth_log2));
        }
        if !(1..=MAX_ENGINES).contains(&config.engines) {
            return Err(SvmError::Engines(config.engines));
        }
        let base = Arc::new(FunctionBase::new(function_spec(&config), dma.source(), msi)?);
        let device = Arc::new(Device::new(config, base.clone()));
        let translator = CountingTranslator::new(dma.translator().clone(), device.counters.clone());
        let dma = dma.with_translator(Arc::new(translator));
        let workers = Mutex::new((0..config.queues).map(|_| None).collect());
        Ok(Arc::new(Self { base, device, dma, workers }))
    }

    /// What it has counted since it was made. Waits for open sessions.
    #[must_use]
    pub fn counted(&self) -> SvmReading {
        self.device.counters.read(self.device.device_tlb.all_hits())
    }

    /// Sees that a queue has a worker. Without one, which only happens if the host has no thread to give, the
    /// queue is disabled again.
    fn start(&self, queue: usize) {
        let mut workers = self.workers.lock();
        let Some(slot) = workers.get_mut(queue).filter(|slot| slot.is_none()) else { return };
        let worker = Worker::new(self.device.clone(), queue, self.dma.clone());
        match std::thread::Builder::new().name(format!("svm-queue-{queue}")).spawn(move || worker.run()) {
            Ok(handle) => *slot = Some(handle),
            Err(error) => {
                log::error!("SVM endpoint {}: no thread for queue {queue}: {error}", self.dma.source());
                self.device.disable_queue(&self.device.queues[queue]);
            }
        }
    }

    /// Conventional reset, on the bus if it was not.
    fn come_back(&self) {
        self.device.misbehaviour.appear(|| self.base.reset(|event| self.react(event)));
    }

    fn react(&self, event: FunctionEvent) {
        match event {
            FunctionEvent::BusMaster(on) => self.device.set_bus_master(on),
            FunctionEvent::Pasid(state) => self.device.set_pasid(state.enabled),
            FunctionEvent::Ats(state) => self.device.set_ats(state.enabled),
            FunctionEvent::FlushDeviceTlb => self.device.device_tlb.flush(),
            FunctionEvent::PriEnabled(state) => self.device.pri.enable(state.allocation),
            FunctionEvent::PriDisabled => self.device.disable_pri(),
            FunctionEvent::PriReset => self.device.reset_pri(),
            FunctionEvent::FunctionReset => self.device.function_reset(),
        }
    }
}

fn function_spec(config: &SvmConfig) -> FunctionSpec {
    let caps = config.caps();
    let bar = |bytes: u64| Some(BarSpec { len: u32::try_from(bytes).unwrap_or(0) });
    let mut bars = [None; crate::pci::function::BAR_COUNT];
    bars[0] = bar(BAR0_BYTES);
    bars[1] = bar(BAR1_BYTES);
    FunctionSpec {
        identity: Identity {
            vendor: VENDOR,
            device: DEVICE,
            revision: 1,
            class: 0x12_0000,
            subsystem_vendor: VENDOR,
            subsystem: DEVICE,
        },
        bars,
        express: Some(ExpressSpec { function_reset: true, end_end_prefix: true }),
        msix: Some(MsixSpec {
            vectors: u16::from(config.queues) + 1,
            bar: 1,
            table_offset: 0,
            pba_offset: 0x800,
        }),
        pasid: Some(PasidSpec { width: config.pasid_bits }),
        ats: caps.ats().then_some(AtsSpec { queue_depth: 0, global_invalidate: true }),
        pri: caps.pri().then_some(PriSpec { capacity: PAGE_REQUEST_CAPACITY }),
        ..FunctionSpec::default()
    }
}

impl<M: GuestMemoryBackend + Clone + Send + Sync + 'static> PciFunction for SvmFunction<M> {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        if self.device.misbehaviour.gone() {
            if offset == 0 && self.device.misbehaviour.looked_for() {
                self.come_back();
            }
            return data.fill(0xff);
        }
        self.base.config_read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        if self.device.misbehaviour.gone() {
            return;
        }
        self.base.config_write(offset, data, |event| self.react(event));
    }

    fn bars(&self) -> DecodedBars {
        self.base.bars()
    }

    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        if self.device.misbehaviour.gone() {
            data.fill(0xff);
        } else if bar == 0 {
            regs::read(&self.device, offset, data);
        } else if !self.base.bar_read(bar, offset, data) {
            data.fill(0);
        }
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        if self.device.misbehaviour.gone() {
            if (bar, offset) == (0, WAY_BACK) && brings_back(data) {
                self.come_back();
            }
        } else if bar != 0 {
            self.base.bar_write(bar, offset, data);
        } else if let Some(queue) = regs::write(&self.device, offset, data) {
            self.start(queue);
        }
    }

    fn reset(&self) {
        self.come_back();
    }
}

impl<M: GuestMemoryBackend + Clone + Send + Sync + 'static> Endpoint for SvmFunction<M> {
    fn invalidate_device_tlb(&self, invalidation: &DeviceTlbInvalidation) -> DeviceTlbCompletion {
        self.device.invalidate_device_tlb(invalidation)
    }

    fn page_group_response(&self, response: &PageResponse) {
        self.device.page_group_response(response);
    }
}

impl<M> Drop for SvmFunction<M> {
    fn drop(&mut self) {
        self.device.exit();
        for worker in self.workers.get_mut().iter_mut().filter_map(Option::take) {
            // The last reference may end on a worker, inside a call into the IOMMU; that one ends by itself.
            let own = worker.thread().id() == std::thread::current().id();
            if !own && worker.join().is_err() {
                log::error!("SVM endpoint: a queue's thread panicked");
            }
        }
    }
}
