//! What guest programs print about their tests, read back.

pub mod tap;
pub mod timeline;

pub use tap::{Case, Report};
pub use timeline::Timeline;
