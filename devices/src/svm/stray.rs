//! Misbehaviour of a function as a whole: requests on the bus that no descriptor asked for, and the removal of the function.

use iommu_core::{
    Access, AddressType, Iova, PageRequest, PageRequestOutcome, Pasid, Request, SourceId, Translator,
    VendorData,
};

use super::device::Device;
use super::misbehaviour::{Kind, STRAY_GROUP};
use super::pri::count;

/// What happens before a descriptor is worked on.
const STRAY: u32 = Kind::TranslatedAccess.bit()
    | Kind::ForeignPasid.bit()
    | Kind::InterruptRange.bit()
    | Kind::RequestFlood.bit()
    | Kind::SurpriseRemoval.bit();

/// An address of the interrupt range.
const INTERRUPTS: u64 = 0xfee0_0000;

/// Where a descriptor is about to begin.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// PASID of its queue.
    pub pasid: Option<Pasid>,
    /// First address; 0 if it needs none.
    pub address: Iova,
    /// First access.
    pub access: Access,
}

/// The way from the function to its IOMMU.
#[derive(Clone, Copy)]
pub struct Way<'a> {
    /// Where the function is.
    pub source: SourceId,
    /// Its IOMMU.
    pub translator: &'a dyn Translator,
}

impl Device {
    /// Whether anything of this file may happen.
    #[must_use]
    #[inline]
    pub fn strays(&self) -> bool {
        self.misbehaviour.any(STRAY)
    }

    /// What happens before a descriptor is worked on. Called inside the gate of its queue, by its worker.
    pub fn stray(&self, way: Way<'_>, start: &Start) {
        let happens = |kind| self.misbehaviour.happens(kind);
        let access = |pasid, address, access| Request::untranslated(way.source, pasid, address, access);
        if happens(Kind::TranslatedAccess).is_some() {
            let request = access(None, start.address, start.access);
            way.request(&Request { address_type: AddressType::Translated, ..request });
        }
        if let Some(pasid) = happens(Kind::ForeignPasid) {
            way.request(&access(Some(Pasid::truncate(pasid)), start.address, start.access));
        }
        if let Some(with_pasid) = happens(Kind::InterruptRange) {
            let pasid = start.pasid.filter(|_| with_pasid != 0);
            way.request(&access(pasid, Iova(INTERRUPTS), Access::Read));
        }
        if let Some(requests) = happens(Kind::RequestFlood) {
            self.flood(way, start, requests);
        }
    }

    /// Makes page requests for one page, all of them groups of their own, without a look at credits.
    fn flood(&self, way: Way<'_>, start: &Start, requests: u32) {
        let write = start.access.is_write();
        let request = PageRequest {
            source: way.source,
            pasid: start.pasid,
            address: Iova(start.address.0 & !0xfff),
            read: !write,
            write,
            execute: false,
            privileged: false,
            last: true,
            group: STRAY_GROUP,
            vendor: VendorData::NONE,
        };
        for _ in 0..requests {
            // Counted before it is out: the answer may overtake the call.
            if !self.pri.add_stray() {
                return;
            }
            self.counters.page_requests.count();
            match way.translator.page_request(&request) {
                PageRequestOutcome::Queued => {}
                PageRequestOutcome::Answered(code) => {
                    count(code, &self.counters);
                    self.pri.end_stray();
                }
                PageRequestOutcome::Dropped => {
                    self.pri.end_stray();
                }
            }
        }
    }

    /// Takes the function off the bus if that is due. On return no DMA is under way then, and none follows. Called by a
    /// worker outside of all gates.
    pub fn vanish_if_due(&self) {
        if let Some(looks) = self.misbehaviour.happens(Kind::SurpriseRemoval) {
            log::debug!("SVM endpoint: surprise removal");
            self.misbehaviour.vanish(looks, || self.abandon());
        }
    }
}

impl Way<'_> {
    /// A request that moves no data, whatever the IOMMU says to it.
    fn request(&self, request: &Request) {
        if let Err(fault) = self.translator.translate(request) {
            self.translator.report(&fault);
        }
    }
}
