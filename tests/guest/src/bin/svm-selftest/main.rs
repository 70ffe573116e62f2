//! Shared-virtual-memory selftest.
fn main() {}
