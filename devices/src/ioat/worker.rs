//! The thread that does a channel's work, descriptor by descriptor.

use std::sync::Arc;

use iommu_core::{Dma, Port, SESSION_LIMIT_BYTES, Session};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use zerocopy::{FromBytes, IntoBytes};

use super::channel::Channel;
use super::device::Device;
use super::spec::{DESCRIPTOR_BYTES, Descriptor, DescriptorControl, OPERATION_COPY, error};
use super::state::{Completion, Work};

/// Bytes copied in one session, of which each is moved twice.
const STEP_BYTES: usize = SESSION_LIMIT_BYTES / 4;

/// Why a descriptor was not done.
enum Stop {
    /// Nobody wants it any more.
    Void,
    /// With these bits of CHANERR.
    Error(u32),
}

/// The worker of a channel.
pub struct Worker<M> {
    device: Arc<Device>,
    number: u8,
    port: Port<M>,
    buffer: Vec<u8>,
}

impl<M: GuestMemoryBackend + Clone> Worker<M> {
    /// The worker of the channel with this number, which exists.
    pub fn new(device: Arc<Device>, number: u8, dma: &Dma<M>) -> Self {
        Self { device, number, port: dma.port(), buffer: vec![0; STEP_BYTES] }
    }

    /// Works until the channel exits.
    pub fn run(mut self) {
        while let Some(work) = self.channel().next() {
            match self.perform(&work) {
                Ok(()) | Err(Stop::Void) => {}
                Err(Stop::Error(bits)) => self.fail(&work, bits),
            }
        }
    }

    fn channel(&self) -> &Channel {
        &self.device.channels[usize::from(self.number)]
    }

    fn perform(&mut self, work: &Work) -> Result<(), Stop> {
        let descriptor = self.fetch(work)?;
        let control = DescriptorControl::new_with_raw_value(descriptor.control.get());
        let length = self.length(&descriptor, control).map_err(Stop::Error)?;
        if !control.null() {
            self.copy(work, descriptor.source.get(), descriptor.destination.get(), length)?;
        }
        self.complete(work, descriptor.next.get(), control)
    }

    /// How many bytes a descriptor is about, or what is wrong with it.
    fn length(&self, descriptor: &Descriptor, control: DescriptorControl) -> Result<usize, u32> {
        if control.operation() != OPERATION_COPY {
            return Err(error::CONTROL);
        }
        match usize::try_from(descriptor.size.get()) {
            Ok(length @ 1..) if length <= 1 << self.device.config.transfer_log2 => Ok(length),
            _ => Err(error::LENGTH),
        }
    }

    fn fetch(&mut self, work: &Work) -> Result<Descriptor, Stop> {
        let (unreadable, unaligned) = match work.first {
            true => (error::CHAIN_ADDRESS, error::CHAIN_ADDRESS),
            false => (error::NEXT_ADDRESS, error::NEXT_ALIGNMENT),
        };
        if !work.address.is_multiple_of(DESCRIPTOR_BYTES as u64) {
            return Err(Stop::Error(unaligned));
        }
        let mut bytes = [0; DESCRIPTOR_BYTES];
        self.in_session(work, |session, _| read(session, work.address, &mut bytes, unreadable))?;
        Descriptor::read_from_bytes(&bytes).map_err(|_| Stop::Error(unreadable))
    }

    fn copy(&mut self, work: &Work, source: u64, destination: u64, length: usize) -> Result<(), Stop> {
        for start in (0..length).step_by(STEP_BYTES) {
            let count = STEP_BYTES.min(length - start);
            // Beyond the top of the address space there is nothing.
            let at = |base: u64, bits| base.checked_add(start as u64).ok_or(bits);
            self.in_session(work, |session, buffer| {
                let bytes = buffer.get_mut(..count).ok_or(error::LENGTH)?;
                read(session, at(source, error::READ_DATA)?, bytes, error::READ_DATA)?;
                write(session, at(destination, error::WRITE_DATA)?, bytes, error::WRITE_DATA)
            })?;
        }
        Ok(())
    }

    /// Runs `step` in a session, with the gate held, if the work is still wanted and the function is bus master:
    /// without, the first access of the step, which is a read, comes to nothing.
    fn in_session(
        &mut self,
        work: &Work,
        step: impl FnOnce(&Session<'_, M>, &mut [u8]) -> Result<(), u32>,
    ) -> Result<(), Stop> {
        let channel = &self.device.channels[usize::from(self.number)];
        let _gate = channel.enter();
        if !channel.with(|state| state.wants(work)) {
            return Err(Stop::Void);
        }
        if !self.device.base.bus_master() {
            return Err(Stop::Error(error::READ_DATA));
        }
        let session = self.port.session(None);
        step(&session, &mut self.buffer).map_err(Stop::Error)
    }

    /// First the completion in memory, then the registers, then the interrupt.
    fn complete(&mut self, work: &Work, next: u64, control: DescriptorControl) -> Result<(), Stop> {
        if control.completion() {
            let completion = self.channel().with(|state| state.completion(work));
            self.in_session(work, |session, _| store(session, completion))?;
        }
        let channel = self.channel();
        let _gate = channel.enter();
        if channel.with(|state| state.complete(work, next, control.interrupt())) {
            self.device.interrupt(self.number);
        }
        Ok(())
    }

    /// First the registers, then the completion in memory, then the interrupt: nobody is told of an error whose kind
    /// cannot be read yet.
    fn fail(&mut self, work: &Work, bits: u32) {
        let channel = &self.device.channels[usize::from(self.number)];
        let _gate = channel.enter();
        let failure = channel.with(|state| {
            let failure = state.fail(work, bits);
            self.device.record_errors(failure.errors);
            failure
        });
        if let Some(completion) = failure.completion.filter(|_| self.device.base.bus_master()) {
            let session = self.port.session(None);
            if store(&session, completion).is_err() {
                log::debug!(
                    "IOAT {}: the completion of an error cannot be written",
                    self.device.base.source()
                );
            }
        }
        if failure.interrupt {
            self.device.interrupt(self.number);
        }
    }
}

fn read<M: GuestMemoryBackend>(
    session: &Session<'_, M>,
    address: u64,
    bytes: &mut [u8],
    otherwise: u32,
) -> Result<(), u32> {
    session.read_slice(bytes, GuestAddress(address)).map_err(|_| otherwise)
}

fn write<M: GuestMemoryBackend>(
    session: &Session<'_, M>,
    address: u64,
    bytes: &[u8],
    otherwise: u32,
) -> Result<(), u32> {
    session.write_slice(bytes, GuestAddress(address)).map_err(|_| otherwise)
}

/// Stores a completion at its address, a multiple of its size.
fn store<M: GuestMemoryBackend>(session: &Session<'_, M>, completion: Completion) -> Result<(), u32> {
    let bytes = completion.value.to_le();
    write(session, completion.address, bytes.as_bytes(), error::COMPLETION_ADDRESS)
}
