//! The VFIO devices of a machine, as KVM is told of them: it then knows that their DMA may not be coherent with caches,
//! and lets guests have the memory types that this takes.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use kvm_bindings::{
    KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_ADD, KVM_DEV_VFIO_FILE_DEL, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_VFIO,
};
use kvm_ioctls::{DeviceFd, VmFd};

/// KVM's own device for them.
#[derive(Clone)]
pub(crate) struct KvmVfio(Option<Arc<DeviceFd>>);

impl KvmVfio {
    /// A KVM without it serves as well where all DMA is coherent, which is what assigned devices are made to be.
    pub(crate) fn new(vm: &VmFd) -> Self {
        let mut request = kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_VFIO, fd: 0, flags: 0 };
        let device = vm.create_device(&mut request);
        Self(device.inspect_err(|error| log::info!("KVM is not told of devices: {error}")).ok().map(Arc::new))
    }

    /// Tells of the open file of a device, best before it is bound. KVM forgets it when the answer is dropped, and the
    /// file is closed only then.
    pub(crate) fn add(&self, file: OwnedFd) -> Member {
        let member = Member { device: self.0.clone(), file };
        member.set(KVM_DEV_VFIO_FILE_ADD);
        member
    }
}

/// A device's file that KVM knows.
pub(crate) struct Member {
    device: Option<Arc<DeviceFd>>,
    file: OwnedFd,
}

impl Member {
    fn set(&self, attribute: u32) {
        let Some(device) = &self.device else { return };
        let number = self.file.as_raw_fd();
        let request = kvm_device_attr {
            group: KVM_DEV_VFIO_FILE,
            attr: u64::from(attribute),
            addr: (&raw const number).expose_provenance() as u64,
            flags: 0,
        };
        if let Err(error) = device.set_device_attr(&request) {
            log::info!("KVM is not told of a device: {error}");
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.set(KVM_DEV_VFIO_FILE_DEL);
    }
}
