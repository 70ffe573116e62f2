//! The subcommands. Each returns whether what it ran was found well.

pub mod demo;
pub mod doctor;
pub mod kernel;
pub mod matrix;
pub mod shell;
pub mod soak;
pub mod test;
pub mod vfio_selftests;
