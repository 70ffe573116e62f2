//! The register page, with accesses of any width and alignment.

use super::device::Device;
use super::spec::{CHANNEL_BYTES, global};
use super::state::Effects;

/// Bytes of the global registers, as they lie in memory.
const GLOBAL_BYTES: usize = global::END;

/// The channel whose registers begin at or before `offset`, and the distance to it.
fn channel_at(device: &Device, offset: u64) -> Option<(usize, usize)> {
    let offset = usize::try_from(offset).ok()?.checked_sub(global::END)?;
    let (number, within) = (offset / CHANNEL_BYTES, offset % CHANNEL_BYTES);
    (number < device.channels.len()).then_some((number, within))
}

fn global_image(device: &Device) -> [u8; GLOBAL_BYTES] {
    let mut image = [0; GLOBAL_BYTES];
    let mut put = |offset: u64, bytes: &[u8]| {
        for (at, byte) in (offset..).zip(bytes) {
            if let Some(place) = usize::try_from(at).ok().and_then(|at| image.get_mut(at)) {
                *place = *byte;
            }
        }
    };
    put(global::CHANCNT, &[device.config.channels]);
    put(global::XFERCAP, &[device.config.transfer_log2]);
    put(global::INTRCTRL, &[device.interrupt_control().raw_value()]);
    put(global::ATTNSTATUS, &device.attention().to_le_bytes());
    put(global::CBVER, &[global::CBVER_VALUE]);
    image
}

/// Copies what `image` has from `offset` on; returns how much.
fn copy(image: &[u8], offset: usize, data: &mut [u8]) -> usize {
    let rest = image.get(offset..).unwrap_or_default();
    let length = rest.len().min(data.len());
    data[..length].copy_from_slice(&rest[..length]);
    length
}

/// Reads registers. Those of one channel are of one moment.
pub fn read(device: &Device, offset: u64, data: &mut [u8]) {
    data.fill(0);
    let mut filled = 0;
    while let Some(rest) = data.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        let at = offset.saturating_add(filled as u64);
        filled += match (usize::try_from(at), channel_at(device, at)) {
            (Ok(within), None) if within < GLOBAL_BYTES => read_global(device, within, rest),
            (_, Some((number, within))) => copy(&device.channels[number].image(), within, rest),
            _ => return,
        };
    }
}

fn read_global(device: &Device, offset: usize, data: &mut [u8]) -> usize {
    let image = global_image(device);
    let length = copy(&image, offset, data);
    // Of ATTNSTATUS, what was read is cleared, not what came since.
    let mut seen = [0; 4];
    for (place, byte) in (global::ATTNSTATUS..).zip(&mut seen) {
        let place = usize::try_from(place).unwrap_or(usize::MAX);
        *byte = if (offset..offset + length).contains(&place) { image[place] } else { 0 };
    }
    device.acknowledge(u32::from_le_bytes(seen));
    length
}

/// Writes registers. Says which channels may have work.
pub fn write(device: &Device, offset: u64, data: &[u8]) -> Vec<u8> {
    let intrctrl = global::INTRCTRL.checked_sub(offset).and_then(|at| usize::try_from(at).ok());
    if let Some(value) = intrctrl.and_then(|at| data.get(at)) {
        device.set_interrupt_control(*value);
    }
    let mut at_work = Vec::new();
    let Ok(offset) = usize::try_from(offset) else { return at_work };
    let channels = (global::END..).step_by(CHANNEL_BYTES).zip(&device.channels);
    for (number, (start, channel)) in (0u8..).zip(channels) {
        let part = data.get(start.saturating_sub(offset)..).unwrap_or_default();
        if part.is_empty() || offset >= start + CHANNEL_BYTES {
            continue;
        }
        let Effects { work, interrupt, .. } = channel.write(offset.saturating_sub(start), part);
        if interrupt {
            device.interrupt(number);
        }
        at_work.extend(work.then_some(number));
    }
    at_work
}
