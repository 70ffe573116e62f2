//! The register pages of BAR0 (section 2), with accesses of any width and alignment.
//!
//! Reads are made of aligned 8-byte blocks, so that 64-bit registers are read untorn; writes of aligned
//! 32-bit registers, of which an access may change only some bytes.

use super::device::Device;
use super::misbehaviour::registers as misbehaviour;
use super::queue::Queue;
use super::spec::{
    CONTROL_PAGES, GlobalControl, MAX_TRANSFER_BYTES, PAGE_BYTES, PORTAL_PAGES, QueueControl, control,
    global, portal,
};
use super::staging::merge;

/// Which page of BAR0 an offset lies in.
enum Page {
    Global,
    Control(usize),
    Portal(usize),
    Empty,
}

fn page(device: &Device, offset: u64) -> Page {
    let queue = |first: u64| {
        let number = (offset.checked_sub(first)?) / PAGE_BYTES;
        usize::try_from(number).ok().filter(|&number| number < device.queues.len())
    };
    match offset {
        0..PAGE_BYTES => Page::Global,
        CONTROL_PAGES..PORTAL_PAGES => queue(CONTROL_PAGES).map_or(Page::Empty, Page::Control),
        _ => queue(PORTAL_PAGES).map_or(Page::Empty, Page::Portal),
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
        Page::Portal(number) => match register {
            portal::FREE => pair(device.queues[number].free(), device.queues[number].dropped()),
            _ => 0,
        },
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
        _ if misbehaviour::RANGE.contains(&register) => {
            pair(device.misbehaviour.read(register), device.misbehaviour.read(register + 4))
        }
        global::COUNTERS..global::TIMELINE => device.counters.at(index(global::COUNTERS)),
        global::TIMELINE.. => match index(global::TIMELINE) {
            0 => device.clock.now(),
            index => device.timeline.at(index),
        },
        _ => 0,
    }
}

fn read_control(queue: &Queue, register: u64, pair: impl Fn(u32, u32) -> u64) -> u64 {
    match register {
        control::CTRL => {
            let status = queue.status();
            let control = QueueControl::DEFAULT.with_enable(status.enabled());
            pair(control.raw_value(), status.raw_value())
        }
        control::PASID => pair(queue.pasid(), queue.irq()),
        control::OCCUPANCY => pair(queue.occupancy(), 0),
        control::COMPLETED => queue.counters.completed.get(),
        control::FAULTED => queue.counters.faulted.get(),
        control::PAGE_REQUESTS => queue.counters.page_requests.get(),
        control::RECORD_LOST => queue.counters.record_lost.get(),
        _ => 0,
    }
}

/// Writes registers. Returns the queue that was enabled by it, for the caller to see that it has a worker.
pub fn write(device: &Device, offset: u64, data: &[u8]) -> Option<usize> {
    let mut taken = 0;
    let mut enabled = None;
    while let Some(rest) = data.get(taken..).filter(|rest| !rest.is_empty()) {
        let at = offset.wrapping_add(taken as u64);
        let lane = usize::from(at.to_le_bytes()[0] & 3);
        let length = rest.len().min(4 - lane);
        let (mut value, mut mask) = ([0; 4], [0; 4]);
        value[lane..lane + length].copy_from_slice(&rest[..length]);
        mask[lane..lane + length].fill(0xff);
        let word = Word { offset: at & !3, value: u32::from_le_bytes(value), mask: u32::from_le_bytes(mask) };
        enabled = word.write(device).or(enabled);
        taken += length;
    }
    enabled
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
    fn over(&self, old: u32) -> u32 {
        merge(old, self.value, self.mask)
    }

    fn write(&self, device: &Device) -> Option<usize> {
        let register = self.offset % PAGE_BYTES;
        match page(device, self.offset) {
            Page::Global if register == global::CTRL => {
                if GlobalControl::new_with_raw_value(self.over(0)).reset() {
                    device.reset();
                }
                None
            }
            Page::Global if misbehaviour::RANGE.contains(&register) => {
                device.misbehaviour.write(register, self.over(device.misbehaviour.read(register)));
                None
            }
            Page::Control(number) => self.write_control(device, number, register),
            Page::Portal(number) => {
                let offset = usize::try_from(register).ok()?;
                if let Some(descriptor) = device.staging[number].write(offset, self.value, self.mask)
                    && !device.queues[number].submit(descriptor)
                {
                    device.counters.dropped.count();
                }
                None
            }
            _ => None,
        }
    }

    fn write_control(&self, device: &Device, number: usize, register: u64) -> Option<usize> {
        let queue = &device.queues[number];
        match register {
            control::CTRL => {
                let old = QueueControl::DEFAULT.with_enable(queue.enabled());
                if QueueControl::new_with_raw_value(self.over(old.raw_value())).enable() {
                    queue.enable();
                    return Some(number);
                }
                device.disable_queue(queue);
            }
            control::PASID => queue.set_pasid(self.over(queue.pasid())),
            control::IRQ => queue.set_irq(self.over(queue.irq())),
            _ => {}
        }
        None
    }
}
