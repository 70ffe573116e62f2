//! The disk (§5.2): read, write, flush, discard, get-id; one queue.
//!
//! A request is served in phases: its header is read in one session; data moves in pieces of
//! [`lane::MOST_BYTES`](super::lane::MOST_BYTES), each through a buffer of the device's own, so that no session waits
//! for the disk; the status is written in a last session. Requests run one after the other. So a write that was under
//! way when the driver reset the device lands before anything that the driver asks for afterwards.
//!
//! | request | fails with IOERR | fails with UNSUPP |
//! | --- | --- | --- |
//! | all | header or data cannot be accessed | unknown type |
//! | read, write | beyond the end; not whole sectors; the disk says so; write to a read-only disk | |
//! | flush | the disk says so | |
//! | discard | beyond the end; not whole segments; a read-only disk | a segment's flags are not zero |
//!
//! A status that cannot be written, or a chain without room for one, is a mistake that the device gives up after.
//! Without FLUSH each write is made durable before it is answered (§5.2.6.2).

mod disk;
mod request;
mod service;
pub mod spec;

pub use disk::{Disk, FileDisk, MemoryDisk};
pub use request::Status;
pub use service::Blk;
