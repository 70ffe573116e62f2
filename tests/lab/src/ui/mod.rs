//! What the user sees: progress of long work, and tables.

pub mod progress;
pub mod table;

pub use progress::Progress;
pub use table::Table;
