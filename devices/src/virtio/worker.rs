//! The thread that serves a device's queues, one chain after the other.

use std::sync::Arc;

use iommu_core::{Dma, SourceId};
use vm_memory::GuestMemoryBackend;

use super::common::Setup;
use super::core::Core;
use super::device::Service;
use super::lane::Lane;
use super::ring::Ring;
use super::spec::feature;
use super::stop::{Mistake, Stop};

/// A device's worker.
pub(super) struct Worker<M, S> {
    core: Arc<Core>,
    source: SourceId,
    lane: Lane<M>,
    service: S,
    /// Of the start that `epoch` names.
    rings: Vec<Option<Ring>>,
    epoch: Option<u64>,
}

impl<M: GuestMemoryBackend + Clone, S: Service<M>> Worker<M, S> {
    pub(super) fn new(core: Arc<Core>, dma: &Dma<M>, service: S) -> Self {
        let lane = Lane::new(core.clone(), dma.port());
        Self { core, source: dma.source(), lane, service, rings: Vec::new(), epoch: None }
    }

    /// Works until the device exits.
    pub(super) fn run(mut self) {
        while let Some(work) = self.core.next() {
            let served = self.start(&work.setup, work.epoch).map_err(Stop::from);
            let served = served.and_then(|()| self.serve(work.queues));
            if let Err(Stop::Mistake(mistake)) = served {
                log::info!("virtio device {}: gives up until it is reset: {mistake}", self.source);
                self.core.give_up(work.epoch);
            }
        }
    }

    /// Once for each start.
    fn start(&mut self, setup: &Setup, epoch: u64) -> Result<(), Mistake> {
        if self.epoch == Some(epoch) {
            return Ok(());
        }
        self.epoch = Some(epoch);
        self.lane.set_epoch(epoch);
        self.rings.clear();
        self.service.start(setup.features);
        let event_idx = setup.features & feature::EVENT_IDX != 0;
        let rings = (0..).zip(&setup.queues);
        let ring = |(number, place): (u16, &Option<_>)| {
            place.as_ref().map(|place| Ring::new(number, place, event_idx)).transpose()
        };
        self.rings = rings.map(ring).collect::<Result<_, _>>()?;
        Ok(())
    }

    fn serve(&mut self, queues: u64) -> Result<(), Stop> {
        let kicked = |number: &u16| queues & 1u64.checked_shl((*number).into()).unwrap_or(0) != 0;
        let rings = (0..).zip(&mut self.rings).filter(|(number, _)| kicked(number));
        for (number, ring) in rings {
            let Some(ring) = ring else { continue };
            loop {
                ring.quiet(&mut self.lane)?;
                while let Some(chain) = ring.pop(&mut self.lane)? {
                    let written = self.service.serve(number, &chain, &mut self.lane)?;
                    ring.push(&mut self.lane, chain.head, written)?;
                }
                if !ring.listen(&mut self.lane)? {
                    break;
                }
            }
        }
        Ok(())
    }
}
