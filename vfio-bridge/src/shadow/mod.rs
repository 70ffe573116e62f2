//! Hosts that cannot nest: a guest's second-stage tables are copied into tables of the host's.
//!
//! ```text
//! guest's context entry ─► set_domain ─────► an address space, filled with what the guest maps ─► attach
//! guest's invalidations ─► invalidate, sync ► the guest's mappings in the range, against the copy ─► unmap, map
//! ```
//!
//! The guest has to say when it adds a mapping, not only when it takes one away (caching mode). Guests say so of
//! second stages; of first stages no guest does, so none is offered, and with it neither PASIDs nor page requests.
//!
//! # What is mapped
//!
//! One area for each of the guest's mappings, a leaf of its tables. Areas are never merged, although that would save
//! system calls: the host takes an area back only whole, so a device that uses one half of it would be refused
//! for a moment while the guest takes back the other.
//!
//! What is not memory is left out, and so are the addresses of interrupt messages. A device that uses them anyway is
//! refused by the host.
//!
//! # When something fails
//!
//! The devices of the domain are detached and the copy is thrown away; there is no copy that is almost right. The
//! next binding begins with an empty one.

mod areas;
mod backend;
mod domains;
mod iommufd;
mod plan;
mod spaces;

pub use areas::Area;
pub use backend::Shadow;
pub(crate) use iommufd::width;
pub use iommufd::{IommufdSpaces, ShadowIommu};
pub use plan::MAPPINGS_LIMIT;
pub use spaces::AddressSpaces;
