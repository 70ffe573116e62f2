//! Hosts without iommufd: a guest's second-stage tables are copied into legacy VFIO containers.
//!
//! A container is one address space, and the group in it uses it at all times. So each device has a container of its
//! own, is blocked by emptying it, and has all of it mapped anew when its domain changes; two devices in one domain of
//! the guest's cost twice the system calls, and guest memory is charged against the limit of locked memory once for
//! each container that maps it. For all else see [`crate::shadow`].

mod spaces;

pub use spaces::{ContainerIommu, Containers};
