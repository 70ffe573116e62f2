//! What a kind of device gives to the transport.

use super::chain::Chain;
use super::lane::Lane;
use super::stop::Stop;

/// What a device shows of itself. It does not change.
#[derive(Clone, Debug)]
pub struct Description {
    /// Kind of device (§5).
    pub kind: u16,
    /// PCI class code: base class in bits 23:16, subclass in 15:8, programming interface in 7:0.
    pub class: u32,
    /// Features of this kind of device; [`ALWAYS`](super::spec::feature::ALWAYS) comes on top.
    pub features: u64,
    /// Descriptors of each queue: powers of two. At most [`MAX_QUEUES`](super::spec::MAX_QUEUES) queues.
    pub queue_sizes: Vec<u16>,
    /// Device configuration; what lies behind reads as zeros. Read-only for the driver.
    pub config: Vec<u8>,
}

/// What a device does. Owned by the device's one worker thread.
pub trait Service<M>: Send {
    /// The driver starts, or starts anew, with these features.
    fn start(&mut self, features: u64);

    /// Serves one chain and returns how many bytes it wrote, from the beginning of the writable part on.
    ///
    /// Guest memory is reached through `lane` only, so in short sessions; between them it may block.
    ///
    /// # Errors
    /// The device was reset meanwhile (pass it on), or the chain cannot be answered at all.
    fn serve(&mut self, queue: u16, chain: &Chain, lane: &mut Lane<M>) -> Result<u32, Stop>;
}
