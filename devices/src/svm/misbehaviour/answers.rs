//! What is done to invalidations, page requests and responses.

use std::time::Duration;

use iommu_core::{DeviceTlbCompletion, GroupIndex, Iova, PageRequest};

use super::board::Misbehaviour;
use super::kind::Kind;

/// What can happen to an invalidation.
const INVALIDATION: u32 =
    Kind::LateInvalidation.bit() | Kind::LostInvalidation.bit() | Kind::StaleTranslation.bit();
/// What can happen to a page request.
const REQUEST: u32 = Kind::WrongGroup.bit()
    | Kind::PrivilegedRequest.bit()
    | Kind::ExecuteRequest.bit()
    | Kind::StrangeAddress.bit()
    | Kind::UnfinishedGroup.bit();

/// Group of page requests that no descriptor made. No descriptor's has it, so that answers can be told apart.
pub const STRAY_GROUP: GroupIndex = GroupIndex::truncate(GroupIndex::COUNT - 1);

impl Misbehaviour {
    /// A device-TLB invalidation, which `honest` does. Takes at most a second.
    pub fn invalidation(&self, honest: impl FnOnce() -> DeviceTlbCompletion) -> DeviceTlbCompletion {
        if self.gone() {
            // Nobody is there to complete it.
            return DeviceTlbCompletion::TimedOut;
        }
        if !self.any(INVALIDATION) {
            return honest();
        }
        if self.happens(Kind::StaleTranslation).is_some() {
            return DeviceTlbCompletion::Complete;
        }
        let completion = honest();
        let pause = |wait: u32| std::thread::sleep(Duration::from_millis(u64::from(wait)));
        if let Some(wait) = self.happens(Kind::LateInvalidation) {
            pause(wait);
        }
        match self.happens(Kind::LostInvalidation) {
            Some(wait) => {
                pause(wait);
                DeviceTlbCompletion::TimedOut
            }
            None => completion,
        }
    }

    /// A page request as it goes out.
    #[must_use]
    pub fn outgoing(&self, request: &PageRequest) -> PageRequest {
        let mut request = *request;
        if !self.any(REQUEST) {
            return request;
        }
        if self.happens(Kind::WrongGroup).is_some() {
            // Half of all away from the function's own, which are handed out in order.
            request.group = GroupIndex::truncate(request.group.get() ^ (GroupIndex::COUNT / 2));
        }
        request.privileged |= self.happens(Kind::PrivilegedRequest).is_some();
        if self.happens(Kind::ExecuteRequest).is_some() {
            (request.read, request.execute) = (true, true);
        }
        if self.happens(Kind::StrangeAddress).is_some() {
            request.address = Iova(request.address.0 ^ 1 << 62);
        }
        if self.happens(Kind::UnfinishedGroup).is_some() {
            request.last = false;
        }
        request
    }
}
