//! The assigned function: what a guest does to it, and what becomes of that on the host.
//!
//! # Locks
//!
//! `writes` is held over a configuration write and all that it sets off, a reset included; then, one at a time, `file`
//! (shared), `config`, and those inside of windows and vectors. None of them is taken by the IOMMU's model while it
//! processes commands, except that of the vectors, from [`RouteListener`], under which nothing calls the model but to
//! resolve and deliver.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Weak};

use devices::irq::EndOfInterrupt;
use devices::pci::config::ConfigSpace;
use devices::pci::spec::{Command, DeviceControl, MsixControl, express, header, msix};
use devices::pci::{DecodedBars, PciFunction};
use iommu_core::sync::{Mutex, RwLock};
use iommu_core::{HostError, RouteListener, SourceId};
use rustix::io::Errno;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::bars::{self, Bar, Windows};
use super::events::{Events, Token};
use super::intx::Intx;
use super::msi::MsiPlace;
use super::peers::Peers;
use super::picture::{Hardware, MsixPlace, Picture};
use super::survey::{Survey, patient_reset};
use super::vectors::{Host, Vectors, Ways};
use super::walk::Bytes;
use super::warnings::Warnings;
use super::ways::{Connections, HostSide};
use crate::caps::Offer;
use crate::function_file::{FunctionFile, Region, irq};
use crate::object::refused;

/// Something that the owner of a function has to see to: take it out ([`AssignedFunction::remove`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The device reported an error that it does not recover from.
    Error,
    /// The host wants it back.
    Request,
}

/// No BAR answers.
const NOWHERE: DecodedBars = [None; 6];
/// A device of the host's as a PCI function of a guest's.
///
/// Off until the guest switches it on: no bus mastering, no memory, no interrupts. Dropping it resets the device.
pub struct AssignedFunction {
    source: SourceId,
    picture: Picture,
    bars: [Option<Bar>; 6],
    config_region: Region,
    can_reset: bool,
    /// `None`: the device is gone.
    file: RwLock<Option<Arc<dyn FunctionFile>>>,
    /// Held over writes of the device's command register: whether its DMA is stopped until it is reset.
    stopped: Mutex<bool>,
    writes: Mutex<()>,
    config: Mutex<ConfigSpace>,
    windows: Windows,
    vectors: Vec<Vectors>,
    line: Option<Intx>,
    events: Events,
    /// Signalled by the host: an error, a wish to have the device back.
    notices: [EventFd; 2],
    host: Arc<dyn HostSide>,
    warnings: Warnings,
}

impl AssignedFunction {
    /// The function of a device that the host offers `offer` for.
    ///
    /// # Errors
    /// The host refused a step; nothing of the device is in use then. `EOPNOTSUPP` if it is a bridge.
    pub fn new(offer: &Offer, connections: Connections) -> Result<Arc<Self>, HostError> {
        let source = connections.source;
        let error = |(operation, errno)| refused(operation, format!("device {source}"), errno);
        let remapper = connections.remapper.clone();
        let this = Arc::new(Self::build(offer, connections).map_err(error)?);
        if let Some(remapper) = remapper {
            let listener: Weak<Self> = Arc::downgrade(&this);
            remapper.add_listener(listener);
        }
        Ok(this)
    }

    fn build(offer: &Offer, connections: Connections) -> Result<Self, (&'static str, Errno)> {
        let Connections { source, file, slots, interrupts, remapper, shortcuts, line, host } = connections;
        let survey = Survey::take(&*file)?;
        let bytes = Bytes(&survey.bytes);
        if bytes.u8(header::HEADER_TYPE) & !header::MULTI_FUNCTION != 0 {
            return Err(("assign a bridge", Errno::OPNOTSUPP));
        }
        let irqs = |kind| file.irqs(kind).map_err(|errno| ("ask about interrupts", errno));
        let (msi, msix) = (irqs(irq::MSI)?, irqs(irq::MSIX)?);
        let has_line = bytes.u8(header::INTERRUPT_PIN) != 0 && irqs(irq::INTX)?.count > 0;
        let line = line.filter(|_| has_line);
        let bars = Bar::all(&bytes, &survey.regions);
        let picture = Picture::new(&Hardware {
            bytes,
            bars: &bars,
            can_reset: survey.can_reset,
            msi: msi.count,
            msix: msix.count,
            line: line.is_some(),
            offer,
        });
        let ways = Ways { source, sink: interrupts, remapper, shortcuts };
        let vectors = [
            picture.places.msi.map(|place| Vectors::new(irq::MSI, msi, place.vectors(), &ways)),
            picture.places.msix.map(|place| Vectors::new(irq::MSIX, msix, place.vectors, &ways)),
        ];
        let trapped: Vec<(u8, Range<u64>)> = picture.places.msix.iter().flat_map(MsixPlace::ranges).collect();
        let events = || -> io::Result<_> {
            Ok((Events::new()?, [EventFd::new(EFD_NONBLOCK)?, EventFd::new(EFD_NONBLOCK)?]))
        };
        let no_events = |e: io::Error| ("make events", Errno::from_io_error(&e).unwrap_or(Errno::IO));
        let (events, notices) = events().map_err(no_events)?;
        let line = line.map(|line| Intx::new(line, &events)).transpose().map_err(no_events)?;
        let this = Self {
            source,
            windows: Windows::new(&*file, &bars, &trapped, slots, Peers::new(source, host.clone())),
            config: Mutex::new(picture.config.clone()),
            picture,
            bars,
            config_region: survey.config_region,
            can_reset: survey.can_reset,
            file: RwLock::new(Some(file.clone())),
            stopped: Mutex::default(),
            writes: Mutex::default(),
            vectors: vectors.into_iter().flatten().collect(),
            line,
            events,
            notices,
            host,
            warnings: Warnings::new(source),
        };
        this.write_command(&*file, Command::DEFAULT).map_err(|errno| ("switch the device off", errno))?;
        this.hear_notices(&*file);
        Ok(this)
    }

    /// What the guest knows it by.
    #[must_use]
    pub fn source(&self) -> SourceId {
        self.source
    }

    /// Bytes of its memory BARs. Each has to lie on a multiple of its size.
    pub fn bar_lengths(&self) -> impl Iterator<Item = u64> {
        self.bars.iter().flatten().map(|bar| bar.len)
    }

    /// Interrupts that take the long way, and notices. To be called when this function's file descriptor is readable.
    pub fn serve(&self) -> Option<Notice> {
        let mut notice = None;
        for token in self.events.happened() {
            match token {
                Token::Vector(table, vector) => {
                    let table = self.vectors.iter().find(|it| it.table_number() == table);
                    table.into_iter().for_each(|it| it.signalled(vector));
                }
                Token::Line => self.line.iter().for_each(Intx::signalled),
                Token::Error | Token::Request => {
                    let index = usize::from(token == Token::Request);
                    let happened = self.notices[index].read().is_ok() && self.is_there();
                    let which = if index == 0 { Notice::Error } else { Notice::Request };
                    notice = happened.then_some(which).or(notice);
                }
            }
        }
        notice
    }

    /// Whether the device is still there.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.file.read().is_some()
    }

    /// Takes the device away from the guest, which reads ones from now on. It is stopped as far as it lets itself be,
    /// and its file is let go of.
    pub fn remove(&self) {
        let _turn = self.writes.lock();
        let Some(file) = self.file.write().take() else { return };
        self.stop(&*file);
        for kind in [irq::ERROR, irq::REQUEST] {
            // It may never have been on.
            let _ = file.disable_irqs(kind);
        }
        self.windows.drop_all();
    }

    /// Ends all DMA of the device, until it is reset; for the IOMMU's model, when the host does not take the device off
    /// tables that the guest has taken back. Takes no lock that is held while the model is called.
    pub fn stop_dma(&self) {
        let Some(file) = self.current() else { return };
        let mut stopped = self.stopped.lock();
        *stopped = true;
        // The guest's own switches are left as they are: they mean nothing any more.
        let memory = Command::DEFAULT.with_memory_space(command(&self.config.lock()).memory_space());
        if let Err(errno) = self.write_command_as(&*file, memory, true) {
            log::error!("{}: the device's DMA is not stopped: {errno}", self.source);
        }
    }

    /// No memory, no interrupts, no bus mastering.
    fn stop(&self, file: &dyn FunctionFile) {
        self.windows.follow(&NOWHERE);
        let host = Host { file, events: &self.events };
        self.vectors.iter().for_each(|it| it.reset(&host));
        self.line.iter().for_each(|it| _ = it.switch_off(file, &self.warnings));
        if let Err(errno) = self.write_command(file, Command::DEFAULT) {
            _ = self.warnings.say(format_args!("the device is not switched off: {errno}"));
        }
    }

    fn current(&self) -> Option<Arc<dyn FunctionFile>> {
        self.file.read().clone()
    }

    fn hear_notices(&self, file: &dyn FunctionFile) {
        let kinds = [(irq::ERROR, Token::Error), (irq::REQUEST, Token::Request)];
        for ((kind, token), event) in kinds.into_iter().zip(&self.notices) {
            let there = file.irqs(kind).is_ok_and(|irqs| irqs.count > 0);
            let heard = there && self.events.add(event, token).is_ok();
            if heard && let Err(errno) = file.set_irqs(kind, 0, &[Some(event)]) {
                log::info!("{}: no notices of {token:?}: {errno}", self.source);
            }
        }
    }

    /// The device's own command register: what the guest wants, and its interrupt line only while that is heard.
    fn write_command(&self, file: &dyn FunctionFile, command: Command) -> Result<(), Errno> {
        let stopped = self.stopped.lock();
        self.write_command_as(file, command, *stopped)
    }

    /// For who holds `stopped`.
    fn write_command_as(
        &self,
        file: &dyn FunctionFile,
        command: Command,
        stopped: bool,
    ) -> Result<(), Errno> {
        let master = command.bus_master() && !stopped;
        let heard = self.line.as_ref().is_some_and(Intx::is_on);
        let silent = command.interrupt_disable() || !heard;
        let command = command.with_interrupt_disable(silent).with_io_space(false).with_bus_master(master);
        file.write(&self.config_region, header::COMMAND.into(), &command.raw_value().to_le_bytes())
    }

    /// Everything back to where it was; to be called with `writes` held.
    fn reset_function(&self, file: &dyn FunctionFile) {
        self.stop(file);
        if self.can_reset {
            self.host.around_reset(self.source, &mut || match patient_reset(file) {
                Ok(()) => *self.stopped.lock() = false,
                Err(errno) => _ = self.warnings.say(format_args!("the device is not reset: {errno}")),
            });
        }
        *self.config.lock() = self.picture.config.clone();
    }

    /// Writes what of an access leads to the device.
    fn pass_write(&self, file: &dyn FunctionFile, offset: u16, data: &[u8]) {
        for part in self.picture.passed_parts(offset, data.len()) {
            let bytes = &data[usize::from(part.start - offset)..usize::from(part.end - offset)];
            if let Err(errno) = file.write(&self.config_region, part.start.into(), bytes) {
                log::debug!("{}: configuration write at {:#x}: {errno}", self.source, part.start);
            }
        }
    }

    /// What a changed command register, changed BARs and changed interrupt controls set off.
    fn apply(&self, file: &dyn FunctionFile, before: Command, written: Range<u16>) {
        let config = self.config.lock().clone();
        let after = command(&config);
        let mut decoded = bars::decode(&config, &self.bars);
        if !after.memory_space() {
            self.windows.follow(&NOWHERE);
        }
        if before.raw_value() != after.raw_value()
            && let Err(errno) = self.write_command(file, after)
        {
            _ = self.warnings.say(format_args!("the device does not take its command: {errno}"));
            // Perhaps its memory is off: then nobody may look at it.
            decoded = NOWHERE;
        }
        self.windows.follow(&decoded);
        self.follow_line(file, &config, false);
        let host = Host { file, events: &self.events };
        if before.bus_master() != after.bus_master() {
            self.vectors.iter().for_each(|it| it.set_bus_master(after.bus_master(), &host));
        }
        let touched = |at: u16, len: u16| written.start < at + len && at < written.end;
        if let Some((place, vectors)) = self.msi().filter(|(place, _)| touched(place.at, place.len())) {
            for vector in 0..place.vectors() {
                let (message, masked) = place.vector(&config, vector);
                vectors.set_entry(vector, message, masked);
            }
            vectors.control(place.is_on(&config), false, place.in_use(&config), &host);
        }
        if let Some((place, vectors)) = self.msix().filter(|(place, _)| touched(place.at + msix::CONTROL, 2))
        {
            let control = MsixControl::new_with_raw_value(config.u16(place.at + msix::CONTROL));
            vectors.control(control.enable(), control.function_mask(), place.vectors, &host);
        }
        self.follow_line(file, &config, true);
    }

    /// The interrupt line is on while the guest uses the device and has no messages on: the host has one kind at a time.
    /// To be called before messages are switched on and after they are switched off, which is when it may be.
    fn follow_line(&self, file: &dyn FunctionFile, config: &ConfigSpace, may_begin: bool) {
        let Some(line) = &self.line else { return };
        let command = command(config);
        let msi = self.picture.places.msi.as_ref().is_some_and(|place| place.is_on(config));
        let control = |place: &MsixPlace| {
            MsixControl::new_with_raw_value(config.u16(place.at + msix::CONTROL)).enable()
        };
        let msix = self.picture.places.msix.as_ref().is_some_and(control);
        let wanted = (command.memory_space() || command.bus_master()) && !msi && !msix;
        line.set_disabled(command.interrupt_disable());
        let changed = if wanted {
            may_begin && line.switch_on(file, &self.warnings)
        } else {
            line.switch_off(file, &self.warnings)
        };
        if changed && let Err(errno) = self.write_command(file, command) {
            _ = self.warnings.say(format_args!("the device does not take its command: {errno}"));
        }
    }

    /// Whether the device asserts its line, which drivers ask before they serve a line that is shared.
    fn show_line(&self, file: &dyn FunctionFile, config: &mut ConfigSpace) {
        let mut real = [0; 2];
        // A device that cannot be asked asserts nothing.
        let _ = file.read(&self.config_region, header::STATUS.into(), &mut real);
        let [low, high] = config.u16(header::STATUS).to_le_bytes();
        let asserted = real[0] & header::STATUS_INTERRUPT;
        config.set(header::STATUS, &[low & !header::STATUS_INTERRUPT | asserted, high]);
    }

    fn table_of(&self, kind: u32) -> Option<&Vectors> {
        self.vectors.iter().find(|it| u32::from(it.table_number()) == kind)
    }

    fn msi(&self) -> Option<(&MsiPlace, &Vectors)> {
        Some((self.picture.places.msi.as_ref()?, self.table_of(irq::MSI)?))
    }

    fn msix(&self) -> Option<(&MsixPlace, &Vectors)> {
        Some((self.picture.places.msix.as_ref()?, self.table_of(irq::MSIX)?))
    }

    /// The device's BAR, if an access lies in it.
    fn bar(&self, bar: u8, offset: u64, len: usize) -> Option<&Bar> {
        let bar = self.bars.get(usize::from(bar))?.as_ref()?;
        offset.checked_add(len as u64).filter(|end| *end <= bar.len).map(|_| bar)
    }
}

fn command(config: &ConfigSpace) -> Command {
    Command::new_with_raw_value(config.u16(header::COMMAND))
}

impl PciFunction for AssignedFunction {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        let Some(file) = self.current() else { return data.fill(0xff) };
        let mut config = self.config.lock();
        if let Some((place, vectors)) = self.msi() {
            let mut pending = [0; 4];
            vectors.read_pending(0, &mut pending);
            place.set_pending(&mut config, u32::from_le_bytes(pending));
        }
        if self.line.is_some() && offset <= header::STATUS {
            self.show_line(&*file, &mut config);
        }
        config.read(offset, data);
        drop(config);
        for part in self.picture.passed_parts(offset, data.len()) {
            let bytes = &mut data[usize::from(part.start - offset)..usize::from(part.end - offset)];
            if file.read(&self.config_region, part.start.into(), bytes).is_err() {
                bytes.fill(0xff);
            }
        }
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        let _turn = self.writes.lock();
        let Some(file) = self.current() else { return };
        self.pass_write(&*file, offset, data);
        let mut config = self.config.lock();
        let before = command(&config);
        config.write(offset, data);
        let at = self.picture.places.express;
        let control = DeviceControl::new_with_raw_value(config.u16(at + express::DEVICE_CONTROL));
        let reset = at != 0 && control.function_reset();
        self.picture.places.services.settle(&mut config);
        drop(config);
        if reset {
            return self.reset_function(&*file);
        }
        let end = offset.saturating_add(u16::try_from(data.len()).unwrap_or(u16::MAX));
        self.apply(&*file, before, offset..end);
    }

    fn bars(&self) -> DecodedBars {
        if self.is_there() { bars::decode(&self.config.lock(), &self.bars) } else { NOWHERE }
    }

    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        let Some(file) = self.current() else { return data.fill(0xff) };
        if let Some((place, vectors)) = self.msix() {
            if let Some(at) = place.in_table(bar, offset) {
                return vectors.read_table(at, data);
            }
            if let Some(at) = place.in_pending(bar, offset) {
                return vectors.read_pending(at, data);
            }
        }
        let read = self.bar(bar, offset, data.len()).map(|bar| file.read(&bar.region, offset, data));
        if !matches!(read, Some(Ok(()))) {
            data.fill(0xff);
        }
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        let Some(file) = self.current() else { return };
        if let Some((place, vectors)) = self.msix() {
            if let Some(at) = place.in_table(bar, offset) {
                return vectors.write_table(at, data, &Host { file: &*file, events: &self.events });
            }
            if place.in_pending(bar, offset).is_some() {
                return;
            }
        }
        let written = self.bar(bar, offset, data.len()).map(|bar| file.write(&bar.region, offset, data));
        if let Some(Err(errno)) = written {
            log::debug!("{}: write to BAR {bar} at {offset:#x}: {errno}", self.source);
        }
    }

    fn reset(&self) {
        let _turn = self.writes.lock();
        if let Some(file) = self.current() {
            self.reset_function(&*file);
        }
    }
}

impl RouteListener for AssignedFunction {
    fn routes_changed(&self) {
        if let Some(file) = self.current() {
            let host = Host { file: &*file, events: &self.events };
            self.vectors.iter().for_each(|it| it.refresh(&host));
        }
    }
}

impl EndOfInterrupt for AssignedFunction {
    fn ended(&self) {
        if let (Some(line), Some(file)) = (&self.line, self.current()) {
            line.ended(&*file);
        }
    }
}

impl AsRawFd for AssignedFunction {
    /// Readable when [`Self::serve`] has something to do.
    fn as_raw_fd(&self) -> RawFd {
        self.events.as_raw_fd()
    }
}

impl Drop for AssignedFunction {
    fn drop(&mut self) {
        self.reset();
        self.remove();
    }
}
