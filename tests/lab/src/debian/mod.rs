//! Packages of Debian: those of the host, and those of other suites.

pub mod apt;
pub mod host;

pub use apt::PrivateApt;
