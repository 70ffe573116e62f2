//! What the event loop does for assigned devices.

use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::sync::Arc;

use vfio_bridge::choice::Bridge;
use vfio_bridge::fault_queue::FaultQueue;
use vfio_bridge::function::{AssignedFunction, Notice};

use crate::iommu::Iommu;
use crate::kvm::vfio::Member;

/// One thing that is waited for.
pub(crate) enum Served {
    /// Page requests of the devices behind one unit.
    PageRequests(PageRequests),
    /// A function.
    Function(Function),
}

impl Served {
    /// Does what there is to do. False: there will never be any more.
    pub(crate) fn serve(&mut self) -> bool {
        match self {
            Self::PageRequests(it) => it.serve(),
            Self::Function(it) => it.serve(),
        }
    }
}

impl AsRawFd for Served {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::PageRequests(it) => it.queue.as_fd().as_raw_fd(),
            Self::Function(it) => it.function.as_raw_fd(),
        }
    }
}

/// The host's recoverable faults on their way to the guest. Fields are dropped in this order.
pub(crate) struct PageRequests {
    pub(crate) queue: Arc<FaultQueue>,
    pub(crate) host: Bridge,
    pub(crate) iommu: Iommu,
    pub(crate) failures: u32,
}

/// A queue that fails so often on end will not get better, and would keep this thread busy for ever.
const FAILURES: u32 = 64;

impl PageRequests {
    fn serve(&mut self) -> bool {
        match self.host.deliver_page_requests(self.iommu.unit()) {
            Ok(_) => self.failures = 0,
            Err(error) => {
                self.failures += 1;
                if self.failures == 1 || self.failures == FAILURES {
                    log::warn!("page requests: {}", crate::config::reasons(&error));
                }
            }
        }
        self.failures < FAILURES
    }
}

/// A function with all that holds its device's file open.
pub(crate) struct Function {
    pub(crate) id: String,
    pub(crate) function: Arc<AssignedFunction>,
    pub(crate) host: Bridge,
    pub(crate) iommu: Option<Iommu>,
    pub(crate) member: Option<Member>,
}

impl Function {
    fn serve(&mut self) -> bool {
        let Some(notice) = self.function.serve() else { return true };
        let why = match notice {
            Notice::Error => "it reports an error that it does not recover from",
            Notice::Request => "the host wants it back",
        };
        log::error!("--vfio {}: {why}; the guest loses the device", self.id);
        self.function.remove();
        let source = self.function.source();
        if let Some(iommu) = &self.iommu {
            iommu.unit().detach_host(source);
        }
        self.host.remove_device(source);
        self.member = None;
        false
    }
}
