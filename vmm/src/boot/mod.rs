//! Getting a Linux kernel to its first instruction: loading ([`linux`]), what it is told ([`params`]), and the
//! CPU's identity ([`cpuid`]) and state ([`regs`]) at that moment.

pub(crate) mod cpuid;
pub(crate) mod linux;
pub(crate) mod params;
pub(crate) mod regs;
