//! The host's recoverable faults on their way to the guest, and the guest's answers on their way back.
//!
//! A group of faults has a *cookie* from the moment it is read until it is answered: by us, or by the kernel when
//! what the group came through is detached. Then the number may be given to another group. So an answer is written,
//! and cookies are forgotten, under one lock (`Cookies` lies behind it), and nothing is read between a
//! detachment and the forgetting (the backend's delivery lock).

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use iommu_core::{GroupIndex, HostError, Iova, PageRequest, Pasid, ResponseCode, SourceId, VendorData};
use rustix::io::Errno;
use zerocopy::{FromBytes as _, IntoBytes as _};

use crate::kernel::{FaultFile, ObjectId};
use crate::object::{Kind, Object, Objects, refused};
use crate::sys::uapi::{FaultRecord, FaultResponse};

/// A fault queue and its open file. The file is closed first; the kernel wants it so.
pub struct FaultQueue {
    file: Box<dyn FaultFile>,
    object: Object,
}

impl FaultQueue {
    pub(crate) fn new(objects: &Arc<Objects>) -> Result<Self, Errno> {
        let (id, file) = objects.kernel().fault_queue_alloc()?;
        Ok(Self { file, object: objects.own(Kind::FaultQueue, id) })
    }

    pub(crate) fn id(&self) -> ObjectId {
        self.object.id()
    }
}

impl AsFd for FaultQueue {
    /// For `poll`: readable while there are groups. It can always be written; do not wait for that.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Where groups are read into. A well-behaved one has 2048 members at most, the most that a device may have
/// outstanding; one that does not fit makes it grow.
pub(crate) struct ReadBuffer(Vec<u8>);

/// Members that fit before any growth.
const MEMBERS: usize = 2048;
/// The kernel holds leftovers of a group index together with the next group of the same, so there is no bound;
/// this is two hundred times what hardware allows.
const MEMBERS_LIMIT: usize = 1 << 19;

impl Default for ReadBuffer {
    fn default() -> Self {
        Self(vec![0; MEMBERS * FaultRecord::BYTES])
    }
}

impl ReadBuffer {
    /// Reads as many whole groups as fit. None: there are none.
    pub(crate) fn read(
        &mut self,
        queue: &FaultQueue,
    ) -> Result<impl Iterator<Item = FaultRecord>, HostError> {
        let len = loop {
            match queue.file.read(&mut self.0) {
                Ok(len) => break len,
                Err(Errno::INVAL) if self.0.len() < MEMBERS_LIMIT * FaultRecord::BYTES => {
                    self.0.resize(self.0.len() * 2, 0);
                }
                Err(errno) => return Err(refused("read", &queue.object, errno)),
            }
        };
        let records = self.0[..len.min(self.0.len())].chunks_exact(FaultRecord::BYTES);
        Ok(records.filter_map(|bytes| FaultRecord::read_from_bytes(bytes).ok()))
    }
}

/// A record in neutral words. The vendor's room stays empty: what the guest gives back is not believed anyway.
pub(crate) fn page_request(record: &FaultRecord, source: SourceId) -> PageRequest {
    let wants = |permission| record.perm & permission != 0;
    let pasid = record.flags & FaultRecord::PASID_VALID != 0;
    PageRequest {
        source,
        pasid: pasid.then(|| Pasid::truncate(record.pasid)),
        address: Iova(record.addr),
        read: wants(FaultRecord::READ),
        write: wants(FaultRecord::WRITE),
        execute: wants(FaultRecord::EXEC),
        privileged: wants(FaultRecord::PRIV),
        last: record.flags & FaultRecord::LAST_PAGE != 0,
        // Nine bits; what is cut off would have to be 0.
        group: GroupIndex::truncate((record.grpid & 0x1ff).try_into().unwrap_or(0)),
        vendor: VendorData::NONE,
    }
}

/// How a guest names a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct GroupName {
    pub(crate) source: SourceId,
    pub(crate) pasid: Option<Pasid>,
    pub(crate) group: GroupIndex,
}

impl GroupName {
    pub(crate) fn of(request: &PageRequest) -> Self {
        Self { source: request.source, pasid: request.pasid, group: request.group }
    }
}

/// Groups that wait for an answer.
#[derive(Default)]
pub(crate) struct Cookies {
    waiting: HashMap<GroupName, u32>,
    /// Answered, but the kernel could not take it. Without name: of a device that is not known.
    unsent: Vec<(Option<GroupName>, FaultResponse)>,
}

impl Cookies {
    /// A group was read. A device that uses a name again has forgotten its earlier group, so that one is given up.
    pub(crate) fn expect(&mut self, queue: &FaultQueue, name: GroupName, cookie: u32) {
        if let Some(earlier) = self.waiting.insert(name, cookie) {
            self.send_or_keep(queue, name, FaultResponse { cookie: earlier, code: FaultResponse::INVALID });
        }
    }

    /// Answers a group, and what could not be sent before. A name that nobody waits for is ignored.
    ///
    /// # Errors
    /// The kernel could not take an answer; it is kept.
    pub(crate) fn answer(
        &mut self,
        queue: &FaultQueue,
        name: GroupName,
        code: ResponseCode,
    ) -> Result<(), HostError> {
        // The kernel keeps "failure" for itself.
        let code =
            if code == ResponseCode::Success { FaultResponse::SUCCESS } else { FaultResponse::INVALID };
        if let Some(cookie) = self.waiting.remove(&name) {
            self.unsent.push((Some(name), FaultResponse { cookie, code }));
        }
        self.send_kept(queue)
    }

    /// Answers a record of no device that is known.
    ///
    /// # Errors
    /// As [`Self::answer`].
    pub(crate) fn refuse(&mut self, queue: &FaultQueue, record: &FaultRecord) -> Result<(), HostError> {
        if record.flags & FaultRecord::LAST_PAGE == 0 {
            return Ok(());
        }
        self.unsent.push((None, FaultResponse { cookie: record.cookie, code: FaultResponse::INVALID }));
        self.send_kept(queue)
    }

    /// Gives up every group of a device that is waiting.
    pub(crate) fn give_up(&mut self, queue: &FaultQueue, source: SourceId) -> Result<(), HostError> {
        let unsent = &mut self.unsent;
        self.waiting.retain(|name, cookie| {
            let keep = name.source != source;
            if !keep {
                let response = FaultResponse { cookie: *cookie, code: FaultResponse::INVALID };
                unsent.push((Some(*name), response));
            }
            keep
        });
        self.send_kept(queue)
    }

    /// The kernel has answered every group that came through this attachment.
    pub(crate) fn forget(&mut self, source: SourceId, pasid: Option<Pasid>) {
        // To the host, PASID 0 is requests without PASID.
        let attachment = |name: &GroupName| name.pasid.filter(|pasid| *pasid != Pasid::ZERO);
        let other = |name: &GroupName| name.source != source || attachment(name) != pasid;
        self.waiting.retain(|name, _| other(name));
        self.unsent.retain(|(name, _)| name.as_ref().is_none_or(other));
    }

    /// Offers answers that could not be sent.
    pub(crate) fn send_kept(&mut self, queue: &FaultQueue) -> Result<(), HostError> {
        while let Some((_, response)) = self.unsent.last() {
            send(queue, response)?;
            self.unsent.pop();
        }
        Ok(())
    }

    fn send_or_keep(&mut self, queue: &FaultQueue, name: GroupName, response: FaultResponse) {
        if let Err(error) = send(queue, &response) {
            log::debug!("{error}");
            self.unsent.push((Some(name), response));
        }
    }
}

fn send(queue: &FaultQueue, response: &FaultResponse) -> Result<(), HostError> {
    match queue.file.write(response.as_bytes()) {
        Ok(FaultResponse::BYTES) => Ok(()),
        // The kernel has answered it: its attachment went, or is going at this moment.
        Err(Errno::INVAL) => Ok(()),
        Ok(_) => Err(refused("answer a page request", &queue.object, Errno::IO)),
        Err(errno) => Err(refused("answer a page request", &queue.object, errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::{Call, Failure, FakeKernel};

    /// A kernel that reports for a device that went is answered all the same, if not at once.
    #[test]
    fn what_no_known_device_asked_is_answered() {
        let kernel = FakeKernel::new();
        let queue = FaultQueue::new(&Objects::new(Arc::new(kernel.clone()))).unwrap();
        let mut cookies = Cookies::default();
        let record = FaultRecord { cookie: 3, ..FaultRecord::default() };
        cookies.refuse(&queue, &record).unwrap();
        assert_eq!(kernel.count(Call::FaultWrite), 0, "not the last of its group");
        kernel.fail(Failure::next(Call::FaultWrite, Errno::NOMEM));
        let last = FaultRecord { flags: FaultRecord::LAST_PAGE, ..record };
        cookies.refuse(&queue, &last).unwrap_err();
        // Not a known attachment's: it is nobody's to forget.
        cookies.forget(SourceId(8), None);
        cookies.send_kept(&queue).unwrap();
        cookies.send_kept(&queue).unwrap();
        assert_eq!(kernel.count(Call::FaultWrite), 2, "refused once, and taken once");
    }

    /// (name, the kernel's record, what the guest is told: PASID, group, read, write, execute, privileged, last).
    #[test]
    fn records_become_page_requests() {
        const PASID: u32 = FaultRecord::PASID_VALID;
        let of =
            |flags, pasid, grpid, perm| FaultRecord { flags, pasid, grpid, perm, ..FaultRecord::default() };
        let rows = [
            ("read", of(PASID, 5, 1, FaultRecord::READ), (Some(5), 1, [true, false, false, false, false])),
            ("write", of(PASID, 5, 1, FaultRecord::WRITE), (Some(5), 1, [false, true, false, false, false])),
            ("execute", of(PASID, 5, 1, FaultRecord::EXEC), (Some(5), 1, [false, false, true, false, false])),
            (
                "privileged",
                of(PASID, 5, 1, FaultRecord::PRIV),
                (Some(5), 1, [false, false, false, true, false]),
            ),
            (
                "last",
                of(PASID | FaultRecord::LAST_PAGE, 5, 1, 0),
                (Some(5), 1, [false, false, false, false, true]),
            ),
            ("a PASID that is not valid", of(0, 5, 1, 0), (None, 1, [false; 5])),
            ("the widest", of(PASID, 0xf_ffff, 0x1ff, 0), (Some(0xf_ffff), 0x1ff, [false; 5])),
            ("bits that no group index has", of(PASID, 1, 0xffff_fe01, 0), (Some(1), 1, [false; 5])),
        ];
        for (name, record, (pasid, group, wants)) in rows {
            let request = page_request(&FaultRecord { addr: 0x7000, ..record }, SourceId(8));
            let PageRequest { read, write, execute, privileged, last, .. } = request;
            assert_eq!([read, write, execute, privileged, last], wants, "{name}");
            assert_eq!((request.pasid.map(Pasid::get), request.group.get()), (pasid, group), "{name}");
            assert_eq!((request.source, request.address), (SourceId(8), Iova(0x7000)), "{name}");
        }
    }
}
