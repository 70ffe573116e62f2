//! Devices of the host that the guest gets: found, opened, and made into functions of the machine.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`sysfs`] | finds a device's file, or says why there is none |
//! | [`doors`] | opens files |
//! | [`refusal`] | makes a complaint of what the host refuses |
//! | [`open`] | takes devices in, by the best way that the host has |
//! | [`connect`] | puts functions into the machine, behind their units |
//! | [`served`] | what the event loop does for them: page requests, interrupts on the long way, notices |

pub(crate) mod connect;
pub(crate) mod doors;
pub(crate) mod open;
pub(crate) mod refusal;
pub(crate) mod served;
pub(crate) mod sysfs;
