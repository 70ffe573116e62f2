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
    /// Answered, but the kernel could not take it.
    unsent: Vec<(GroupName, FaultResponse)>,
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
            self.unsent.push((name, FaultResponse { cookie, code }));
        }
        self.send_kept(queue)
    }

    /// Answers a record of no device that is known.
    pub(crate) fn refuse(queue: &FaultQueue, record: &FaultRecord) -> Result<(), HostError> {
        if record.flags & FaultRecord::LAST_PAGE == 0 {
            return Ok(());
        }
        send(queue, &FaultResponse { cookie: record.cookie, code: FaultResponse::INVALID })
    }

    /// Gives up every group of a device that is waiting.
    pub(crate) fn give_up(&mut self, queue: &FaultQueue, source: SourceId) -> Result<(), HostError> {
        let unsent = &mut self.unsent;
        self.waiting.retain(|name, cookie| {
            let keep = name.source != source;
            if !keep {
                unsent.push((*name, FaultResponse { cookie: *cookie, code: FaultResponse::INVALID }));
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
        self.unsent.retain(|(name, _)| other(name));
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
            self.unsent.push((name, response));
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
