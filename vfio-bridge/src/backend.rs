//! [`HostIommu`] over iommufd: a guest's first-stage tables nested on guest memory.
//!
//! # Locks
//!
//! 1. `delivery`: who reads page requests and hands them to the guest's model, and who changes bindings. So when a
//!    change returns, nothing that came through the old binding is on its way any more. It is taken by a CPU
//!    thread whose turn it is in the model, and held by another while it calls [`Translator::page_request`]: in the
//!    model's order it stands where the locks of endpoints do.
//! 2. `bindings`: devices, tables, what is to be flushed. System calls that change any of it are made under it.
//! 3. `cookies`: groups that wait for an answer. The answer is written under it.
//!
//! Nothing is called with 2 or 3 held but the kernel.

use std::sync::Arc;

use iommu_core::sync::Mutex;
use iommu_core::{
    Capabilities, Domain, HostError, HostIommu, Invalidation, PageRequestOutcome, PageResponse, Pasid,
    ResponseCode, SourceId, Translator,
};
use rustix::io::Errno;
use vm_memory::GuestMemoryMmap;
use vm_memory::bitmap::Bitmap;

use crate::bindings::{Bindings, Slot};
use crate::caps::{Findings, Live, Offer};
use crate::device::Device;
use crate::fault_queue::{Cookies, FaultQueue, GroupName, ReadBuffer, page_request};
use crate::hwpt::NestParent;
use crate::ioas::Ioas;
use crate::kernel::{DeviceFile, Kernel};
use crate::memory::HostRange;
use crate::object::{BIND, MAKE_NEST_PARENT, Objects, refused};

/// Devices of one guest whose first-stage tables the host walks.
///
/// One for each unit of the guest's. Fields are dropped in this order: attachments and tables before what they
/// stand on.
pub struct NestedIommu {
    delivery: Mutex<ReadBuffer>,
    bindings: Mutex<Bindings>,
    cookies: Mutex<Cookies>,
    ioas: Arc<Ioas>,
    objects: Arc<Objects>,
}

impl NestedIommu {
    /// Without memory and devices.
    ///
    /// # Errors
    /// The host gives no address space.
    pub fn new(kernel: Arc<dyn Kernel>) -> Result<Self, HostError> {
        let objects = Objects::new(kernel);
        let ioas = Arc::new(Ioas::new(&objects)?);
        Ok(Self::beside(ioas))
    }

    /// For the devices behind another unit of the same guest. Memory is shared: mapped, pinned and charged once.
    #[must_use]
    pub fn sibling(&self) -> Self {
        Self::beside(self.ioas.clone())
    }

    /// For the devices behind another unit of the same guest, by whatever way the first goes.
    pub(crate) fn beside(ioas: Arc<Ioas>) -> Self {
        Self {
            delivery: Mutex::default(),
            bindings: Mutex::default(),
            cookies: Mutex::default(),
            objects: ioas.objects().clone(),
            ioas,
        }
    }

    /// The address space that holds guest memory.
    pub(crate) fn shared_ioas(&self) -> Arc<Ioas> {
        self.ioas.clone()
    }

    /// The address space, for memory that comes and goes.
    #[must_use]
    pub fn ioas(&self) -> &Ioas {
        &self.ioas
    }

    /// Lets devices at guest memory. Best after the first device: then memory is pinned range by range, and a
    /// failure names its range.
    ///
    /// # Errors
    /// The host refused a range; those before it stay.
    pub fn add_memory<B>(&self, memory: &GuestMemoryMmap<B>) -> Result<(), HostError>
    where
        B: Bitmap + Send + Sync + 'static,
    {
        let ranges = HostRange::of_memory(memory);
        let ranges = ranges.map_err(|errno| refused("find", "guest memory", errno))?;
        ranges.into_iter().try_for_each(|range| self.ioas.map(range))
    }

    /// Takes a device in, blocked, and says what the host offers for it. `source` is what the guest knows it by.
    ///
    /// The device's bus mastering has to be off: to see whether its IOMMU can use the page table that other
    /// devices use, it is attached to guest memory for a moment.
    ///
    /// # Errors
    /// The host refused a step; the device's file is closed then. `EEXIST` if there is one of this name. `EOPNOTSUPP`
    /// if the host cannot nest; [`Self::examine`] says why.
    pub fn add_device(&self, source: SourceId, file: Box<dyn DeviceFile>) -> Result<Offer, HostError> {
        if self.bindings.lock().devices.contains_key(&source) {
            return Err(refused(BIND, format!("device {source}"), Errno::EXIST));
        }
        self.add_bound(Device::bind(self.objects.kernel(), source, file)?)
    }

    /// The same for a device that is bound to the iommufd already.
    pub(crate) fn add_bound(&self, device: Device) -> Result<Offer, HostError> {
        let source = device.source();
        let mut bindings = self.bindings.lock();
        if bindings.devices.contains_key(&source) {
            return Err(refused(BIND, &device, Errno::EXIST));
        }
        let parent = find_parent(&mut bindings.parents, &self.ioas, &device)?;
        let has_pasid = bindings.parents.get(parent).is_some_and(|parent| parent.pasid());
        let findings = self.findings(&device, &mut bindings.faults, Ok(has_pasid));
        let offer = Offer::judge(&findings);
        bindings.devices.insert(source, Slot::new(device, offer.clone(), parent));
        Ok(offer)
    }

    /// What the host would offer for a device that is not taken in; its file is closed again.
    ///
    /// # Errors
    /// The host does not even bind it.
    pub fn examine(&self, source: SourceId, file: Box<dyn DeviceFile>) -> Result<Offer, HostError> {
        Ok(Offer::judge(&self.examine_bound(&Device::bind(self.objects.kernel(), source, file)?)))
    }

    /// What is found out about a device that is bound to the iommufd, and stays so.
    pub(crate) fn examine_bound(&self, device: &Device) -> Findings {
        let parent = NestParent::new(&self.ioas, device.id(), device.info().max_pasid_log2 != 0);
        let mut queue = None;
        self.findings(device, &mut queue, parent.as_ref().map(NestParent::pasid).map_err(|e| *e))
    }

    /// Looks at a device; a fault queue is made if it can use one.
    fn findings(
        &self,
        device: &Device,
        queue: &mut Option<Arc<FaultQueue>>,
        nest_parent: Result<bool, Errno>,
    ) -> Findings {
        let (ats, pri) = device.live_services();
        let mut fault_queue = Ok(());
        if queue.is_none() && pri == Live::On {
            match FaultQueue::new(&self.objects) {
                Ok(made) => *queue = Some(Arc::new(made)),
                Err(errno) => fault_queue = Err(errno),
            }
        }
        Findings { info: *device.info(), nest_parent, fault_queue, ats, pri }
    }

    /// Takes a device out: everything is detached, its page requests are answered by the kernel, its file is
    /// closed.
    pub fn remove_device(&self, source: SourceId) {
        let _delivery = self.delivery.lock();
        let mut bindings = self.bindings.lock();
        let device = bindings.remove(source, &mut |source, pasid| self.cookies.lock().forget(source, pasid));
        drop(device);
    }

    /// What to poll for page requests, if any device has them. Drop it before this.
    #[must_use]
    pub fn fault_queue(&self) -> Option<Arc<FaultQueue>> {
        self.bindings.lock().faults.clone()
    }

    /// Reads page requests once and hands them to the guest's model; to be called when [`Self::fault_queue`] is
    /// readable, from a thread that holds no lock. Returns how many there were.
    ///
    /// # Errors
    /// The queue could not be read, or some group that the model answered at once could not be answered; such
    /// answers are kept.
    pub fn deliver_page_requests(&self, model: &dyn Translator) -> Result<usize, HostError> {
        let (count, result) = self.deliver(model, None);
        result.map(|()| count)
    }

    /// After a reset of a device and before it is let at memory again: what it asked before is answered, because
    /// the host still waits, and not shown to the guest. Requests of other devices that come along are handed in.
    ///
    /// # Errors
    /// As [`Self::deliver_page_requests`].
    pub fn device_was_reset(&self, source: SourceId, model: &dyn Translator) -> Result<(), HostError> {
        let given_up = match self.fault_queue() {
            Some(queue) => self.cookies.lock().give_up(&queue, source),
            None => return Ok(()),
        };
        given_up.and(self.deliver_all(model, Some(source)))
    }

    /// Reads until there is nothing more, or that is hopeless.
    fn deliver_all(&self, model: &dyn Translator, give_up: Option<SourceId>) -> Result<(), HostError> {
        let mut result = Ok(());
        for _ in 0..MOST_READS {
            let (count, delivered) = self.deliver(model, give_up);
            result = result.and(delivered);
            if count == 0 {
                break;
            }
        }
        result
    }

    /// Reads once. Groups of `give_up` are answered and not handed in. Says how many requests there were.
    fn deliver(&self, model: &dyn Translator, give_up: Option<SourceId>) -> (usize, Result<(), HostError>) {
        let mut buffer = self.delivery.lock();
        let Some(queue) = self.fault_queue() else { return (0, Ok(())) };
        let mut result = self.cookies.lock().send_kept(&queue);
        let records = match buffer.read(&queue) {
            Ok(records) => records,
            Err(error) => return (0, result.and(Err(error))),
        };
        let mut count = 0;
        for record in records {
            count += 1;
            let Some(source) = self.source_of(record.dev_id) else {
                // It went together with all that it asked; the kernel should not have kept this.
                result = result.and(self.cookies.lock().refuse(&queue, &record));
                continue;
            };
            let request = page_request(&record, source);
            let name = GroupName::of(&request);
            if request.last {
                // Before the model has it: the guest may be quick.
                self.cookies.lock().expect(&queue, name, record.cookie);
            }
            let wanted = give_up != Some(source);
            let outcome = if wanted { model.page_request(&request) } else { PageRequestOutcome::Dropped };
            let code = match outcome {
                PageRequestOutcome::Queued => continue,
                PageRequestOutcome::Dropped => ResponseCode::Invalid,
                PageRequestOutcome::Answered(code) => code,
            };
            if request.last {
                result = result.and(self.cookies.lock().answer(&queue, name, code));
            }
        }
        (count, result)
    }

    fn source_of(&self, device: u32) -> Option<SourceId> {
        let bindings = self.bindings.lock();
        bindings.devices.iter().find(|(_, slot)| slot.device.id().0 == device).map(|(source, _)| *source)
    }
}

impl HostIommu for NestedIommu {
    fn capabilities(&self) -> Capabilities {
        let bindings = self.bindings.lock();
        let all = bindings.devices.values().map(|slot| slot.offer.capabilities);
        all.reduce(|all, one| all.intersect(&one)).unwrap_or(Capabilities::NONE)
    }

    fn set_domain(&self, source: SourceId, pasid: Option<Pasid>, domain: &Domain) -> Result<(), HostError> {
        // The kernel would take PASID 0 for requests without PASID in one of its books and for a PASID in another.
        let pasid = pasid.filter(|pasid| *pasid != Pasid::ZERO);
        let _delivery = self.delivery.lock();
        let mut bindings = self.bindings.lock();
        bindings.change(source, pasid, domain, &mut |source, pasid| self.cookies.lock().forget(source, pasid))
    }

    fn invalidate(&self, invalidation: &Invalidation) {
        self.bindings.lock().tables.note(invalidation);
    }

    fn sync(&self) -> Result<(), HostError> {
        let mut failed = Vec::new();
        self.bindings.lock().tables.flush(self.objects.kernel(), |key, error| failed.push((key, error)));
        if failed.is_empty() {
            return Ok(());
        }
        // Stale translations cannot be had any more if there are none at all.
        let _delivery = self.delivery.lock();
        let mut bindings = self.bindings.lock();
        let mut result = Ok(());
        for (key, error) in failed {
            let forget = &mut |source, pasid| self.cookies.lock().forget(source, pasid);
            let unbound = bindings.unbind_table(&key, forget);
            result = result.and(unbound.and(Err(error)));
        }
        result
    }

    fn drain_page_requests(&self, model: &dyn Translator) -> Result<(), HostError> {
        self.deliver_all(model, None)
    }

    fn respond(&self, response: &PageResponse) -> Result<(), HostError> {
        let Some(queue) = self.fault_queue() else { return Ok(()) };
        let name = GroupName { source: response.source, pasid: response.pasid, group: response.group };
        self.cookies.lock().answer(&queue, name, response.code)
    }
}

impl Drop for NestedIommu {
    fn drop(&mut self) {
        let sources: Vec<_> = self.bindings.lock().devices.keys().copied().collect();
        for source in sources {
            self.remove_device(source);
        }
    }
}

/// Reads in a row, after a reset and where a guest drains. What was asked before fits into a few; devices might never
/// stop asking.
const MOST_READS: usize = 16;

/// A parent that the device's IOMMU can use, by number; one more is made if there is none. Devices behind
/// different units may need different ones; only attaching tells.
fn find_parent(
    parents: &mut Vec<Arc<NestParent>>,
    ioas: &Arc<Ioas>,
    device: &Device,
) -> Result<usize, HostError> {
    let pasid = device.info().max_pasid_log2 != 0;
    for (number, parent) in parents.iter().enumerate().filter(|(_, parent)| parent.pasid() || !pasid) {
        match try_parent(device, parent) {
            Ok(()) => return Ok(number),
            Err(error) if Errno::from_io_error(&error.source) == Some(Errno::INVAL) => {}
            Err(error) => return Err(error),
        }
    }
    let parent = NestParent::new(ioas, device.id(), pasid);
    let parent = parent.map_err(|errno| refused(MAKE_NEST_PARENT, device, errno))?;
    try_parent(device, &parent)?;
    parents.push(Arc::new(parent));
    Ok(parents.len() - 1)
}

fn try_parent(device: &Device, parent: &NestParent) -> Result<(), HostError> {
    let attached = device.attach(None, parent.id());
    device.detach(None)?;
    attached
}
