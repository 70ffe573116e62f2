//! Devices of the host that the guest gets: found, opened, and made into functions of the machine.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`sysfs`] | finds a device's file, or says why there is none |
//! | [`open`] | opens devices and binds them to the host's iommufd; failures become complaints |
//! | [`connect`] | puts functions into the machine, behind their units |
//! | [`served`] | what the event loop does for them: page requests, interrupts on the long way, notices |

pub(crate) mod connect;
pub(crate) mod open;
pub(crate) mod served;
pub(crate) mod sysfs;
