//! What iommufd allows and refuses, as sequences of calls with their outcomes.
//!
//! One table ([`rows()`]) is run against the kernel in memory, by a unit test, and against the mock devices of Linux
//! (`CONFIG_IOMMUFD_TEST`), by a program in a guest. So what is believed of the kernel here is what the kernel does.
//! Where the driver of VT-d and that of mock devices must differ, the line says how and why.

mod player;
mod rows;

use rustix::io::Errno;

use crate::kernel::{DeviceFile, Kernel, ObjectId};
use crate::memory::HostRange;
use iommu_core::Permissions;

pub use player::play;
pub use rows::rows;

/// What a line calls an object. [`NOTHING`] is none.
pub type Name = &'static str;

/// The name of an object that never was.
pub const NOTHING: Name = "nothing";

/// Where sequences run; a new one for each.
pub trait Place {
    /// `/dev/iommu`, without any object.
    fn kernel(&self) -> &dyn Kernel;

    /// A device that is not bound, with 20-bit PASIDs or without any.
    ///
    /// # Errors
    /// There is none.
    fn device(&self, pasids: bool) -> crate::kernel::Result<Box<dyn DeviceFile>>;

    /// The device asks for a page, in a group of one. Devices are named by the order in which [`Self::device`] gave
    /// them and by their object.
    ///
    /// # Errors
    /// There is no such device.
    fn request(&self, device: (usize, ObjectId), pasid: Option<u32>, group: u32)
    -> crate::kernel::Result<()>;

    /// The next attachment is to fail after all checks, in the driver, with `ENOMEM`; it will be that of
    /// [`FAILING`].
    fn fail_attachment(&self);

    /// Memory to be mapped: [`PAGES`] pages.
    fn memory(&self) -> HostRange;

    /// What the driver takes.
    fn dialect(&self) -> Dialect;
}

/// Pages of memory that a place has to have.
pub const PAGES: u64 = 16;

/// The PASID whose second attachment mock devices can be made to refuse.
pub const FAILING: u32 = 1024;

/// What a driver takes as a guest's page table and as an invalidation.
#[derive(Clone, Debug)]
pub struct Dialect {
    /// Which of two outcomes holds.
    pub driver: Driver,
    /// Type number and bytes of a guest's table.
    pub table: (u32, Vec<u8>),
    /// Type number of invalidations.
    pub invalidation: u32,
    /// Invalidates everything.
    pub everything: Vec<u8>,
    /// Has a flag that nobody knows.
    pub unknown_flag: Vec<u8>,
    /// Is malformed.
    pub malformed: Vec<u8>,
}

/// Whose driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// That of VT-d.
    Vtd,
    /// That of mock devices.
    Mock,
}

/// A call.
#[derive(Clone, Debug)]
pub enum Step {
    /// Makes an address space.
    Ioas(Name),
    /// Maps pages: where, in pages, how many, with which permissions.
    Map(Name, u64, u64, Permissions),
    /// Unmaps pages.
    Unmap(Name, u64, u64),
    /// Unmaps everything.
    UnmapAll(Name),
    /// Copies pages: from, which, how many; to, where, with which permissions.
    Copy((Name, u64, u64), (Name, u64), Permissions),
    /// Number of ranges that can be mapped.
    Ranges(Name),
    /// Opens and binds a device, with PASIDs or without.
    Device(Name, bool),
    /// Closes a device.
    Close(Name),
    /// Width of its PASIDs.
    Info(Name),
    /// Makes a page table.
    Table(Name, Table),
    /// Attaches a device, by PASID or without.
    Attach(Name, Option<u32>, Name),
    /// Detaches it.
    Detach(Name, Option<u32>),
    /// The driver will refuse the next attachment.
    Provoke,
    /// Invalidates.
    Invalidate(Name, Array),
    /// Makes a fault queue.
    Queue(Name),
    /// Closes its file.
    CloseQueue(Name),
    /// A device asks for a page: device, PASID, group index.
    Request(Name, Option<u32>, u32),
    /// Reads into room for so many records. [`Outcome::Groups`]
    Read(Name, usize),
    /// Reads so many bytes.
    ReadBytes(Name, usize),
    /// Writes answers.
    Respond(Name, Vec<Response>),
    /// Writes so many bytes.
    WriteBytes(Name, usize),
    /// Destroys an object.
    Destroy(Name),
}

/// A page table to be made.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// For which device.
    pub device: Name,
    /// On what.
    pub parent: Name,
    /// May be a parent.
    pub nest_parent: bool,
    /// May be attached by PASID.
    pub pasid: bool,
    /// Where faults go.
    pub queue: Option<Name>,
    /// What it is described by.
    pub data: Data,
}

/// What describes a guest's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// Nothing.
    None,
    /// What the driver takes.
    Good,
    /// A type that it does not know.
    UnknownType,
    /// The right type with too few bytes.
    Short,
    /// The right type with none.
    Empty,
    /// Bytes of no type.
    Untyped,
}

/// An array of invalidations.
#[derive(Clone, Debug)]
pub enum Array {
    /// These, in order.
    Of(Vec<Entry>),
    /// One, of a type that the driver does not know.
    UnknownType,
    /// One, of half its length.
    Short,
}

/// One invalidation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Of everything.
    Good,
    /// With an unknown flag.
    UnknownFlag,
    /// Malformed.
    Malformed,
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response {
    /// To this cookie: translate again.
    Success(u32),
    /// To this cookie: give up.
    Invalid(u32),
    /// To this cookie, with a code that is the kernel's own.
    Failure(u32),
}

/// What a call comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done.
    Done,
    /// Done, with this number: of bytes, of ranges, of bits.
    Count(usize),
    /// Group index and cookie of what was read.
    Groups(Vec<(u32, u32)>),
    /// Refused.
    Refused(Errno),
    /// So many were done, and the next was refused.
    Stopped(usize, Errno),
}

/// What a call is to come to.
#[derive(Clone, Debug)]
pub enum Expected {
    /// Whatever the driver.
    Same(Outcome),
    /// As the driver is.
    Differs {
        /// With VT-d.
        vtd: Outcome,
        /// With mock devices.
        mock: Outcome,
        /// Why.
        why: &'static str,
    },
}

/// A call and what it is to come to.
#[derive(Clone, Debug)]
pub struct Line {
    /// The call.
    pub step: Step,
    /// What it is to come to.
    pub expected: Expected,
}

/// A sequence.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its one name.
    pub name: Name,
    /// In order.
    pub lines: Vec<Line>,
}
