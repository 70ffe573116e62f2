//! A device that is bound to the iommufd.

use std::fmt;

use iommu_core::{HostError, SourceId};
use rustix::io::Errno;

use crate::caps::{Live, Offer, live_services};
use crate::kernel::{DeviceFile, HwInfo, Kernel, ObjectId};
use crate::object::{ATTACH, BIND, refused};

/// A bound device. Dropping it closes its file, which detaches it from everything.
pub(crate) struct Device {
    source: SourceId,
    id: ObjectId,
    info: HwInfo,
    file: Box<dyn DeviceFile>,
}

impl Device {
    /// Binds. `source` is what the guest knows the device by.
    pub(crate) fn bind(
        kernel: &dyn Kernel,
        source: SourceId,
        file: Box<dyn DeviceFile>,
    ) -> Result<Self, HostError> {
        let name = format!("device {source}");
        let id = file.bind().map_err(|errno| refused(BIND, &name, errno))?;
        let info =
            kernel.hw_info(id).map_err(|errno| refused("ask for hardware information", &name, errno))?;
        Ok(Self { source, id, info, file })
    }

    /// What the guest knows it by.
    pub(crate) fn source(&self) -> SourceId {
        self.source
    }

    pub(crate) fn id(&self) -> ObjectId {
        self.id
    }

    pub(crate) fn info(&self) -> &HwInfo {
        &self.info
    }

    /// ATS and PRI as the host has them.
    pub(crate) fn live_services(&self) -> (Live, Live) {
        live_services(|offset| {
            let mut word = [0; 4];
            self.file.config_read(offset, &mut word).ok()?;
            Some(u32::from_le_bytes(word))
        })
    }

    /// Whether a PASID may be used. A kernel takes one that the device cannot send, and does nothing.
    pub(crate) fn check_pasid(&self, pasid: Option<u32>, offer: &Offer) -> Result<(), HostError> {
        // Without PASIDs: none but 0, which never comes here.
        let fits = pasid.is_none_or(|pasid| pasid >> offer.capabilities.pasid_bits == 0);
        if fits { Ok(()) } else { Err(self.refused(ATTACH, pasid, Errno::OPNOTSUPP)) }
    }

    pub(crate) fn attach(&self, pasid: Option<u32>, table: ObjectId) -> Result<(), HostError> {
        self.file.attach(pasid, table).map_err(|errno| self.refused(ATTACH, pasid, errno))
    }

    /// Detaches; tried twice, because nothing else makes sure that a device is stopped.
    pub(crate) fn detach(&self, pasid: Option<u32>) -> Result<(), HostError> {
        self.file.detach(pasid).or_else(|_| self.file.detach(pasid)).map_err(|errno| {
            let mut error = self.refused("detach", pasid, errno);
            error.still_bound = true;
            error
        })
    }

    fn refused(&self, operation: &'static str, pasid: Option<u32>, errno: Errno) -> HostError {
        match pasid {
            None => refused(operation, self, errno),
            Some(pasid) => refused(operation, format!("{self} PASID {pasid:#x}"), errno),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device {}", self.source)
    }
}
