//! MSI-X: the table, its masks, the pending bits (PCIe §6.1.4).
//!
//! A vector is sent when MSI-X is enabled, the function may master the bus and neither mask holds it;
//! otherwise it is remembered in the pending bits and sent as soon as it can be.
//! A host-side shortcut (irqfd) will want to hear of changes: [`Msix::write`] and [`Msix::set_control`]
//! are the only places where a vector's message or mask changes, and [`Msix::message`] is what it would send.

use std::sync::Arc;

use iommu_core::{Msi, MsiSink, SourceId};
use parking_lot::Mutex;

use super::capability::MsixSpec;
use super::spec::{MsixControl, msix::ENTRY_LEN};

/// Offset of vector control in a table entry; bit 0 masks.
const VECTOR_CONTROL: usize = 12;
/// Bits of a table entry that can be written: the message address is aligned, of vector control only the mask exists.
const WRITABLE: [u8; ENTRY_LEN] =
    [0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0];
const MASKED: u8 = 1;

/// The structure of MSI-X that an offset lies in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Region {
    Table,
    Pending,
}

struct State {
    control: MsixControl,
    bus_master: bool,
    table: Vec<[u8; ENTRY_LEN]>,
    pending: Vec<u8>,
}

/// MSI-X of one function. [`Self::trigger`] can be called from any thread.
///
/// A message leaves with the internal lock held, so none comes after the write that masked it returned.
pub struct Msix {
    spec: MsixSpec,
    source: SourceId,
    sink: Arc<dyn MsiSink>,
    state: Mutex<State>,
}

impl State {
    fn new(spec: &MsixSpec) -> Self {
        let mut state = Self {
            control: MsixControl::DEFAULT,
            bus_master: false,
            table: vec![[0; ENTRY_LEN]; usize::from(spec.vectors)],
            pending: vec![0; usize::try_from(spec.pba_len()).unwrap_or(0)],
        };
        for entry in &mut state.table {
            entry[VECTOR_CONTROL] = MASKED;
        }
        state
    }

    /// The message of a vector, if nothing holds it back.
    fn message(&self, vector: usize) -> Option<Msi> {
        let entry = self.table.get(vector)?;
        let open = self.control.enable() && !self.control.function_mask() && self.bus_master;
        if !open || entry[VECTOR_CONTROL] & MASKED != 0 {
            return None;
        }
        let [a0, a1, a2, a3, a4, a5, a6, a7, d0, d1, d2, d3, ..] = *entry;
        Some(Msi {
            address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            data: u32::from_le_bytes([d0, d1, d2, d3]),
        })
    }
}

impl Msix {
    /// MSI-X as `spec` says, sending as `source`. Off, all vectors masked.
    #[must_use]
    pub fn new(spec: MsixSpec, source: SourceId, sink: Arc<dyn MsiSink>) -> Self {
        Self { spec, source, sink, state: Mutex::new(State::new(&spec)) }
    }

    /// Raises a vector: sends it, or makes it pending. Ignored while MSI-X is off, and for vectors that do not exist.
    pub fn trigger(&self, vector: u16) {
        let mut state = self.state.lock();
        let index = usize::from(vector);
        if index >= state.table.len() || !state.control.enable() {
            return;
        }
        match state.message(index) {
            Some(msi) => self.sink.send(self.source, msi),
            None => state.pending[index / 8] |= 1 << (index % 8),
        }
    }

    /// What [`Self::trigger`] would send now; `None`: nothing.
    #[must_use]
    pub fn message(&self, vector: u16) -> Option<Msi> {
        self.state.lock().message(usize::from(vector))
    }

    /// The control word of the capability was written.
    pub fn set_control(&self, control: MsixControl) {
        let mut state = self.state.lock();
        state.control = control;
        self.flush_all(&mut state);
    }

    /// The function may master the bus, or no longer.
    pub fn set_bus_master(&self, enabled: bool) {
        let mut state = self.state.lock();
        state.bus_master = enabled;
        self.flush_all(&mut state);
    }

    /// Back to the state after construction.
    pub fn reset(&self) {
        *self.state.lock() = State::new(&self.spec);
    }

    /// Whether an access that starts at `offset` of `bar` is one to the table or the pending bits.
    #[must_use]
    pub fn covers(&self, bar: u8, offset: u64) -> bool {
        bar == self.spec.bar && self.locate(offset).is_some()
    }

    /// Reads at an offset of the BAR that [`Self::covers`]; bytes beyond the structure read as zeros.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Some((region, start)) = self.locate(offset) else { return };
        let state = self.state.lock();
        let bytes = match region {
            Region::Table => state.table.as_flattened(),
            Region::Pending => &state.pending,
        };
        for (slot, byte) in data.iter_mut().zip(bytes.iter().skip(start)) {
            *slot = *byte;
        }
    }

    /// Writes at an offset of the BAR that [`Self::covers`]. Pending bits are read-only.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let Some((Region::Table, start)) = self.locate(offset) else { return };
        let mut state = self.state.lock();
        let bytes = state.table.as_flattened_mut();
        for ((at, slot), &byte) in bytes.iter_mut().enumerate().skip(start).zip(data) {
            let writable = WRITABLE[at % WRITABLE.len()];
            *slot = byte & writable;
        }
        let last = start.saturating_add(data.len().saturating_sub(1)) / WRITABLE.len();
        for vector in start / WRITABLE.len()..=last {
            self.flush(&mut state, vector);
        }
    }

    /// The structure at an offset of the BAR, and the offset into it.
    fn locate(&self, offset: u64) -> Option<(Region, usize)> {
        let table = u64::from(self.spec.table_offset);
        let pba = u64::from(self.spec.pba_offset);
        let within = |start: u64, len: u64| offset.checked_sub(start).filter(|at| *at < len);
        let (region, at) = match (within(table, self.spec.table_len()), within(pba, self.spec.pba_len())) {
            (Some(at), _) => (Region::Table, at),
            (None, Some(at)) => (Region::Pending, at),
            (None, None) => return None,
        };
        usize::try_from(at).ok().map(|at| (region, at))
    }

    /// Sends a vector that was waiting and no longer has to.
    fn flush(&self, state: &mut State, vector: usize) {
        let bit = 1 << (vector % 8);
        let waiting = state.pending.get(vector / 8).is_some_and(|byte| byte & bit != 0);
        if waiting && let Some(msi) = state.message(vector) {
            state.pending[vector / 8] &= !bit;
            self.sink.send(self.source, msi);
        }
    }

    fn flush_all(&self, state: &mut State) {
        if state.pending.iter().any(|byte| *byte != 0) {
            for vector in 0..state.table.len() {
                self.flush(state, vector);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iommu_core::testkit::RecordingMsi;
    use proptest::prelude::*;

    const SPEC: MsixSpec = MsixSpec { vectors: 3, bar: 0, table_offset: 0x1000, pba_offset: 0x1800 };
    const SOURCE: SourceId = SourceId(0x18);

    struct Fixture {
        msix: Msix,
        sink: Arc<RecordingMsi>,
    }

    impl Fixture {
        /// Enabled, vector `n` sends data `0x40 + n`, all unmasked.
        fn ready() -> Self {
            let sink = Arc::new(RecordingMsi::default());
            let fixture = Self { msix: Msix::new(SPEC, SOURCE, sink.clone()), sink };
            fixture.control(true, false);
            fixture.msix.set_bus_master(true);
            for vector in 0..3 {
                let entry = 0x1000 + vector * 16;
                fixture.msix.write(entry, &0xfee0_1000u64.to_le_bytes());
                fixture.msix.write(entry + 8, &(0x40 + vector).to_le_bytes()[..4]);
                fixture.mask(vector, false);
            }
            fixture
        }

        fn control(&self, enable: bool, function_mask: bool) {
            self.msix.set_control(MsixControl::DEFAULT.with_enable(enable).with_function_mask(function_mask));
        }

        fn mask(&self, vector: u64, masked: bool) {
            self.msix.write(0x1000 + vector * 16 + 12, &[u8::from(masked)]);
        }

        fn sent(&self) -> Vec<u32> {
            std::mem::take(&mut *self.sink.sent.lock())
                .into_iter()
                .map(|(source, msi)| {
                    assert_eq!((source, msi.address), (SOURCE, 0xfee0_1000));
                    msi.data
                })
                .collect()
        }

        fn pending(&self) -> u64 {
            let mut data = [0; 8];
            self.msix.read(0x1800, &mut data);
            u64::from_le_bytes(data)
        }
    }

    type Hold = fn(&Fixture, bool);

    #[test]
    fn held_vectors_are_pending_and_sent_once_released() {
        let rows: [(&str, Hold); 3] = [
            ("vector mask", |f, held| f.mask(1, held)),
            ("function mask", |f, held| f.control(true, held)),
            ("bus master off", |f, held| f.msix.set_bus_master(!held)),
        ];
        for (name, hold) in rows {
            let f = Fixture::ready();
            hold(&f, true);
            assert_eq!(f.msix.message(1), None, "{name}");
            f.msix.trigger(1);
            f.msix.trigger(1);
            assert_eq!((f.sent(), f.pending()), (vec![], 0b10), "{name}");
            hold(&f, false);
            assert_eq!((f.sent(), f.pending()), (vec![0x41], 0), "{name}");
            f.msix.trigger(1);
            assert_eq!(f.sent(), [0x41], "{name}");
        }
    }

    #[test]
    fn off_and_unknown_vectors_are_ignored() {
        let f = Fixture::ready();
        f.msix.trigger(3);
        f.msix.trigger(u16::MAX);
        f.control(false, false);
        f.msix.trigger(0);
        f.control(true, false);
        assert_eq!((f.sent(), f.pending()), (vec![], 0));
    }

    #[test]
    fn reset_masks_every_vector_and_forgets_pending_ones() {
        let f = Fixture::ready();
        f.mask(2, true);
        f.msix.trigger(2);
        f.msix.reset();
        let mut data = [0xff; 4];
        f.msix.read(0x1000 + 12, &mut data);
        assert_eq!((u32::from_le_bytes(data), f.pending()), (1, 0));
    }

    #[test]
    fn reserved_and_pending_bits_cannot_be_written() {
        let f = Fixture::ready();
        f.msix.write(0x1000, &[0xff; 8]);
        f.msix.write(0x1008, &[0xff; 8]);
        f.msix.write(0x1800, &[0xff; 8]);
        let mut data = [0; 8];
        f.msix.read(0x1000, &mut data);
        assert_eq!(u64::from_le_bytes(data), u64::MAX << 2);
        f.msix.read(0x1008, &mut data);
        assert_eq!(u64::from_le_bytes(data), 0x1_ffff_ffff);
        assert_eq!(f.pending(), 0);
        f.msix.read(0x1000 + 3 * 16 - 2, &mut data);
        assert_eq!(data, [0; 8], "the end of the table");
    }

    #[test]
    fn table_and_pending_bits_are_covered_and_nothing_else() {
        let f = Fixture::ready();
        let rows = [(0, 0xfff, false), (0, 0x1000, true), (0, 0x102f, true), (0, 0x1030, false)];
        for (bar, offset, expected) in rows.into_iter().chain([
            (0, 0x17ff, false),
            (0, 0x1807, true),
            (0, 0x1808, false),
            (1, 0x1000, false),
            (0, u64::MAX, false),
        ]) {
            assert_eq!(f.msix.covers(bar, offset), expected, "BAR {bar} + {offset:#x}");
        }
    }

    proptest! {
        /// No panic; reserved bits stay clear; and nothing that could be sent is left pending.
        #[test]
        fn hostile_accesses(steps in prop::collection::vec(
            (0u8..5, prop_oneof![0xff8u64..0x1040, 0x17f8u64..0x1810, any::<u64>()],
             prop::collection::vec(any::<u8>(), 1..9)), 0..60)) {
            let f = Fixture::ready();
            for (kind, offset, mut data) in steps {
                match kind {
                    0 => f.msix.read(offset, &mut data),
                    1 => f.msix.write(offset, &data),
                    2 => f.msix.trigger(u16::from(data[0] % 5)),
                    3 => f.mask(u64::from(data[0] % 3), data[0] & 4 != 0),
                    _ => f.control(data[0] & 3 != 0, data[0] & 4 != 0),
                }
                for vector in 0..3u16 {
                    let mut entry = [0; 16];
                    f.msix.read(0x1000 + u64::from(vector) * 16, &mut entry);
                    prop_assert_eq!((entry[0] & 3, entry[12] & !1, &entry[13..]), (0, 0, &[0; 3][..]));
                    let pending = f.pending() >> vector & 1 != 0;
                    prop_assert!(!pending || f.msix.message(vector).is_none());
                }
                prop_assert_eq!(f.pending() >> 3, 0);
            }
        }
    }
}
