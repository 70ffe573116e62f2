//! Chapter 6: invalidation descriptors, decoded once into values. Pure and total.
//!
//! The ring they come from is [`crate::queue`]; what they do is in [`crate::unit`].

use arbitrary_int::traits::Integer;
use arbitrary_int::u2;
use iommu_core::{
    DeviceTlbInvalidation, DomainId, Gpa, GroupIndex, Invalidation, IovaRange, PageResponse, Pasid,
    ResponseCode, Scope, SourceId, VendorData,
};

use crate::capability::Capability;
use crate::spec::bits;
use crate::spec::interrupt::InterruptEntryCache;
use crate::spec::invalidation::{
    ContextCache, DescriptorType, DeviceTlb, DeviceTlbAddress, Header, Iotlb, IotlbAddress,
    PageGroupResponse, PageGroupResponseIndex, PasidCache, PasidDeviceTlb, PasidDeviceTlbAddress, PasidIotlb,
    Wait, WaitAddress,
};
use crate::spec::registers::TranslationTableMode;

/// Why the queue stopped: the codes of IQERCD.IQEI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum QueueError {
    /// The tail lies outside the queue.
    TailOutOfRange = 1,
    /// The descriptor could not be read.
    Fetch = 2,
    /// No such type here.
    Type = 3,
    /// A reserved field is not 0, or a field has a reserved value.
    Reserved = 4,
    /// The descriptor width does not fit the translation table mode.
    Width = 5,
    /// The tail is not a multiple of the descriptor width.
    TailMisaligned = 6,
    /// The translation table mode is reserved.
    Mode = 7,
}

/// A wait descriptor. Descriptors are processed one after the other, so its fence flag has nothing to add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitAction {
    /// Where to write which status.
    pub status: Option<(Gpa, u32)>,
    /// Signal completion in ICS.
    pub interrupt: bool,
    /// Page requests that arrived before are to be in their queue first (PD).
    pub drain: bool,
}

/// What a context-cache invalidation hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContextScope {
    /// Every entry.
    All,
    /// Entries of a domain. Only legacy context entries have one.
    Domain(DomainId),
    /// Functions whose source-id, with the bits of `mask` ignored, is `source`.
    Source {
        /// Source-id; bits of `mask` are 0.
        source: SourceId,
        /// Bits not compared.
        mask: u16,
    },
}

impl ContextScope {
    /// Whether the cached entry of `source` must go. `domain` is that of a legacy entry.
    #[must_use]
    pub fn hits(&self, source: SourceId, domain: Option<DomainId>) -> bool {
        match *self {
            Self::All => true,
            Self::Domain(hit) => domain == Some(hit),
            Self::Source { source: hit, mask } => source.0 & !mask == hit.0,
        }
    }
}

/// What a PASID-cache invalidation hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PasidScope {
    /// Every entry.
    All,
    /// Entries of a domain.
    Domain(DomainId),
    /// The entries of a PASID in a domain, whichever functions they were read for.
    Pasid {
        /// Domain.
        domain: DomainId,
        /// PASID.
        pasid: Pasid,
    },
}

impl PasidScope {
    /// Whether a cached entry must go.
    #[must_use]
    pub fn hits(&self, domain: DomainId, pasid: Pasid) -> bool {
        match *self {
            Self::All => true,
            Self::Domain(hit) => domain == hit,
            Self::Pasid { domain: hit_domain, pasid: hit } => domain == hit_domain && pasid == hit,
        }
    }
}

/// Which interrupt-remapping table entries an invalidation of the interrupt entry cache is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterruptScope {
    /// All.
    All,
    /// A naturally aligned block: the indexes that equal `first` but for the bits of `mask`.
    Block {
        /// Lowest index.
        first: u16,
        /// Bits not compared.
        mask: u16,
    },
}

impl InterruptScope {
    /// Whether the entry at `index` is meant.
    #[must_use]
    pub const fn hits(self, index: u16) -> bool {
        match self {
            Self::All => true,
            Self::Block { first, mask } => index & !mask == first,
        }
    }
}

/// A descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descriptor {
    /// Context entries changed, or root entries.
    ContextCache(ContextScope),
    /// PASID entries changed, or directory entries.
    PasidCache(PasidScope),
    /// Translations changed.
    Translations(Invalidation),
    /// What a function caches is to go.
    DeviceTlb(DeviceTlbInvalidation),
    /// Interrupt-remapping table entries changed.
    InterruptEntries(InterruptScope),
    /// The answer to a page request group.
    Response(PageResponse),
    /// Tell the guest that all before is done.
    Wait(WaitAction),
}

impl Descriptor {
    /// Whether the guest hears of it: a wait that is more than a fence.
    #[must_use]
    pub fn reports(&self) -> bool {
        matches!(self, Self::Wait(wait) if wait.status.is_some() || wait.interrupt)
    }
}

/// How the queue is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueMode {
    /// Descriptors of 256 bits.
    pub wide: bool,
    /// The translation table mode in force.
    pub tables: TranslationTableMode,
}

const TYPE: u64 = bits(3, 0);
const PFSID: u64 = bits(63, 52) | bits(15, 12);

/// The defined bits of a type's quadwords 0 and 1. All others must be 0.
const fn defined(kind: DescriptorType) -> [u64; 2] {
    match kind {
        DescriptorType::ContextCache => [TYPE | bits(5, 4) | bits(49, 16), 0],
        DescriptorType::Iotlb => [TYPE | bits(7, 4) | bits(31, 16), bits(63, 12) | bits(6, 0)],
        DescriptorType::DeviceTlb => [TYPE | PFSID | bits(20, 16) | bits(47, 32), bits(63, 12) | bits(0, 0)],
        DescriptorType::InterruptEntryCache => [TYPE | bits(4, 4) | bits(47, 27), 0],
        DescriptorType::Wait => [TYPE | bits(7, 4) | bits(63, 32), bits(63, 2)],
        DescriptorType::PasidIotlb => [TYPE | bits(5, 4) | bits(51, 16), bits(63, 12) | bits(6, 0)],
        DescriptorType::PasidCache => [TYPE | bits(5, 4) | bits(51, 16), 0],
        DescriptorType::PasidDeviceTlb => {
            [TYPE | PFSID | bits(8, 4) | bits(51, 16), bits(63, 11) | bits(0, 0)]
        }
        DescriptorType::PageGroupResponse => [TYPE | bits(4, 4) | bits(15, 12) | bits(51, 16), bits(11, 2)],
        DescriptorType::HptCache => [TYPE | bits(5, 4) | bits(31, 16), bits(63, 12) | bits(7, 0)],
    }
}

/// Decodes a descriptor; of a 128-bit one, words 2 and 3 are 0. **Pure.**
///
/// # Errors
/// The error that stops the queue.
pub fn decode(words: &[u64; 4], mode: QueueMode, capability: &Capability) -> Result<Descriptor, QueueError> {
    let kind = kind(words[0], mode, capability)?;
    let [low, high] = defined(kind);
    if words[0] & !low != 0 || words[1] & !high != 0 || words[2] != 0 || words[3] != 0 {
        return Err(QueueError::Reserved);
    }
    let [low, high, ..] = *words;
    match kind {
        DescriptorType::ContextCache => {
            context_cache(ContextCache::new_with_raw_value(low), mode.tables, capability)
        }
        DescriptorType::Iotlb => iotlb(Iotlb::new_with_raw_value(low), high, capability),
        DescriptorType::DeviceTlb => device_tlb(DeviceTlb::new_with_raw_value(low), high, capability),
        DescriptorType::Wait => wait(Wait::new_with_raw_value(low), high, capability),
        DescriptorType::PasidIotlb => pasid_iotlb(PasidIotlb::new_with_raw_value(low), high, capability),
        DescriptorType::PasidCache => pasid_cache(PasidCache::new_with_raw_value(low), capability),
        DescriptorType::PasidDeviceTlb => {
            pasid_device_tlb(PasidDeviceTlb::new_with_raw_value(low), high, capability)
        }
        DescriptorType::PageGroupResponse => {
            Ok(Descriptor::Response(response(PageGroupResponse::new_with_raw_value(low), high)))
        }
        DescriptorType::InterruptEntryCache => {
            interrupt_entry_cache(InterruptEntryCache::new_with_raw_value(low), capability)
        }
        DescriptorType::HptCache => Err(QueueError::Type),
    }
}

/// The type, if it may stand in a queue of this mode under this profile.
fn kind(low: u64, mode: QueueMode, capability: &Capability) -> Result<DescriptorType, QueueError> {
    let legacy = match mode.tables {
        TranslationTableMode::Reserved => return Err(QueueError::Mode),
        TranslationTableMode::Legacy => true,
        TranslationTableMode::Scalable | TranslationTableMode::AbortDma if mode.wide => false,
        TranslationTableMode::Scalable | TranslationTableMode::AbortDma => return Err(QueueError::Width),
    };
    let ecap = capability.ecap();
    if mode.wide && !ecap.smts() && !ecap.adms() {
        return Err(QueueError::Width);
    }
    let header = Header::new_with_raw_value(low);
    let (Ok(kind), 0) = (header.kind(), header.type_high().value()) else { return Err(QueueError::Type) };
    let offered = match kind {
        DescriptorType::ContextCache | DescriptorType::Iotlb | DescriptorType::Wait => true,
        DescriptorType::DeviceTlb => ecap.dt(),
        DescriptorType::InterruptEntryCache => ecap.ir(),
        DescriptorType::PasidIotlb | DescriptorType::PasidCache => !legacy,
        DescriptorType::PasidDeviceTlb => !legacy && ecap.dt(),
        DescriptorType::PageGroupResponse => !legacy && ecap.prs(),
        DescriptorType::HptCache => false,
    };
    if offered { Ok(kind) } else { Err(QueueError::Type) }
}

fn context_cache(
    raw: ContextCache,
    tables: TranslationTableMode,
    capability: &Capability,
) -> Result<Descriptor, QueueError> {
    let legacy = tables == TranslationTableMode::Legacy;
    let scope = match raw.g().value() {
        1 => ContextScope::All,
        2 if legacy => ContextScope::Domain(capability.domain_id(raw.did())),
        // Scalable-mode context entries have no domain-id: domain-selective means global.
        2 => ContextScope::All,
        3 => functions(raw.sid(), raw.fm()),
        _ => return Err(QueueError::Reserved),
    };
    Ok(Descriptor::ContextCache(scope))
}

/// A source-id with a function mask: 1, 2, 4 or 8 functions. The domain-id that comes with it hits no more and
/// no less: an entry goes by its source-id alone.
pub(crate) fn functions(source: u16, mask: u2) -> ContextScope {
    let mask = [0b000, 0b100, 0b110, 0b111][usize::from(mask.value())];
    ContextScope::Source { source: SourceId(source & !mask), mask }
}

/// A mask beyond MHMV has no error of its own in the manual; it is a field with a reserved value.
fn interrupt_entry_cache(
    raw: InterruptEntryCache,
    capability: &Capability,
) -> Result<Descriptor, QueueError> {
    if !raw.selective() {
        return Ok(Descriptor::InterruptEntries(InterruptScope::All));
    }
    if raw.im().value() > capability.ecap().mhmv().value() {
        return Err(QueueError::Reserved);
    }
    let mask = ((1u32 << raw.im().value()) - 1).to_le_bytes();
    let mask = u16::from_le_bytes([mask[0], mask[1]]);
    Ok(Descriptor::InterruptEntries(InterruptScope::Block { first: raw.iidx() & !mask, mask }))
}

fn pasid_cache(raw: PasidCache, capability: &Capability) -> Result<Descriptor, QueueError> {
    let domain = capability.domain_id(raw.did());
    let scope = match raw.g().value() {
        0 => PasidScope::Domain(domain),
        1 => PasidScope::Pasid { domain, pasid: pasid_of(raw.pasid()) },
        3 => PasidScope::All,
        _ => return Err(QueueError::Reserved),
    };
    Ok(Descriptor::PasidCache(scope))
}

fn iotlb(raw: Iotlb, high: u64, capability: &Capability) -> Result<Descriptor, QueueError> {
    let pages = IotlbAddress::new_with_raw_value(high);
    let domain = capability.domain_id(raw.did());
    let scope = match raw.g().value() {
        1 => Scope::All,
        2 => Scope::Domain(domain),
        3 if capability.cap().psi() && pages.am() <= capability.cap().mamv() => {
            Scope::DomainRange { domain, range: second_stage_range(pages, capability) }
        }
        _ => return Err(QueueError::Reserved),
    };
    Ok(translations(scope, pages))
}

/// Bits above MGAW are not looked at.
pub(crate) fn second_stage_range(pages: IotlbAddress, capability: &Capability) -> IovaRange {
    let address = (pages.addr().value() << 12) & (u64::MAX >> (64 - capability.guest_address_width()));
    IovaRange::aligned(address, 12 + pages.am().as_u32())
}

/// The address is as the device used it, so it may be of the upper half, and no MAMV bounds the mask.
fn pasid_iotlb(raw: PasidIotlb, high: u64, capability: &Capability) -> Result<Descriptor, QueueError> {
    let pages = IotlbAddress::new_with_raw_value(high);
    let domain = capability.domain_id(raw.did());
    let pasid = pasid_of(raw.pasid());
    let scope = match raw.g().value() {
        2 => Scope::Pasid { domain, pasid },
        3 => {
            let range = IovaRange::aligned(pages.addr().value() << 12, 12 + pages.am().as_u32());
            Scope::PasidRange { domain, pasid, range }
        }
        _ => return Err(QueueError::Reserved),
    };
    Ok(translations(scope, pages))
}

fn translations(scope: Scope, pages: IotlbAddress) -> Descriptor {
    Descriptor::Translations(invalidation(scope, pages))
}

/// The hint speaks of a range; without one it means nothing.
pub(crate) fn invalidation(scope: Scope, pages: IotlbAddress) -> Invalidation {
    let ranged = matches!(scope, Scope::DomainRange { .. } | Scope::PasidRange { .. });
    Invalidation { scope, leaf_only: ranged && pages.ih(), vendor: VendorData::NONE }
}

fn device_tlb(raw: DeviceTlb, high: u64, capability: &Capability) -> Result<Descriptor, QueueError> {
    check_pfsid(raw.raw_value(), capability)?;
    let pages = DeviceTlbAddress::new_with_raw_value(high);
    Ok(Descriptor::DeviceTlb(DeviceTlbInvalidation {
        source: SourceId(raw.sid()),
        pasid: None,
        all_pasids: false,
        range: ats_range(pages.addr().value(), pages.s()),
    }))
}

fn pasid_device_tlb(
    raw: PasidDeviceTlb,
    high: u64,
    capability: &Capability,
) -> Result<Descriptor, QueueError> {
    check_pfsid(raw.raw_value(), capability)?;
    let pages = PasidDeviceTlbAddress::new_with_raw_value(high);
    Ok(Descriptor::DeviceTlb(DeviceTlbInvalidation {
        source: SourceId(raw.sid()),
        pasid: Some(pasid_of(raw.pasid())),
        all_pasids: pages.gi(),
        range: ats_range(pages.addr().value(), pages.s()),
    }))
}

/// PFSID is reserved without ECAP.DIT.
fn check_pfsid(low: u64, capability: &Capability) -> Result<(), QueueError> {
    if capability.ecap().dit() || low & PFSID == 0 { Ok(()) } else { Err(QueueError::Reserved) }
}

/// The size encoding of PCI Express ATS: with `sized`, the lowest 0 bit of the page number tells the size.
fn ats_range(page: u64, sized: bool) -> IovaRange {
    let bits = if sized { 13 + page.trailing_ones() } else { 12 };
    IovaRange::aligned(page << 12, bits)
}

fn wait(raw: Wait, high: u64, capability: &Capability) -> Result<Descriptor, QueueError> {
    if raw.pd() && !capability.ecap().pds() {
        return Err(QueueError::Reserved);
    }
    let address = WaitAddress::new_with_raw_value(high).addr().value() << 2;
    let status = raw.sw().then_some((Gpa(address & capability.host_address_mask()), raw.data()));
    Ok(Descriptor::Wait(WaitAction { status, interrupt: raw.if_(), drain: raw.pd() }))
}

/// Codes 2 to 14 are reserved and mean failure to a function. Linux uses 2 for it.
fn response(raw: PageGroupResponse, high: u64) -> PageResponse {
    let index = PageGroupResponseIndex::new_with_raw_value(high);
    PageResponse {
        source: SourceId(raw.rid()),
        pasid: raw.pp().then(|| pasid_of(raw.pasid())),
        group: GroupIndex::truncate(index.prgi().value()),
        code: match raw.rc().value() {
            0 => ResponseCode::Success,
            1 => ResponseCode::Invalid,
            _ => ResponseCode::Failure,
        },
        vendor: VendorData::NONE,
    }
}

fn pasid_of(raw: arbitrary_int::u20) -> Pasid {
    Pasid::truncate(raw.value())
}

#[cfg(test)]
mod tests;
