//! Why a device stops what it is at.

use iommu_core::Iova;

/// The device was reset, or goes away: what was to be done is not wanted any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

/// Why data did not move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// The device was reset.
    Gone,
    /// Not all of it could be accessed. The IOMMU has recorded why, if it was its decision.
    Fault,
}

impl From<Gone> for Denied {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

/// What a driver did that the device cannot go on after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mistake {
    /// No queue can be so.
    #[error("size or alignment of a queue")]
    Place,
    /// A ring, a table of descriptors or a request's status cannot be accessed.
    #[error("no access at {0}")]
    Memory(Iova),
    /// More is available than the queue holds.
    #[error("available index out of range")]
    Index,
    /// Empty, too long, cut off, or a buffer to be read behind one to be written.
    #[error("malformed descriptor chain")]
    Chain,
}

/// Why a queue is not served any longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The device was reset.
    Gone,
    /// It has to give up.
    Mistake(Mistake),
}

impl From<Gone> for Stop {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

impl From<Mistake> for Stop {
    fn from(mistake: Mistake) -> Self {
        Self::Mistake(mistake)
    }
}

impl Stop {
    /// What it means that something at `address` could not be accessed that the device cannot do without.
    #[must_use]
    pub fn of(denied: Denied, address: Iova) -> Self {
        match denied {
            Denied::Gone => Self::Gone,
            Denied::Fault => Self::Mistake(Mistake::Memory(address)),
        }
    }
}
