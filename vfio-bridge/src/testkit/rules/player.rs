//! Runs a sequence.

use std::collections::HashMap;

use iommu_core::IovaRange;
use rustix::io::Errno;
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::{Array, Data, Entry, Expected, NOTHING, Name, Outcome, Place, Response, Row, Step, Table};
use crate::kernel::{DeviceFile, Entries, FaultFile, HwptAlloc, IoasCopy, ObjectId, Payload, Result};
use crate::sys::uapi::{FaultRecord, FaultResponse};

/// An object's number that no kernel has given.
const NEVER: ObjectId = ObjectId(0x7fff_0000);
/// A type of tables and of invalidations that no driver has.
const UNKNOWN: u32 = 0xdad_beef;

/// Runs a sequence at a place of its own.
///
/// # Errors
/// The first line that came to something else.
pub fn play(row: &Row, place: &dyn Place) -> std::result::Result<(), String> {
    let mut player = Player { place, objects: HashMap::new(), devices: Vec::new(), queues: HashMap::new() };
    for (number, line) in row.lines.iter().enumerate() {
        let expected = match &line.expected {
            Expected::Same(outcome) => outcome,
            Expected::Differs { vtd, mock, .. } => match place.dialect().driver {
                super::Driver::Vtd => vtd,
                super::Driver::Mock => mock,
            },
        };
        let outcome = player.step(&line.step).unwrap_or_else(Outcome::Refused);
        if outcome != *expected {
            let (name, step) = (row.name, &line.step);
            return Err(format!("{name}, line {}: {step:?}: {outcome:?}, not {expected:?}", number + 1));
        }
    }
    Ok(())
}

/// Devices are closed before queues.
struct Player<'a> {
    place: &'a dyn Place,
    objects: HashMap<Name, ObjectId>,
    devices: Vec<(Name, Option<Box<dyn DeviceFile>>)>,
    queues: HashMap<Name, Box<dyn FaultFile>>,
}

/// Pages as addresses. Mock devices reach from 16 MiB on.
fn pages(first: u64, count: u64) -> Result<IovaRange> {
    const BASE: u64 = 1 << 24;
    let start = BASE + (first << 12);
    IovaRange::new(start, start + (count << 12) - 1).ok_or(Errno::INVAL)
}

impl Player<'_> {
    fn id(&self, name: Name) -> ObjectId {
        if name == NOTHING { NEVER } else { self.objects.get(name).copied().unwrap_or(NEVER) }
    }

    fn made(&mut self, name: Name, id: ObjectId) -> Outcome {
        self.objects.insert(name, id);
        Outcome::Done
    }

    fn step(&mut self, step: &Step) -> Result<Outcome> {
        let kernel = self.place.kernel();
        match step {
            Step::Ioas(name) => kernel.ioas_alloc().map(|id| self.made(name, id)),
            Step::Ranges(name) => {
                kernel.ioas_iova_ranges(self.id(name)).map(|ranges| Outcome::Count(ranges.len()))
            }
            Step::UnmapAll(name) => kernel.ioas_unmap(self.id(name), IovaRange::ALL).map(done),
            Step::Unmap(name, first, count) => {
                kernel.ioas_unmap(self.id(name), pages(*first, *count)?).map(done)
            }
            Step::Map(..) | Step::Copy(..) => self.map(step),
            Step::Device(..) | Step::Close(_) | Step::Attach(..) | Step::Detach(..) => self.device_step(step),
            Step::Info(name) => {
                let info = kernel.hw_info(self.id(name))?;
                Ok(Outcome::Count(info.max_pasid_log2.into()))
            }
            Step::Table(name, table) => self.table(table).map(|id| self.made(name, id)),
            Step::Provoke => {
                self.place.fail_attachment();
                Ok(Outcome::Done)
            }
            Step::Invalidate(name, array) => Ok(self.invalidate(name, array)),
            Step::Destroy(name) => kernel.destroy(self.id(name)).map(done),
            _ => self.queue_step(step),
        }
    }

    fn map(&self, step: &Step) -> Result<Outcome> {
        let kernel = self.place.kernel();
        match step {
            Step::Map(name, first, count, permissions) => {
                let there = pages(*first, *count)?;
                let memory = self.place.memory();
                let part = IovaRange::new(memory.guest().start(), memory.guest().start() + (count << 12) - 1);
                let memory = part.and_then(|part| memory.part(&part)).ok_or(Errno::FAULT)?;
                kernel.ioas_map(self.id(name), there.start(), &memory, *permissions).map(done)
            }
            Step::Copy((from, first, count), (to, at), permissions) => {
                let (from, to) = (self.id(from), self.id(to));
                let (range, iova) = (pages(*first, *count)?, pages(*at, 1)?.start());
                let copy = IoasCopy { from, range, to, iova, permissions: *permissions };
                kernel.ioas_copy(&copy).map(done)
            }
            _ => Err(Errno::NOSYS),
        }
    }

    fn file(&self, name: Name) -> Result<&dyn DeviceFile> {
        let found = self.devices.iter().find(|(known, _)| *known == name);
        found.and_then(|(_, file)| file.as_deref()).ok_or(Errno::NODEV)
    }

    fn device_step(&mut self, step: &Step) -> Result<Outcome> {
        match step {
            Step::Device(name, pasids) => {
                let file = self.place.device(*pasids)?;
                let id = file.bind()?;
                self.devices.push((name, Some(file)));
                Ok(self.made(name, id))
            }
            Step::Close(name) => {
                let found = self.devices.iter_mut().find(|(known, _)| known == name);
                drop(found.and_then(|(_, file)| file.take()).ok_or(Errno::NODEV)?);
                Ok(Outcome::Done)
            }
            Step::Attach(name, pasid, table) => self.file(name)?.attach(*pasid, self.id(table)).map(done),
            Step::Detach(name, pasid) => self.file(name)?.detach(*pasid).map(done),
            _ => Err(Errno::NOSYS),
        }
    }

    fn table(&self, table: &Table) -> Result<ObjectId> {
        let (kind, bytes) = self.place.dialect().table;
        let half = &bytes[..bytes.len() / 4];
        let data = match table.data {
            Data::None => None,
            Data::Good => Some((kind, &bytes[..])),
            Data::UnknownType => Some((UNKNOWN, &bytes[..])),
            Data::Short => Some((kind, half)),
            Data::Empty => Some((kind, &[][..])),
            Data::Untyped => Some((0, &bytes[..])),
        };
        self.place.kernel().hwpt_alloc(&HwptAlloc {
            device: self.id(table.device),
            parent: self.id(table.parent),
            nest_parent: table.nest_parent,
            pasid: table.pasid,
            fault_queue: table.queue.map(|name| self.id(name)),
            data: data.map(|(kind, bytes)| Payload { kind, bytes }),
        })
    }

    fn invalidate(&self, name: Name, array: &Array) -> Outcome {
        let dialect = self.place.dialect();
        let entry = |entry: &Entry| match entry {
            Entry::Good => &dialect.everything[..],
            Entry::UnknownFlag => &dialect.unknown_flag[..],
            Entry::Malformed => &dialect.malformed[..],
        };
        let entry_len = dialect.everything.len();
        let (kind, entry_len, bytes) = match array {
            Array::Of(entries) => {
                (dialect.invalidation, entry_len, entries.iter().flat_map(entry).copied().collect())
            }
            Array::UnknownType => (UNKNOWN, entry_len, dialect.everything.clone()),
            Array::Short => {
                (dialect.invalidation, entry_len / 2, dialect.everything[..entry_len / 2].to_vec())
            }
        };
        let entries = Entries { kind, entry_len, bytes: &bytes };
        match self.place.kernel().hwpt_invalidate(self.id(name), &entries) {
            Ok(()) => Outcome::Done,
            Err(partial) => Outcome::Stopped(partial.done, partial.errno),
        }
    }

    fn queue_step(&mut self, step: &Step) -> Result<Outcome> {
        let file = |name: &Name| self.queues.get(name).ok_or(Errno::BADF);
        match step {
            Step::Queue(name) => {
                let (id, file) = self.place.kernel().fault_queue_alloc()?;
                self.queues.insert(name, file);
                Ok(self.made(name, id))
            }
            Step::CloseQueue(name) => {
                drop(self.queues.remove(name).ok_or(Errno::BADF)?);
                Ok(Outcome::Done)
            }
            Step::Request(name, pasid, group) => {
                let number = self.devices.iter().position(|(known, _)| known == name).ok_or(Errno::NODEV)?;
                self.place.request((number, self.id(name)), *pasid, *group).map(done)
            }
            Step::Read(name, records) => read(&**file(name)?, *records),
            Step::ReadBytes(name, bytes) => file(name)?.read(&mut vec![0; *bytes]).map(Outcome::Count),
            Step::Respond(name, responses) => {
                let bytes: Vec<_> = responses.iter().flat_map(encode).collect();
                file(name)?.write(&bytes).map(Outcome::Count)
            }
            Step::WriteBytes(name, bytes) => file(name)?.write(&vec![0; *bytes]).map(Outcome::Count),
            _ => Err(Errno::NOSYS),
        }
    }
}

/// For calls that return nothing.
fn done((): ()) -> Outcome {
    Outcome::Done
}

fn encode(response: &Response) -> Vec<u8> {
    let (cookie, code) = match *response {
        Response::Success(cookie) => (cookie, FaultResponse::SUCCESS),
        Response::Invalid(cookie) => (cookie, FaultResponse::INVALID),
        Response::Failure(cookie) => (cookie, FaultResponse::INVALID + 1),
    };
    FaultResponse { cookie, code }.as_bytes().to_vec()
}

fn read(file: &dyn FaultFile, records: usize) -> Result<Outcome> {
    let mut buffer = vec![0; records * FaultRecord::BYTES];
    let len = file.read(&mut buffer)?;
    let records = buffer[..len].chunks_exact(FaultRecord::BYTES);
    let records = records.filter_map(|bytes| FaultRecord::read_from_bytes(bytes).ok());
    Ok(Outcome::Groups(records.map(|record| (record.grpid, record.cookie)).collect()))
}
