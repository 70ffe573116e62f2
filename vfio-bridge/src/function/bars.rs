//! BARs: how large they are, what of them a guest reaches without an exit, and where that is shown.

use std::ops::Range;
use std::sync::Arc;

use devices::pci::config::ConfigSpace;
use devices::pci::spec::{Command, header};
use devices::pci::{BarRange, DecodedBars};
use iommu_core::sync::Mutex;

use super::peers::Peers;
use super::walk::Bytes;
use super::ways::{MemorySlots, Shown};
use crate::function_file::{FunctionFile, Region};
use crate::memory::{DeviceMemory, SharedMemory};

/// Type bits of a BAR's register (PCIe §7.5.1.2.1).
const IO: u32 = 1;
const KIND: u32 = 0b110;
const WIDE: u32 = 0b100;
const TYPE: u32 = 0xf;
/// What memory of a device is shown in.
const PAGE: u64 = 4096;

/// A memory BAR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bar {
    /// 0 to 5.
    pub(super) number: u8,
    /// Bytes: a power of two, at least 16.
    pub(super) len: u64,
    /// Bits 3:0 of its register.
    kind: u32,
    pub(super) region: Region,
}

impl Bar {
    /// The memory BARs of a device. I/O BARs are left out.
    pub(super) fn all(bytes: &Bytes<'_>, regions: &[Region; 6]) -> [Option<Self>; 6] {
        let mut all = [const { None }; 6];
        let mut upper_half = false;
        for (number, region) in (0u8..6).zip(regions) {
            let raw = bytes.u32(register(number));
            let skip = std::mem::take(&mut upper_half);
            let wide = raw & KIND == WIDE;
            let most = if wide { 1 << 62 } else { 1 << 31 };
            let fits = region.len.is_power_of_two() && (16..=most).contains(&region.len);
            if skip || raw & IO != 0 || !fits || wide && number == 5 {
                continue;
            }
            upper_half = wide;
            let bar = Self { number, len: region.len, kind: raw & TYPE, region: region.clone() };
            if let Some(slot) = all.get_mut(usize::from(number)) {
                *slot = Some(bar);
            }
        }
        all
    }

    /// Its register, or both: type bits, and as many address bits as its size lets be written.
    pub(super) fn install(&self, config: &mut ConfigSpace) {
        let mask = !(self.len - 1) & !u64::from(TYPE);
        let bytes = mask.to_le_bytes();
        let (low, high) = bytes.split_at(4);
        let at = register(self.number);
        config.set(at, &self.kind.to_le_bytes());
        config.set_writable(at, low);
        if self.is_wide() {
            config.set_writable(at + 4, high);
        }
    }

    fn is_wide(&self) -> bool {
        self.kind & KIND == WIDE
    }

    fn range(&self, config: &ConfigSpace) -> BarRange {
        let at = register(self.number);
        let high = if self.is_wide() { config.u32(at + 4) } else { 0 };
        BarRange { start: u64::from(config.u32(at) & !TYPE) | u64::from(high) << 32, len: self.len }
    }
}

/// What the BARs answer now. **Pure.**
pub(super) fn decode(config: &ConfigSpace, bars: &[Option<Bar>; 6]) -> DecodedBars {
    let on = Command::new_with_raw_value(config.u16(header::COMMAND)).memory_space();
    let range = |bar: &Option<Bar>| bar.as_ref().filter(|_| on).map(|bar| bar.range(config));
    [0, 1, 2, 3, 4, 5].map(|number: usize| range(&bars[number]))
}

fn register(bar: u8) -> u16 {
    header::BAR0 + u16::from(bar) * 4
}

/// Whole pages of `mappable` that share none with `trapped`. **Pure.**
fn showable(mappable: &[Range<u64>], trapped: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut parts: Vec<Range<u64>> =
        mappable.iter().map(|range| range.start.next_multiple_of(PAGE)..range.end & !(PAGE - 1)).collect();
    for hole in trapped {
        let (start, end) = (hole.start & !(PAGE - 1), hole.end.next_multiple_of(PAGE));
        parts = (parts.into_iter())
            .flat_map(|part| [part.start..part.end.min(start), part.start.max(end)..part.end])
            .collect();
    }
    parts.retain(|part| part.start < part.end);
    parts
}

/// A mapped part of a BAR.
struct Window {
    offset: u64,
    memory: Arc<DeviceMemory>,
    /// For other devices, if the host has a way.
    shared: Option<SharedMemory>,
}

#[derive(Default)]
struct State {
    windows: [Vec<Window>; 6],
    at: DecodedBars,
    shown: [Vec<Shown>; 6],
}

/// What of a device's memory the guest sees.
pub(super) struct Windows {
    slots: Arc<dyn MemorySlots>,
    peers: Peers,
    state: Mutex<State>,
}

impl Windows {
    /// Maps what can be, except for `trapped` parts: (BAR, range). What cannot be mapped is emulated.
    pub(super) fn new(
        file: &dyn FunctionFile,
        bars: &[Option<Bar>; 6],
        trapped: &[(u8, Range<u64>)],
        slots: Arc<dyn MemorySlots>,
        peers: Peers,
    ) -> Self {
        let mut state = State::default();
        for (bar, windows) in bars.iter().zip(&mut state.windows) {
            let Some(bar) = bar else { continue };
            let holes: Vec<_> =
                trapped.iter().filter(|(of, _)| *of == bar.number).map(|(_, range)| range.clone()).collect();
            for part in showable(&bar.region.mappable, &holes) {
                match file.map(&bar.region, part.clone()) {
                    Ok(memory) => windows.push(Window {
                        offset: part.start,
                        memory: Arc::new(memory),
                        shared: peers.export(file, bar.number, &part),
                    }),
                    Err(errno) => log::info!("BAR {} is emulated: not mapped ({errno})", bar.number),
                }
            }
        }
        Self { slots, peers, state: Mutex::new(state) }
    }

    /// Shows windows where the BARs are now, and nowhere else: to the guest and, where the host can, to its devices.
    pub(super) fn follow(&self, decoded: &DecodedBars) {
        let mut state = self.state.lock();
        let State { windows, at, shown } = &mut *state;
        let moved: Vec<usize> = (0..6).filter(|&bar| at[bar] != decoded[bar]).collect();
        // All go before any comes: they may change places.
        for &bar in &moved {
            shown[bar].clear();
        }
        for &bar in &moved {
            at[bar] = decoded[bar];
            let Some(range) = decoded[bar] else { continue };
            for window in &windows[bar] {
                let Some(start) = range.start.checked_add(window.offset) else { continue };
                match self.slots.show(start, &window.memory) {
                    Ok(it) => shown[bar].push(it),
                    Err(error) => {
                        log::debug!("BAR {bar} is emulated at {start:#x}: {error}");
                        continue;
                    }
                }
                shown[bar].extend(window.shared.as_ref().and_then(|it| self.peers.share(start, it)));
            }
        }
    }

    /// Shows nothing any more, and lets go of the device's memory.
    pub(super) fn drop_all(&self) {
        *self.state.lock() = State::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (name, mappable, trapped, shown), all in pages and fractions.
    #[test]
    #[expect(clippy::single_range_in_vec_init, reason = "one range is meant")]
    fn whole_pages_are_shown_around_what_is_trapped() {
        type Row = (&'static str, Vec<Range<u64>>, Vec<Range<u64>>, Vec<Range<u64>>);
        let rows: [Row; 8] = [
            ("nothing", vec![], vec![0..0x1000], vec![]),
            ("all", vec![0..0x4000], vec![], vec![0..0x4000]),
            ("a hole in the middle", vec![0..0x4000], vec![0x1010..0x1030], vec![0..0x1000, 0x2000..0x4000]),
            ("two in one page", vec![0..0x2000], vec![0..0x10, 0x800..0x808], vec![0x1000..0x2000]),
            ("a hole across pages", vec![0..0x4000], vec![0xff0..0x1010], vec![0x2000..0x4000]),
            ("the hole is elsewhere", vec![0x2000..0x4000], vec![0..0x1000], vec![0x2000..0x4000]),
            ("all is a hole", vec![0..0x1000], vec![0x10..0x20], vec![]),
            ("fractions of pages", vec![0x800..0x1800], vec![], vec![]),
        ];
        for (name, mappable, trapped, expected) in rows {
            assert_eq!(showable(&mappable, &trapped), expected, "{name}");
        }
    }
}
