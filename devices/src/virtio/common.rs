//! The common configuration (§4.1.4.3) as a state machine. It does not act: it says what is to be done.

use std::mem::offset_of;
use std::ops::Range;

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use super::spec::{CommonConfig, DeviceStatus, NO_VECTOR, feature};

/// Where a queue is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuePlace {
    /// Number of descriptors.
    pub size: u16,
    /// Descriptor table.
    pub descriptors: u64,
    /// Available ring.
    pub available: u64,
    /// Used ring.
    pub used: u64,
}

/// What a driver has set up when it says that it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Features that both sides have.
    pub features: u64,
    /// The queues; `None`: not enabled.
    pub queues: Vec<Option<QueuePlace>>,
}

/// What a write calls for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The device is reset; the registers are already.
    Reset,
    /// The driver runs.
    Start(Setup),
    /// The vector of configuration changes.
    ConfigVector(u16),
    /// The vector of a queue.
    QueueVector(u16, u16),
}

#[derive(Clone, Copy)]
struct QueueRegisters {
    max_size: u16,
    vector: u16,
    enabled: bool,
    place: QueuePlace,
}

impl QueueRegisters {
    fn new(max_size: u16) -> Self {
        let place = QueuePlace { size: max_size, descriptors: 0, available: 0, used: 0 };
        Self { max_size, vector: NO_VECTOR, enabled: false, place }
    }
}

/// The registers.
pub struct Registers {
    offered: u64,
    vectors: u16,
    accepted: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    status: DeviceStatus,
    config_vector: u16,
    queue_select: u16,
    queues: Vec<QueueRegisters>,
}

macro_rules! field {
    ($name:ident: $type:ty) => {
        offset_of!(CommonConfig, $name)..offset_of!(CommonConfig, $name) + size_of::<$type>()
    };
}

type Handler = fn(&mut Registers, &CommonConfig) -> Option<Effect>;

/// The registers that can be written, and what does it.
const WRITABLE: [(Range<usize>, Handler); 11] = [
    (field!(device_feature_select: U32), Registers::set_device_feature_select),
    (field!(driver_feature_select: U32), Registers::set_driver_feature_select),
    (field!(driver_feature: U32), Registers::set_driver_feature),
    (field!(config_msix_vector: U16), Registers::set_config_vector),
    (field!(device_status: u8), Registers::set_status),
    (field!(queue_select: U16), Registers::set_queue_select),
    (field!(queue_size: U16), Registers::set_queue_size),
    (field!(queue_msix_vector: U16), Registers::set_queue_vector),
    (field!(queue_enable: U16), Registers::set_queue_enable),
    (field!(queue_desc: U64), Registers::set_descriptors),
    (offset_of!(CommonConfig, queue_driver)..size_of::<CommonConfig>(), Registers::set_rings),
];

impl Registers {
    /// As after a reset. `offered` are all features, `queue_sizes` the largest sizes of the queues, `vectors` how many
    /// MSI-X vectors there are.
    #[must_use]
    pub fn new(offered: u64, queue_sizes: &[u16], vectors: u16) -> Self {
        Self {
            offered,
            vectors,
            accepted: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            status: DeviceStatus::DEFAULT,
            config_vector: NO_VECTOR,
            queue_select: 0,
            queues: queue_sizes.iter().copied().map(QueueRegisters::new).collect(),
        }
    }

    /// Back to that.
    pub fn reset(&mut self) {
        let sizes: Vec<u16> = self.queues.iter().map(|queue| queue.max_size).collect();
        *self = Self::new(self.offered, &sizes, self.vectors);
    }

    /// Reads; zeros behind the end. `needs_reset` comes from the device.
    pub fn read(&self, offset: usize, data: &mut [u8], needs_reset: bool) {
        let image = self.image(needs_reset);
        let bytes = image.as_bytes().iter().copied().skip(offset).chain(std::iter::repeat(0));
        data.iter_mut().zip(bytes).for_each(|(slot, byte)| *slot = byte);
    }

    /// Writes, field by field in the order of their offsets; what is read-only or behind the end is dropped.
    pub fn write(&mut self, offset: usize, data: &[u8]) -> Vec<Effect> {
        let mut image = self.image(false);
        let written = offset..offset.saturating_add(data.len());
        image.as_mut_bytes().iter_mut().skip(offset).zip(data).for_each(|(slot, byte)| *slot = *byte);
        let touched = |field: &Range<usize>| field.start < written.end && written.start < field.end;
        let hit = WRITABLE.iter().filter(|(field, _)| touched(field));
        hit.filter_map(|(_, handler)| handler(self, &image)).collect()
    }

    fn image(&self, needs_reset: bool) -> CommonConfig {
        let mut image = CommonConfig {
            device_feature_select: self.device_feature_select.into(),
            device_feature: half(self.offered, self.device_feature_select).into(),
            driver_feature_select: self.driver_feature_select.into(),
            driver_feature: half(self.accepted, self.driver_feature_select).into(),
            config_msix_vector: self.config_vector.into(),
            num_queues: u16::try_from(self.queues.len()).unwrap_or(u16::MAX).into(),
            device_status: self.status.with_needs_reset(needs_reset).raw_value(),
            queue_select: self.queue_select.into(),
            queue_msix_vector: NO_VECTOR.into(),
            ..CommonConfig::default()
        };
        if let Some(queue) = self.queues.get(usize::from(self.queue_select)) {
            image.queue_size = queue.place.size.into();
            image.queue_msix_vector = queue.vector.into();
            image.queue_enable = u16::from(queue.enabled).into();
            image.queue_notify_off = self.queue_select.into();
            image.queue_desc = queue.place.descriptors.into();
            image.queue_driver = queue.place.available.into();
            image.queue_device = queue.place.used.into();
        }
        image
    }

    fn set_device_feature_select(&mut self, image: &CommonConfig) -> Option<Effect> {
        self.device_feature_select = image.device_feature_select.get();
        None
    }

    fn set_driver_feature_select(&mut self, image: &CommonConfig) -> Option<Effect> {
        self.driver_feature_select = image.driver_feature_select.get();
        None
    }

    /// §2.2.1: nothing changes any more once the features are agreed on.
    fn set_driver_feature(&mut self, image: &CommonConfig) -> Option<Effect> {
        let value = u64::from(image.driver_feature.get());
        if !self.status.features_ok() {
            self.accepted = match self.driver_feature_select {
                0 => self.accepted & !u64::from(u32::MAX) | value,
                1 => self.accepted & u64::from(u32::MAX) | value << 32,
                _ => self.accepted,
            };
        }
        None
    }

    /// §4.1.5.1.2: a vector that does not exist reads back as none.
    fn existing(&self, vector: U16) -> u16 {
        Some(vector.get()).filter(|vector| *vector < self.vectors).unwrap_or(NO_VECTOR)
    }

    fn set_config_vector(&mut self, image: &CommonConfig) -> Option<Effect> {
        self.config_vector = self.existing(image.config_msix_vector);
        Some(Effect::ConfigVector(self.config_vector))
    }

    /// §2.1: zero resets; other bits can only be set. FEATURES_OK stays off where the features do not do.
    fn set_status(&mut self, image: &CommonConfig) -> Option<Effect> {
        let written = DeviceStatus::new_with_raw_value(image.device_status);
        if image.device_status == 0 {
            self.reset();
            return Some(Effect::Reset);
        }
        let before = self.status;
        let features_ok = before.features_ok() || (written.features_ok() && self.features_do());
        let driver_ok = before.driver_ok() || (written.driver_ok() && features_ok);
        self.status = DeviceStatus::DEFAULT
            .with_acknowledge(before.acknowledge() || written.acknowledge())
            .with_driver(before.driver() || written.driver())
            .with_failed(before.failed() || written.failed())
            .with_features_ok(features_ok)
            .with_driver_ok(driver_ok);
        (driver_ok && !before.driver_ok()).then(|| Effect::Start(self.setup()))
    }

    fn features_do(&self) -> bool {
        self.accepted & !self.offered == 0 && self.accepted & feature::REQUIRED == feature::REQUIRED
    }

    fn setup(&self) -> Setup {
        let queues = self.queues.iter().map(|queue| queue.enabled.then_some(queue.place)).collect();
        Setup { features: self.accepted, queues }
    }

    fn set_queue_select(&mut self, image: &CommonConfig) -> Option<Effect> {
        self.queue_select = image.queue_select.get();
        None
    }

    /// Changes the selected queue's place, unless it is in use (§4.1.4.3.2).
    fn place(&mut self, change: impl FnOnce(&mut QueueRegisters)) -> Option<Effect> {
        let queue = self.queues.get_mut(usize::from(self.queue_select)).filter(|queue| !queue.enabled);
        queue.map(change);
        None
    }

    fn set_queue_size(&mut self, image: &CommonConfig) -> Option<Effect> {
        let size = image.queue_size.get();
        self.place(|queue| {
            if size.is_power_of_two() && size <= queue.max_size {
                queue.place.size = size;
            }
        })
    }

    fn set_queue_vector(&mut self, image: &CommonConfig) -> Option<Effect> {
        let vector = self.existing(image.queue_msix_vector);
        let queue = self.queues.get_mut(usize::from(self.queue_select))?;
        queue.vector = vector;
        Some(Effect::QueueVector(self.queue_select, vector))
    }

    fn set_queue_enable(&mut self, image: &CommonConfig) -> Option<Effect> {
        self.place(|queue| queue.enabled = image.queue_enable.get() == 1)
    }

    fn set_descriptors(&mut self, image: &CommonConfig) -> Option<Effect> {
        self.place(|queue| queue.place.descriptors = image.queue_desc.get())
    }

    fn set_rings(&mut self, image: &CommonConfig) -> Option<Effect> {
        self.place(|queue| {
            queue.place.available = image.queue_driver.get();
            queue.place.used = image.queue_device.get();
        })
    }
}

/// The 32 features that a select register shows. **Pure.**
fn half(features: u64, select: u32) -> u32 {
    let [a, b, c, d, e, f, g, h] = features.to_le_bytes();
    match select {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}
