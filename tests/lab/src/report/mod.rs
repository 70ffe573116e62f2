//! What guest programs print about their tests, read back.

pub mod figures;
pub mod levels;
pub mod tap;
pub mod timeline;

pub use levels::Levels;
pub use tap::{Case, Report};
pub use timeline::Timeline;
