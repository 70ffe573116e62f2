//! Fault queues: what devices ask for, cookies, and the kernel's own answers.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::{Answer, Call, FakeKernel, Group, Object, Queue, World};
use crate::kernel::{FaultFile, Result};
use crate::sys::uapi::{FaultRecord, FaultResponse};

impl Queue {
    /// Readable while something is unread.
    fn signal(&self) {
        let mut counter = [0; 8];
        let done = if self.unread.is_empty() {
            rustix::io::read(&self.event, &mut counter)
        } else {
            rustix::io::write(&self.event, &1_u64.to_ne_bytes())
        };
        // Not readable already: nothing to do.
        assert!(matches!(done, Ok(8) | Err(Errno::AGAIN)), "eventfd");
    }
}

impl World {
    fn answer(&mut self, group: &Group, answer: Answer) {
        self.audit.groups[group.number].push(answer);
    }

    /// The kernel answers everything in a queue that `of` picks.
    fn answer_where(&mut self, id: u32, of: impl Fn(&Group) -> bool) {
        let Some(queue) = self.queue(id) else { return };
        let mut gone: Vec<_> = queue.unread.iter().filter(|g| of(g)).cloned().collect();
        queue.unread.retain(|g| !of(g));
        gone.extend(queue.read.values().filter(|g| of(g)).cloned());
        queue.read.retain(|_, g| !of(g));
        queue.signal();
        for group in gone {
            self.answer(&group, Answer::Kernel);
        }
    }

    pub(super) fn answer_all(&mut self, id: u32) {
        self.answer_where(id, |_| true);
    }

    /// The kernel answers what came through an attachment to a page table.
    pub(super) fn answer_attachment(&mut self, table: u32, device: usize, pasid: Option<u32>) {
        if let Some(queue) = self.objects.get(&table).and_then(Object::faults) {
            self.answer_where(queue, |group| group.device == device && group.pasid == pasid);
        }
    }
}

impl FakeKernel {
    /// A device asks for pages; the last address ends the group. Returns the group's number, under which
    /// [`Audit::groups`](super::Audit::groups) has the answers to it.
    pub fn request_pages(&self, device: usize, pasid: Option<u32>, grpid: u32, addresses: &[u64]) -> usize {
        let mut world = self.world();
        let number = world.audit.groups.len();
        world.audit.groups.push(Vec::new());
        let state = &world.devices[device];
        let record = |address: &u64| FaultRecord {
            flags: if pasid.is_some() { FaultRecord::PASID_VALID } else { 0 },
            dev_id: state.id.unwrap_or(0),
            pasid: pasid.unwrap_or(0),
            grpid,
            perm: FaultRecord::READ | FaultRecord::WRITE,
            addr: address & !0xfff,
            ..FaultRecord::default()
        };
        let mut records: Vec<_> = addresses.iter().map(record).collect();
        if let Some(last) = records.last_mut() {
            last.flags |= FaultRecord::LAST_PAGE;
        }
        // To the kernel, PASID 0 is requests without PASID.
        let pasid = pasid.filter(|pasid| *pasid != 0);
        // By the kernel's books, and only if the hardware walks a table at all.
        let table = state.books.get(&pasid).filter(|_| state.hardware.contains_key(&pasid));
        let queue = table.and_then(|table| world.objects.get(table)?.faults()).unwrap_or(0);
        let group = Group { number, device, pasid, records };
        match world.queue(queue) {
            Some(queue) => {
                queue.unread.push_back(group);
                queue.signal();
            }
            None => world.answer(&group, Answer::Kernel),
        }
        number
    }
}

/// The open file.
pub(super) struct FakeFaults {
    kernel: FakeKernel,
    id: u32,
    event: OwnedFd,
}

impl FakeFaults {
    pub(super) fn new(kernel: FakeKernel, id: u32, event: OwnedFd) -> Self {
        Self { kernel, id, event }
    }
}

impl AsFd for FakeFaults {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl FaultFile for FakeFaults {
    fn read(&self, buffer: &mut [u8]) -> Result<usize> {
        let mut world = self.kernel.world();
        world.enter(Call::FaultRead).map_err(|f| f.errno)?;
        if !buffer.len().is_multiple_of(FaultRecord::BYTES) {
            return Err(Errno::SPIPE);
        }
        let queue = world.queue(self.id).ok_or(Errno::BADF)?;
        let mut len = 0;
        while let Some(group) = queue.unread.front() {
            let bytes = group.records.len() * FaultRecord::BYTES;
            let Some(room) = buffer.get_mut(len..len + bytes) else {
                if len == 0 {
                    return Err(Errno::INVAL);
                }
                break;
            };
            // The lowest number that is free: numbers come back as soon as they can.
            let cookie = (queue.lowest..).find(|c| !queue.read.contains_key(c)).ok_or(Errno::BUSY)?;
            let records = group.records.iter().map(|record| FaultRecord { cookie, ..*record });
            for (place, record) in room.chunks_mut(FaultRecord::BYTES).zip(records) {
                place.copy_from_slice(record.as_bytes());
            }
            len += bytes;
            if let Some(group) = queue.unread.pop_front() {
                queue.read.insert(cookie, group);
            }
        }
        queue.signal();
        Ok(len)
    }

    fn write(&self, responses: &[u8]) -> Result<usize> {
        let mut world = self.kernel.world();
        world.enter(Call::FaultWrite).map_err(|f| f.errno)?;
        if !responses.len().is_multiple_of(FaultResponse::BYTES) {
            return Err(Errno::SPIPE);
        }
        let mut done = 0;
        for bytes in responses.chunks(FaultResponse::BYTES) {
            let response = FaultResponse::read_from_bytes(bytes).map_err(|_| Errno::FAULT)?;
            let known = response.code <= FaultResponse::INVALID;
            let queue = world.queue(self.id).ok_or(Errno::BADF)?;
            if known && response.cookie == 0 {
                // Linux lets go of number 0 then, which it had set aside.
                queue.lowest = 0;
            }
            let group = if known { queue.read.remove(&response.cookie) } else { None };
            match group {
                Some(group) => world.answer(&group, Answer::Written(response.code)),
                None => {
                    world.audit.stale_responses += 1;
                    return if done == 0 { Err(Errno::INVAL) } else { Ok(done) };
                }
            }
            done += bytes.len();
        }
        Ok(done)
    }
}

impl Drop for FakeFaults {
    fn drop(&mut self) {
        if let Some(queue) = self.kernel.world().queue(self.id) {
            queue.open = false;
        }
    }
}
