//! Chapter 5: the unit as a remapper of interrupts.

use std::sync::Weak;

use iommu_core::{InterruptRemapper, Msi, MsiSink, RouteListener, SourceId};

use super::Unit;
use crate::fault::Origin;
use crate::interrupt::Switch;
use crate::memory::TableMemory;
use crate::regs::IRTA;
use crate::spec::registers::GlobalCommand;

impl<M: TableMemory> Unit<M> {
    /// The part of a command that this unit has at all.
    pub(super) fn offered(&self, command: GlobalCommand) -> GlobalCommand {
        if self.capability.ecap().ir() {
            command
        } else {
            command.with_ire(false).with_sirtp(false).with_cfi(false)
        }
    }

    /// Carries out a command's interrupt side. The caller holds `turn` and nothing else.
    pub(super) fn switch_interrupts(&self, command: GlobalCommand) {
        let table = command.sirtp().then(|| self.state.lock().file.get(IRTA));
        self.interrupts.switch(&Switch { enabled: command.ire(), compatibility: command.cfi(), table });
    }
}

impl<M: TableMemory> InterruptRemapper for Unit<M> {
    fn deliver(&self, source: SourceId, msi: Msi, sink: &dyn MsiSink) {
        if let Err(blocked) = self.interrupts.deliver(&self.memory, source, msi, sink) {
            self.record(Origin::Interrupt(blocked.index), &blocked.fault(source, msi));
        }
    }

    fn resolve(&self, source: SourceId, msi: Msi) -> Option<Msi> {
        self.interrupts.resolve(&self.memory, source, msi)
    }

    fn add_listener(&self, listener: Weak<dyn RouteListener>) {
        self.interrupts.add_listener(listener);
    }
}
