//! What a function declares about itself, and the configuration space made of it.

use arbitrary_int::traits::Integer;
use arbitrary_int::{u2, u3, u4, u5, u10, u11};

use super::bar::{self, BarSpec};
use super::config::ConfigSpace;
use super::function::BAR_COUNT;
use super::spec::{
    AtsCapability, AtsControl, CONFIG_SIZE, DeviceCapabilities, DeviceCapabilities2, DeviceControl,
    EXTENDED_START, ExpressCapabilities, ExtendedHeader, MsixControl, PasidCapability, PasidControl,
    PriControl, PriStatus, ats, capability, express, extended, header, msix, pasid, power, pri,
};

/// Ids and class of a function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Class code: base class in bits 23:16, subclass in 15:8, programming interface in 7:0.
    pub class: u32,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}

/// PCI Express capability of a root complex integrated endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpressSpec {
    /// Function-level reset is supported.
    pub function_reset: bool,
    /// End-end TLP prefixes are supported. Linux refuses PASID without.
    pub end_end_prefix: bool,
}

/// MSI-X, with table and pending bits in one BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixSpec {
    /// Number of vectors, 1 to 2048.
    pub vectors: u16,
    /// The BAR that holds both structures.
    pub bar: u8,
    /// Offset of the table in the BAR, a multiple of 8. Give it a page of its own.
    pub table_offset: u32,
    /// Offset of the pending bits in the BAR, a multiple of 8.
    pub pba_offset: u32,
}

impl MsixSpec {
    /// Bytes of the table.
    #[must_use]
    pub fn table_len(&self) -> u64 {
        u64::from(self.vectors) * msix::ENTRY_LEN as u64
    }

    /// Bytes of the pending bits: whole 64-bit words.
    #[must_use]
    pub fn pba_len(&self) -> u64 {
        u64::from(self.vectors.div_ceil(64)) * 8
    }

    fn is_valid(&self, bars: &[Option<BarSpec>; BAR_COUNT]) -> bool {
        let Some(Some(bar)) = bars.get(usize::from(self.bar)) else { return false };
        let (table, pba) = (u64::from(self.table_offset), u64::from(self.pba_offset));
        let (table_end, pba_end) = (table + self.table_len(), pba + self.pba_len());
        (1..=msix::MAX_VECTORS).contains(&self.vectors)
            && (self.table_offset | self.pba_offset).is_multiple_of(8)
            && table_end <= u64::from(bar.len)
            && pba_end <= u64::from(bar.len)
            && (table_end <= pba || pba_end <= table)
    }
}

/// Address translation services. Requests are declared page aligned: Linux does without ATS otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtsSpec {
    /// Invalidations that can be queued, 0 to 31; 0 means 32.
    pub queue_depth: u8,
    /// The Global Invalidate bit is honoured.
    pub global_invalidate: bool,
}

/// Page request interface. Responses are declared to carry the PASID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PriSpec {
    /// Most page requests (not groups) that can be outstanding. Not 0.
    pub capacity: u32,
}

/// Process address space ids. Execute and privileged requests are not offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PasidSpec {
    /// Width in bits, 1 to 20.
    pub width: u8,
}

/// A vendor-specific capability (PCI 3.0 appendix H).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VendorSpec {
    /// What follows the id and the pointer to the next capability; the first byte is the capability's whole length.
    pub body: &'static [u8],
    /// Bits of `body` that the guest can write; shorter than `body`: the rest is read-only.
    pub writable: &'static [u8],
}

impl VendorSpec {
    /// Bytes of the capability, its two leading ones included.
    fn len(&self) -> u16 {
        u16::try_from(self.body.len()).unwrap_or(u16::MAX).saturating_add(2)
    }

    fn is_valid(&self) -> bool {
        self.body.first().is_some_and(|&len| u16::from(len) == self.len())
            && self.writable.len() <= self.body.len()
    }
}

/// A register of the function's own in configuration space, 32 bits, beyond all capabilities. 0 at power-on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigRegister {
    /// Where, a multiple of 4.
    pub offset: u16,
    /// Bits that can be written.
    pub writable: u32,
    /// Bits that are write-one-to-clear.
    pub w1c: u32,
}

/// Everything a function declares. Start from [`Default`] and fill in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FunctionSpec {
    /// Ids and class.
    pub identity: Identity,
    /// Memory BARs.
    pub bars: [Option<BarSpec>; BAR_COUNT],
    /// Power management: D0 and D3hot, without effect.
    pub power_management: bool,
    /// PCI Express.
    pub express: Option<ExpressSpec>,
    /// MSI-X.
    pub msix: Option<MsixSpec>,
    /// Vendor-specific capabilities, in this order.
    pub vendor: &'static [VendorSpec],
    /// PASID.
    pub pasid: Option<PasidSpec>,
    /// ATS.
    pub ats: Option<AtsSpec>,
    /// PRI.
    pub pri: Option<PriSpec>,
    /// Registers of its own.
    pub registers: &'static [ConfigRegister],
}

/// A [`FunctionSpec`] contradicts itself or the standard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Length is no power of two, or below a page.
    #[error("BAR {bar} cannot have {len:#x} bytes")]
    Bar {
        /// Which.
        bar: usize,
        /// The length asked for.
        len: u32,
    },
    /// Vector count, alignment or placement.
    #[error("MSI-X table or pending bits do not fit: {0:?}")]
    Msix(MsixSpec),
    /// A vendor-specific capability lies about its length, or they do not fit below 0x100.
    #[error("vendor-specific capabilities do not fit")]
    Vendor,
    /// A register of the function's own is not aligned, or not beyond the capabilities.
    #[error("no register can be at {0:#x} of configuration space")]
    Register(u16),
    /// Width is not 1 to 20.
    #[error("PASID width {0} is not within 1 to 20")]
    PasidWidth(u8),
    /// Capacity is 0.
    #[error("PRI needs a capacity")]
    PriCapacity,
    /// Queue depth is above 31.
    #[error("ATS queue depth {0} is above 31")]
    AtsQueueDepth(u8),
    /// ATS, PRI or PASID without PCI Express, or PRI without ATS.
    #[error("PASID and ATS need PCI Express, PRI needs ATS")]
    Dependency,
}

/// Where the capabilities of a function are; 0 for absent ones.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Layout {
    pub(super) express: u16,
    pub(super) msix: u16,
    pub(super) pasid: u16,
    pub(super) ats: u16,
    pub(super) pri: u16,
}

impl FunctionSpec {
    fn check(&self) -> Result<(), SpecError> {
        for (bar, spec) in self.bars.iter().enumerate() {
            if let Some(spec) = spec
                && !spec.is_valid()
            {
                return Err(SpecError::Bar { bar, len: spec.len });
            }
        }
        match self {
            Self { msix: Some(msix), .. } if !msix.is_valid(&self.bars) => Err(SpecError::Msix(*msix)),
            Self { vendor, .. } if !Self::vendor_fits(vendor) => Err(SpecError::Vendor),
            Self { pasid: Some(p), .. } if !(1..=20).contains(&p.width) => {
                Err(SpecError::PasidWidth(p.width))
            }
            Self { pri: Some(PriSpec { capacity: 0 }), .. } => Err(SpecError::PriCapacity),
            Self { ats: Some(a), .. } if a.queue_depth > 31 => Err(SpecError::AtsQueueDepth(a.queue_depth)),
            Self { express: None, pasid, ats, .. } if pasid.is_some() || ats.is_some() => {
                Err(SpecError::Dependency)
            }
            Self { ats: None, pri: Some(_), .. } => Err(SpecError::Dependency),
            _ => Ok(()),
        }
    }

    /// Whether they are valid and fit beside all capabilities of fixed length.
    fn vendor_fits(vendor: &[VendorSpec]) -> bool {
        let fixed = header::END + power::LEN + express::LEN + msix::LEN;
        let len = |spec: &VendorSpec| usize::from(spec.len().next_multiple_of(4));
        vendor.iter().all(VendorSpec::is_valid)
            && usize::from(fixed) + vendor.iter().map(len).sum::<usize>() <= usize::from(EXTENDED_START)
    }

    /// The configuration space at power-on, and where things are in it. **Pure.**
    pub(super) fn layout(&self) -> Result<(ConfigSpace, Layout), SpecError> {
        self.check()?;
        let mut chain = Chain::new(&self.identity);
        bar::install(&mut chain.config, &self.bars);
        let mut layout = Layout::default();
        if self.power_management {
            chain.power_management();
        }
        if let Some(spec) = &self.express {
            layout.express = chain.express(spec);
        }
        if let Some(spec) = &self.msix {
            layout.msix = chain.msix(spec);
        }
        for spec in self.vendor {
            chain.vendor(spec);
        }
        if let Some(spec) = &self.pasid {
            layout.pasid = chain.pasid(spec);
        }
        if let Some(spec) = &self.ats {
            layout.ats = chain.ats(spec);
        }
        if let Some(spec) = &self.pri {
            layout.pri = chain.pri(spec);
        }
        self.registers.iter().try_for_each(|register| chain.register(register))?;
        Ok((chain.config, layout))
    }
}

/// A configuration space under construction, and the two lists through it.
struct Chain {
    config: ConfigSpace,
    /// Where the pointer to the next capability goes.
    link: u16,
    free: u16,
    /// The last extended capability; 0: none yet.
    last_extended: u16,
    free_extended: u16,
}

impl Chain {
    fn new(id: &Identity) -> Self {
        let mut config = ConfigSpace::default();
        let [prog_if, subclass, base, _] = id.class.to_le_bytes();
        config.set(header::VENDOR_ID, &id.vendor.to_le_bytes());
        config.set(header::DEVICE_ID, &id.device.to_le_bytes());
        config.set(header::REVISION, &[id.revision]);
        config.set(header::CLASS, &[prog_if, subclass, base]);
        config.set(header::SUBSYSTEM_VENDOR_ID, &id.subsystem_vendor.to_le_bytes());
        config.set(header::SUBSYSTEM_ID, &id.subsystem.to_le_bytes());
        config.open_header();
        config.set_w1c(header::STATUS, &header::STATUS_W1C.to_le_bytes());
        Self {
            config,
            link: header::CAPABILITIES,
            free: header::END,
            last_extended: 0,
            free_extended: EXTENDED_START,
        }
    }

    /// Appends a capability and returns its offset. All of them together fit below 0x100.
    fn push(&mut self, id: u8, len: u16) -> u16 {
        let at = self.free;
        self.config.set(header::STATUS, &header::STATUS_CAPABILITIES.to_le_bytes());
        self.config.set(self.link, &[at.to_le_bytes()[0]]);
        self.config.set(at, &[id, 0]);
        self.link = at + 1;
        self.free = (at + len).next_multiple_of(4);
        at
    }

    /// Appends an extended capability, version 1, and returns its offset.
    fn push_extended(&mut self, id: u16, len: u16) -> u16 {
        let at = self.free_extended;
        debug_assert!(usize::from(at + len) <= CONFIG_SIZE);
        if self.last_extended != 0 {
            let head = ExtendedHeader::new_with_raw_value(self.config.u32(self.last_extended));
            let head = head.with_next_dword(u10::masked_new(at / 4));
            self.config.set(self.last_extended, &head.raw_value().to_le_bytes());
        }
        let head = ExtendedHeader::DEFAULT.with_id(id).with_version(u4::new(1));
        self.config.set(at, &head.raw_value().to_le_bytes());
        self.last_extended = at;
        self.free_extended = (at + len).next_multiple_of(16);
        at
    }

    fn register(&mut self, spec: &ConfigRegister) -> Result<(), SpecError> {
        // The head of the list has to stay 0 if there is no list.
        let first = self.free_extended.max(EXTENDED_START + 4);
        let place = first..u16::try_from(CONFIG_SIZE).unwrap_or(u16::MAX);
        if !spec.offset.is_multiple_of(4) || !place.contains(&spec.offset) {
            return Err(SpecError::Register(spec.offset));
        }
        self.config.set_writable(spec.offset, &spec.writable.to_le_bytes());
        self.config.set_w1c(spec.offset, &spec.w1c.to_le_bytes());
        Ok(())
    }

    fn power_management(&mut self) {
        let at = self.push(capability::POWER_MANAGEMENT, power::LEN);
        self.config.set(at + power::CAPABILITIES, &power::VERSION.to_le_bytes());
        self.config.set(at + power::CONTROL, &power::NO_SOFT_RESET.to_le_bytes());
        self.config.set_writable(at + power::CONTROL, &power::STATE.to_le_bytes());
    }

    fn express(&mut self, spec: &ExpressSpec) -> u16 {
        let at = self.push(capability::PCI_EXPRESS, express::LEN);
        let caps = ExpressCapabilities::DEFAULT
            .with_version(u4::new(2))
            .with_port_type(u4::new(express::TYPE_INTEGRATED_ENDPOINT));
        let device = DeviceCapabilities::DEFAULT
            .with_max_payload(u3::new(1))
            .with_role_based_errors(true)
            .with_function_reset(spec.function_reset);
        let control = DeviceControl::DEFAULT
            .with_relaxed_ordering(true)
            .with_no_snoop(true)
            .with_max_read_request(u3::new(2));
        let writable = DeviceControl::DEFAULT
            .with_error_reporting(u4::new(0xf))
            .with_relaxed_ordering(true)
            .with_max_payload(u3::new(7))
            .with_no_snoop(true)
            .with_max_read_request(u3::new(7))
            .with_function_reset(spec.function_reset);
        let device_2 = DeviceCapabilities2::DEFAULT
            .with_end_end_prefix(spec.end_end_prefix)
            .with_max_end_end_prefixes(u2::new(u8::from(spec.end_end_prefix)));
        self.config.set(at + express::CAPABILITIES, &caps.raw_value().to_le_bytes());
        self.config.set(at + express::DEVICE_CAPABILITIES, &device.raw_value().to_le_bytes());
        self.config.set(at + express::DEVICE_CONTROL, &control.raw_value().to_le_bytes());
        self.config.set_writable(at + express::DEVICE_CONTROL, &writable.raw_value().to_le_bytes());
        self.config.set_w1c(at + express::DEVICE_STATUS, &express::DEVICE_STATUS_W1C.to_le_bytes());
        self.config.set(at + express::DEVICE_CAPABILITIES_2, &device_2.raw_value().to_le_bytes());
        at
    }

    fn msix(&mut self, spec: &MsixSpec) -> u16 {
        let at = self.push(capability::MSIX, msix::LEN);
        let control = MsixControl::DEFAULT.with_table_size(u11::masked_new(spec.vectors - 1));
        let writable = MsixControl::DEFAULT.with_function_mask(true).with_enable(true);
        let bir = u32::from(spec.bar);
        self.config.set(at + msix::CONTROL, &control.raw_value().to_le_bytes());
        self.config.set_writable(at + msix::CONTROL, &writable.raw_value().to_le_bytes());
        self.config.set(at + msix::TABLE, &(spec.table_offset | bir).to_le_bytes());
        self.config.set(at + msix::PBA, &(spec.pba_offset | bir).to_le_bytes());
        at
    }

    fn vendor(&mut self, spec: &VendorSpec) {
        let at = self.push(capability::VENDOR, spec.len()) + 2;
        self.config.set(at, spec.body);
        self.config.set_writable(at, spec.writable);
    }

    fn pasid(&mut self, spec: &PasidSpec) -> u16 {
        let at = self.push_extended(extended::PASID, pasid::LEN);
        let caps = PasidCapability::DEFAULT.with_width(u5::masked_new(spec.width));
        let writable = PasidControl::DEFAULT.with_enable(true);
        self.config.set(at + pasid::CAPABILITY, &caps.raw_value().to_le_bytes());
        self.config.set_writable(at + pasid::CONTROL, &writable.raw_value().to_le_bytes());
        at
    }

    fn ats(&mut self, spec: &AtsSpec) -> u16 {
        let at = self.push_extended(extended::ATS, ats::LEN);
        let caps = AtsCapability::DEFAULT
            .with_queue_depth(u5::masked_new(spec.queue_depth))
            .with_page_aligned(true)
            .with_global_invalidate(spec.global_invalidate);
        let writable = AtsControl::DEFAULT.with_stu(u5::new(31)).with_enable(true);
        self.config.set(at + ats::CAPABILITY, &caps.raw_value().to_le_bytes());
        self.config.set_writable(at + ats::CONTROL, &writable.raw_value().to_le_bytes());
        at
    }

    fn pri(&mut self, spec: &PriSpec) -> u16 {
        let at = self.push_extended(extended::PRI, pri::LEN);
        let status = PriStatus::DEFAULT.with_stopped(true).with_response_pasid(true);
        let w1c = PriStatus::DEFAULT.with_response_failure(true).with_unexpected_group(true);
        let writable = PriControl::DEFAULT.with_enable(true).with_reset(true);
        self.config.set(at + pri::STATUS, &status.raw_value().to_le_bytes());
        self.config.set_w1c(at + pri::STATUS, &w1c.raw_value().to_le_bytes());
        self.config.set_writable(at + pri::CONTROL, &writable.raw_value().to_le_bytes());
        self.config.set(at + pri::CAPACITY, &spec.capacity.to_le_bytes());
        self.config.set_writable(at + pri::ALLOCATION, &[0xff; 4]);
        at
    }
}
