//! The part that every emulated function shares: header, BARs, capabilities, MSI-X, and their side effects.

use std::sync::Arc;

use arbitrary_int::traits::Integer;
use arbitrary_int::u5;
use iommu_core::{MsiSink, SourceId};
use parking_lot::Mutex;

use super::bar;
use super::capability::{FunctionSpec, Layout, SpecError};
use super::config::ConfigSpace;
use super::function::{AtsState, DecodedBars, FunctionEvent, PasidState, PriState};
use super::intx::{self, Intx};
use super::live::LiveState;
use super::msix::Msix;
use super::spec::{
    AtsControl, Command, DeviceControl, MsixControl, PasidControl, PriControl, PriStatus, ats, express,
    header, msix, pasid, pri,
};
use crate::irq::IrqLine;

/// What a concrete function embeds. It answers configuration accesses and MSI-X, and says what changed.
///
/// State queries ([`Self::ats`], [`Self::pri`], [`Self::pasid`], [`Self::bus_master`]) are lock-free.
/// Configuration writes are serialised together with the handling of their events; reads do not wait for that.
pub struct FunctionBase {
    spec: FunctionSpec,
    layout: Layout,
    source: SourceId,
    power_on: ConfigSpace,
    /// Held over a configuration write and the handling of its events. Before `config`.
    writes: Mutex<()>,
    config: Mutex<ConfigSpace>,
    live: LiveState,
    msix: Option<Arc<Msix>>,
    /// Its bit in the status register is not in `config`, but read from here.
    line: Option<Intx>,
}

/// The control bits whose change is an event.
#[derive(Clone, Copy, Default)]
struct Controls {
    bus_master: bool,
    pasid: PasidState,
    ats: AtsState,
    pri: PriState,
}

impl FunctionBase {
    /// A function at `source`, in its power-on state, whose interrupts go to `sink`.
    ///
    /// # Errors
    /// The specification contradicts itself.
    pub fn new(spec: FunctionSpec, source: SourceId, sink: Arc<dyn MsiSink>) -> Result<Self, SpecError> {
        let (config, layout) = spec.layout()?;
        Ok(Self {
            spec,
            layout,
            source,
            power_on: config.clone(),
            writes: Mutex::new(()),
            config: Mutex::new(config),
            live: LiveState::default(),
            msix: spec.msix.map(|msix| Arc::new(Msix::new(msix, source, sink))),
            line: None,
        })
    }

    /// The same function with INTA, which is `line`. It is not asserted yet.
    #[must_use]
    pub fn with_line(mut self, line: Arc<dyn IrqLine>) -> Self {
        self.power_on.set(header::INTERRUPT_PIN, &[intx::PIN]);
        *self.config.get_mut() = self.power_on.clone();
        self.line = Some(Intx::new(line));
        self
    }

    /// Where the function is.
    #[must_use]
    pub fn source(&self) -> SourceId {
        self.source
    }

    /// Its MSI-X, if declared.
    #[must_use]
    pub fn msix(&self) -> Option<&Arc<Msix>> {
        self.msix.as_ref()
    }

    /// Raises an MSI-X vector. Any thread.
    pub fn trigger(&self, vector: u16) {
        if let Some(msix) = &self.msix {
            msix.trigger(vector);
        }
    }

    /// The function has a reason to interrupt by its line, or none any more. Any thread. Nothing without a line.
    /// Waits for no access to configuration space, and takes no lock at all while MSI-X is on.
    pub fn set_interrupt(&self, pending: bool) {
        if let Some(line) = &self.line {
            line.set_pending(pending);
        }
    }

    /// Whether DMA may be issued. Lock-free.
    #[must_use]
    pub fn bus_master(&self) -> bool {
        self.live.bus_master()
    }

    /// The state of ATS; all zeros if not declared. Lock-free.
    #[must_use]
    pub fn ats(&self) -> AtsState {
        self.live.ats()
    }

    /// The state of PRI; all zeros if not declared. Lock-free.
    #[must_use]
    pub fn pri(&self) -> PriState {
        self.live.pri()
    }

    /// The state of PASID; all zeros if not declared. Lock-free.
    #[must_use]
    pub fn pasid(&self) -> PasidState {
        self.live.pasid()
    }

    /// For [`PciFunction::config_read`](super::PciFunction::config_read).
    pub fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.config.lock().read(offset, data);
        let pending = self.line.as_ref().is_some_and(Intx::is_pending);
        let status = header::STATUS.checked_sub(offset).map(usize::from);
        if let Some(byte) = status.and_then(|at| data.get_mut(at)).filter(|_| pending) {
            *byte |= header::STATUS_INTERRUPT;
        }
    }

    /// For [`PciFunction::config_write`](super::PciFunction::config_write). Calls `react` for each event, in
    /// order, before another write is taken; it must not write configuration space.
    pub fn config_write(&self, offset: u16, data: &[u8], mut react: impl FnMut(FunctionEvent)) {
        let _serialised = self.writes.lock();
        for event in self.apply(offset, data) {
            react(event);
        }
    }

    /// For [`PciFunction::bars`](super::PciFunction::bars).
    #[must_use]
    pub fn bars(&self) -> DecodedBars {
        bar::decode(&self.config.lock(), &self.spec.bars)
    }

    /// Reads MSI-X structures. `false`: they are not at this offset, and `data` is untouched.
    pub fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) -> bool {
        let Some(msix) = self.msix.as_ref().filter(|m| m.covers(bar, offset)) else { return false };
        msix.read(offset, data);
        true
    }

    /// Writes MSI-X structures. `false`: they are not at this offset, and nothing happened.
    pub fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) -> bool {
        let Some(msix) = self.msix.as_ref().filter(|m| m.covers(bar, offset)) else { return false };
        msix.write(offset, data);
        true
    }

    /// For [`PciFunction::reset`](super::PciFunction::reset). Calls `react` with [`FunctionEvent::FunctionReset`].
    pub fn reset(&self, mut react: impl FnMut(FunctionEvent)) {
        let _serialised = self.writes.lock();
        self.power_on(&mut self.config.lock());
        react(FunctionEvent::FunctionReset);
    }

    /// Sets `bits` of the [register](super::ConfigRegister) at `offset`, which the function declared.
    pub fn set_register_bits(&self, offset: u16, bits: u32) {
        let mut config = self.config.lock();
        let value = config.u32(offset) | bits;
        config.set(offset, &value.to_le_bytes());
    }

    /// No page request is outstanding any more. Shows STOPPED if PRI is disabled, else nothing happens.
    pub fn pri_stopped(&self) {
        self.with_pri_status(|enabled, status| if enabled { status } else { status.with_stopped(true) });
    }

    /// A page group response said "response failure". The function makes no further page request.
    pub fn pri_response_failure(&self) {
        self.with_pri_status(|_, status| status.with_response_failure(true));
    }

    /// A page group response came for a group that is not outstanding.
    pub fn pri_unexpected_group(&self) {
        self.with_pri_status(|_, status| status.with_unexpected_group(true));
    }

    fn with_pri_status(&self, change: impl FnOnce(bool, PriStatus) -> PriStatus) {
        if self.layout.pri == 0 {
            return;
        }
        let mut config = self.config.lock();
        let enabled = self.controls(&config).pri.enabled;
        let at = self.layout.pri + pri::STATUS;
        let status = change(enabled, PriStatus::new_with_raw_value(config.u16(at)));
        config.set(at, &status.raw_value().to_le_bytes());
    }

    fn power_on(&self, config: &mut ConfigSpace) {
        *config = self.power_on.clone();
        self.publish(&Controls::default());
        if let Some(msix) = &self.msix {
            msix.reset();
        }
        if let Some(line) = &self.line {
            line.reset();
        }
    }

    fn controls(&self, config: &ConfigSpace) -> Controls {
        let mut controls = Controls {
            bus_master: Command::new_with_raw_value(config.u16(header::COMMAND)).bus_master(),
            ..Controls::default()
        };
        if self.layout.pasid != 0 {
            let raw = config.u16(self.layout.pasid + pasid::CONTROL);
            controls.pasid.enabled = PasidControl::new_with_raw_value(raw).enable();
        }
        if self.layout.ats != 0 {
            let control = AtsControl::new_with_raw_value(config.u16(self.layout.ats + ats::CONTROL));
            controls.ats = AtsState { enabled: control.enable(), stu: control.stu().value() };
        }
        if self.layout.pri != 0 {
            let control = PriControl::new_with_raw_value(config.u16(self.layout.pri + pri::CONTROL));
            let allocation = config.u32(self.layout.pri + pri::ALLOCATION);
            let capacity = config.u32(self.layout.pri + pri::CAPACITY);
            controls.pri = PriState { enabled: control.enable(), allocation: allocation.min(capacity) };
        }
        controls
    }

    fn publish(&self, controls: &Controls) {
        self.live.set_bus_master(controls.bus_master);
        self.live.set_pasid(controls.pasid);
        self.live.set_ats(controls.ats);
        self.live.set_pri(controls.pri);
    }

    /// Writes, brings self-clearing bits and status in order, and finds out what happened.
    fn apply(&self, offset: u16, data: &[u8]) -> Vec<FunctionEvent> {
        let mut config = self.config.lock();
        let before = self.controls(&config);
        config.write(offset, data);
        if self.function_reset_requested(&config) {
            self.power_on(&mut config);
            return vec![FunctionEvent::FunctionReset];
        }
        let mut events = Vec::new();
        self.hold_stu(&mut config, &before.ats);
        let after = self.controls(&config);
        self.publish(&after);
        if after.pasid != before.pasid {
            events.push(FunctionEvent::Pasid(after.pasid));
        }
        if after.ats != before.ats {
            events.push(FunctionEvent::Ats(after.ats));
        }
        if after.pasid != before.pasid || after.ats.enabled != before.ats.enabled {
            events.push(FunctionEvent::FlushDeviceTlb);
        }
        self.apply_pri(&mut config, &before.pri, &after.pri, &mut events);
        if after.bus_master != before.bus_master {
            events.push(FunctionEvent::BusMaster(after.bus_master));
        }
        self.apply_msix(&config, &before, &after, (offset, data.len()));
        self.apply_line(&config);
        events
    }

    fn apply_line(&self, config: &ConfigSpace) {
        let Some(line) = &self.line else { return };
        let disabled = Command::new_with_raw_value(config.u16(header::COMMAND)).interrupt_disable();
        let control = MsixControl::new_with_raw_value(config.u16(self.layout.msix + msix::CONTROL));
        line.set_switches(disabled, self.msix.is_some() && control.enable());
    }

    fn function_reset_requested(&self, config: &ConfigSpace) -> bool {
        let at = self.layout.express;
        at != 0
            && DeviceControl::new_with_raw_value(config.u16(at + express::DEVICE_CONTROL)).function_reset()
    }

    /// STU can only change while ATS is disabled, or as it is enabled.
    fn hold_stu(&self, config: &mut ConfigSpace, before: &AtsState) {
        if self.layout.ats == 0 || !before.enabled {
            return;
        }
        let at = self.layout.ats + ats::CONTROL;
        let control = AtsControl::new_with_raw_value(config.u16(at));
        if control.enable() {
            let held = control.with_stu(u5::masked_new(before.stu));
            config.set(at, &held.raw_value().to_le_bytes());
        }
    }

    fn apply_pri(
        &self,
        config: &mut ConfigSpace,
        before: &PriState,
        after: &PriState,
        events: &mut Vec<FunctionEvent>,
    ) {
        if self.layout.pri == 0 {
            return;
        }
        let (control_at, status_at) = (self.layout.pri + pri::CONTROL, self.layout.pri + pri::STATUS);
        let control = PriControl::new_with_raw_value(config.u16(control_at));
        let cleared = PriStatus::DEFAULT.with_response_pasid(true);
        let mut status = PriStatus::new_with_raw_value(config.u16(status_at));
        if after.enabled && !before.enabled {
            status = cleared;
            events.push(FunctionEvent::PriEnabled(*after));
        }
        if before.enabled && !after.enabled {
            events.push(FunctionEvent::PriDisabled);
        }
        if control.reset() && !after.enabled {
            status = cleared.with_stopped(true);
            events.push(FunctionEvent::PriReset);
        }
        config.set(control_at, &control.with_reset(false).raw_value().to_le_bytes());
        config.set(status_at, &status.raw_value().to_le_bytes());
    }

    fn apply_msix(
        &self,
        config: &ConfigSpace,
        before: &Controls,
        after: &Controls,
        (offset, len): (u16, usize),
    ) {
        let Some(msix) = &self.msix else { return };
        if after.bus_master != before.bus_master {
            msix.set_bus_master(after.bus_master);
        }
        let at = self.layout.msix + msix::CONTROL;
        if ConfigSpace::touches(offset, len, at, 2) {
            msix.set_control(MsixControl::new_with_raw_value(config.u16(at)));
        }
    }
}

#[cfg(test)]
#[path = "base_tests.rs"]
mod tests;
