//! Kernel objects as values: made, used, and destroyed with what owns them.
//!
//! Whatever refers to another object holds it, so children go first. A kernel that does not let go of an object
//! (`EBUSY`) gets it named again later: until then it is lost, and only that.

use std::fmt;
use std::sync::Arc;

use iommu_core::HostError;
use iommu_core::sync::Mutex;
use rustix::io::Errno;

use crate::kernel::{Kernel, ObjectId};

// Operations that there is advice for.
pub(crate) const OPEN_IOMMUFD: &str = "open";
pub(crate) const OPEN_DEVICE: &str = "open a device";
pub(crate) const OPEN_CONTAINER: &str = "open a container";
pub(crate) const OPEN_GROUP: &str = "open a group";
pub(crate) const SET_UP_CONTAINER: &str = "set up a container";
pub(crate) const BIND: &str = "bind to the iommufd";
pub(crate) const MAKE_NEST_PARENT: &str = "make a nest parent";
pub(crate) const MAKE_PAGE_TABLE: &str = "make a page table";
pub(crate) const MAP: &str = "map guest memory";
pub(crate) const SHARE: &str = "let other devices at device memory";
pub(crate) const ATTACH: &str = "attach";
pub(crate) const SHADOW: &str = "shadow a guest's tables";

/// The error of an operation on an object.
pub(crate) fn refused(operation: &'static str, object: impl fmt::Display, errno: Errno) -> HostError {
    let source = std::io::Error::from(errno);
    HostError { operation, object: object.to_string(), still_bound: false, source }
}

/// What kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Ioas,
    NestParent,
    Paging,
    Nested,
    FaultQueue,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ioas => "IOAS",
            Self::NestParent => "nest parent",
            Self::Paging => "HWPT",
            Self::Nested => "nested HWPT",
            Self::FaultQueue => "fault queue",
        })
    }
}

/// All objects of one iommufd.
pub(crate) struct Objects {
    kernel: Arc<dyn Kernel>,
    /// Those that could not be destroyed, children first.
    lost: Mutex<Vec<ObjectId>>,
}

impl Objects {
    pub(crate) fn new(kernel: Arc<dyn Kernel>) -> Arc<Self> {
        Arc::new(Self { kernel, lost: Mutex::default() })
    }

    pub(crate) fn kernel(&self) -> &dyn Kernel {
        &*self.kernel
    }

    /// Takes charge of an object that the kernel just made.
    pub(crate) fn own(self: &Arc<Self>, kind: Kind, id: ObjectId) -> Object {
        Object { owner: self.clone(), kind, id }
    }

    /// Offers lost objects to the kernel once more.
    pub(crate) fn retry_lost(&self) {
        let mut lost = self.lost.lock();
        lost.retain(|id| !matches!(self.kernel.destroy(*id), Ok(()) | Err(Errno::NOENT)));
    }
}

impl Drop for Objects {
    fn drop(&mut self) {
        self.retry_lost();
    }
}

/// One object, destroyed on drop.
pub(crate) struct Object {
    owner: Arc<Objects>,
    kind: Kind,
    id: ObjectId,
}

impl Object {
    pub(crate) fn id(&self) -> ObjectId {
        self.id
    }

    pub(crate) fn owner(&self) -> &Arc<Objects> {
        &self.owner
    }

    pub(crate) fn kernel(&self) -> &dyn Kernel {
        self.owner.kernel()
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.id)
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // First what was lost: it may be what refers to this one.
        self.owner.retry_lost();
        match self.owner.kernel.destroy(self.id) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => {
                log::warn!("{self} is not destroyed yet: {errno}");
                self.owner.lost.lock().push(self.id);
            }
        }
    }
}
