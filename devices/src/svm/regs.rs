//! The register pages of BAR0 (section 2), with accesses of any width and alignment.
//!
//! Reads are made of aligned 8-byte blocks, so that 64-bit registers are read untorn; writes of aligned
//! 32-bit registers, of which an access may change only some bytes.

use std::sync::atomic::Ordering;

use super::device::Device;
use super::misbehaviour::registers as misbehaviour;
use super::portal::{Portal, Window};
use super::queue::{Queue, Via};
use super::spec::{
    CONTROL_PAGES, Descriptor, GlobalControl, MAX_TRANSFER_BYTES, OutcomeCode, PAGE_BYTES, PORTAL_PAGES,
    QueueControl, WINDOW_PAGES, control, global, portal,
};

/// Which page of BAR0 an offset lies in.
enum Page {
    Global,
    Control(usize),
    Portal(usize),
    Window(usize),
    Empty,
}

fn page(device: &Device, offset: u64) -> Page {
    let number = |first: u64, count: usize| {
        let number = (offset.checked_sub(first)?) / PAGE_BYTES;
        usize::try_from(number).ok().filter(|&number| number < count)
    };
    let queue = |first: u64| number(first, device.queues.len());
    match offset {
        0..PAGE_BYTES => Page::Global,
        CONTROL_PAGES..PORTAL_PAGES => queue(CONTROL_PAGES).map_or(Page::Empty, Page::Control),
        PORTAL_PAGES..WINDOW_PAGES => queue(PORTAL_PAGES).map_or(Page::Empty, Page::Portal),
        _ => number(WINDOW_PAGES, device.windows.len()).map_or(Page::Empty, Page::Window),
    }
}

/// Reads registers.
pub fn read(device: &Device, offset: u64, data: &mut [u8]) {
    let mut filled = 0;
    while let Some(rest) = data.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        let at = offset.wrapping_add(filled as u64);
        let block = read_block(device, at & !7).to_le_bytes();
        let block = &block[usize::from(at.to_le_bytes()[0] & 7)..];
        let length = block.len().min(rest.len());
        rest[..length].copy_from_slice(&block[..length]);
        filled += length;
    }
}

/// The 8 bytes at `offset`, a multiple of 8.
fn read_block(device: &Device, offset: u64) -> u64 {
    let register = offset % PAGE_BYTES;
    let pair = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
    match page(device, offset) {
        Page::Global => read_global(device, register, pair),
        Page::Control(number) => read_control(&device.queues[number], register, pair),
        Page::Portal(number) => {
            read_portal(&device.portals[number], register, || device.queues[number].free(false), pair)
        }
        Page::Window(number) => {
            let window = &device.windows[number];
            read_portal(&window.portal, register, || window.free(&device.queues), pair)
        }
        Page::Empty => 0,
    }
}

fn read_global(device: &Device, register: u64, pair: impl Fn(u32, u32) -> u64) -> u64 {
    let index = |first: u64| usize::try_from((register - first) / 8).unwrap_or(usize::MAX);
    match register {
        global::ID => pair(global::ID_VALUE, global::VERSION_VALUE),
        global::CAPS => pair(device.config.caps().raw_value(), 0),
        global::STATUS => {
            let mib = u32::try_from(MAX_TRANSFER_BYTES >> 20).unwrap_or(u32::MAX);
            pair(device.status().raw_value(), mib)
        }
        global::LIMITS => pair(device.config.limits().raw_value(), device.engines.used()),
        global::COMMAND => pair(device.commands.command(), device.commands.status()),
        global::TRANSLATION_HITS => device.device_tlb.hits(),
        _ if misbehaviour::RANGE.contains(&register) => {
            pair(device.misbehaviour.read(register), device.misbehaviour.read(register + 4))
        }
        global::COUNTERS..global::TIMELINE => device.counters.at(index(global::COUNTERS)),
        global::TIMELINE..global::DURATIONS => match index(global::TIMELINE) {
            0 => device.clock.now(),
            index => device.timeline.at(index),
        },
        global::DURATIONS..global::DURATIONS_END => device.counters.duration(index(global::DURATIONS)),
        _ => window_of(device, register)
            .filter(|(_, register)| *register == 0)
            .map_or(0, |(window, _)| pair(window.control(), window.pasid())),
    }
}

/// The window whose privileged registers this is one of, and the register's offset among them.
fn window_of(device: &Device, register: u64) -> Option<(&Window, u64)> {
    let below = register.checked_sub(global::WINDOWS)?;
    let number = usize::try_from(below / global::WINDOW_BYTES).ok()?;
    Some((device.windows.get(number)?, below % global::WINDOW_BYTES))
}

fn read_portal(page: &Portal, register: u64, free: impl Fn() -> u32, pair: impl Fn(u32, u32) -> u64) -> u64 {
    match register {
        portal::FREE => pair(free(), page.dropped()),
        portal::OUTCOME => pair(page.outcome(), 0),
        _ => 0,
    }
}

fn read_control(queue: &Queue, register: u64, pair: impl Fn(u32, u32) -> u64) -> u64 {
    match register {
        control::CTRL => {
            let status = queue.status();
            let control = QueueControl::DEFAULT.with_enable(status.enabled()).with_shared(status.shared());
            pair(control.raw_value(), status.raw_value())
        }
        control::PASID => pair(queue.pasid(), queue.irq()),
        control::OCCUPANCY => pair(queue.occupancy(), queue.priority()),
        control::COMPLETED => queue.counters.completed.get(),
        control::FAULTED => queue.counters.faulted.get(),
        control::PAGE_REQUESTS => queue.counters.page_requests.get(),
        control::RECORD_LOST => queue.counters.record_lost.load(Ordering::Relaxed),
        control::BYTES => queue.counters.bytes.get(),
        _ => 0,
    }
}

/// Writes registers. Returns the queue that was enabled by it, for the caller to see that it has a worker.
pub fn write(device: &Device, offset: u64, data: &[u8]) -> Option<usize> {
    let mut taken = 0;
    let mut enabled = None;
    while let Some(rest) = data.get(taken..).filter(|rest| !rest.is_empty()) {
        let at = offset.wrapping_add(taken as u64);
        let register = at % PAGE_BYTES;
        let left = usize::try_from(PAGE_BYTES - register).unwrap_or(rest.len());
        taken += match page(device, at) {
            Page::Portal(number) => {
                let bytes = &rest[..left.min(rest.len())];
                let submit = |descriptor| device.queues[number].submit(descriptor, Via::Portal);
                write_portal(device, &device.portals[number], register, bytes, submit)
            }
            Page::Window(number) => {
                let bytes = &rest[..left.min(rest.len())];
                let window = &device.windows[number];
                let submit = |descriptor| window.submit(number, descriptor, &device.queues);
                write_portal(device, &window.portal, register, bytes, submit)
            }
            page => {
                let (word, length) = Word::first_of(at, rest);
                enabled = word.write(device, &page).or(enabled);
                length
            }
        };
    }
    enabled
}

/// Writes bytes of one portal or window page; says how many.
fn write_portal(
    device: &Device,
    page: &Portal,
    register: u64,
    bytes: &[u8],
    submit: impl FnOnce(Descriptor) -> OutcomeCode,
) -> usize {
    let offset = usize::try_from(register).unwrap_or(usize::MAX);
    if let Some(descriptor) = page.write(offset, bytes)
        && page.note(submit(descriptor))
    {
        device.counters.dropped.count();
    }
    bytes.len()
}

/// The part of a write that falls into one 32-bit word.
struct Word {
    /// A multiple of 4.
    offset: u64,
    value: u32,
    /// Bits of `value` that are written.
    mask: u32,
}

impl Word {
    /// The first one of a write, and how many bytes of it that is.
    fn first_of(at: u64, data: &[u8]) -> (Self, usize) {
        let lane = usize::from(at.to_le_bytes()[0] & 3);
        let length = data.len().min(4 - lane);
        let (mut value, mut mask) = ([0; 4], [0; 4]);
        value[lane..lane + length].copy_from_slice(&data[..length]);
        mask[lane..lane + length].fill(0xff);
        let (value, mask) = (u32::from_le_bytes(value), u32::from_le_bytes(mask));
        (Self { offset: at & !3, value, mask }, length)
    }

    fn over(&self, old: u32) -> u32 {
        old & !self.mask | self.value & self.mask
    }

    fn write(&self, device: &Device, page: &Page) -> Option<usize> {
        let register = self.offset % PAGE_BYTES;
        match page {
            Page::Control(number) => return self.write_control(device, *number, register),
            Page::Global => self.write_global(device, register),
            Page::Portal(_) | Page::Window(_) | Page::Empty => {}
        }
        None
    }

    fn write_global(&self, device: &Device, register: u64) {
        match register {
            global::CTRL => {
                if GlobalControl::new_with_raw_value(self.over(0)).reset() {
                    device.reset();
                }
            }
            _ if misbehaviour::RANGE.contains(&register) => {
                device.misbehaviour.write(register, self.over(device.misbehaviour.read(register)));
            }
            global::ENGINES => {
                let [engines, high @ ..] = self.over(device.engines.used()).to_le_bytes();
                device.engines.use_only(if high == [0; 3] { engines } else { u8::MAX });
            }
            global::COMMAND => device.start_command(self.over(device.commands.command())),
            _ => match window_of(device, register) {
                Some((window, 0)) => window.set_control(self.over(window.control())),
                Some((window, 4)) => window.set_pasid(self.over(window.pasid())),
                _ => {}
            },
        }
    }

    fn write_control(&self, device: &Device, number: usize, register: u64) -> Option<usize> {
        let queue = &device.queues[number];
        match register {
            control::CTRL => {
                let status = queue.status();
                let old = QueueControl::DEFAULT.with_enable(status.enabled()).with_shared(status.shared());
                let new = QueueControl::new_with_raw_value(self.over(old.raw_value()));
                if new.enable() {
                    queue.enable(new.shared());
                    return Some(number);
                }
                device.disable_queue(queue);
            }
            control::PASID => queue.set_pasid(self.over(queue.pasid())),
            control::IRQ => queue.set_irq(self.over(queue.irq())),
            control::PRIORITY => queue.set_priority(self.over(queue.priority())),
            _ => {}
        }
        None
    }
}
