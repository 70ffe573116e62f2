//! A channel between the vCPUs that write its registers and the thread that does its work.

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::spec::{CHANNEL_BYTES, REGISTERS};
use super::state::{Effects, State, Work};

#[derive(Default)]
struct Shared {
    state: State,
    exiting: bool,
}

/// The permission to touch memory and to send interrupts. Never held while waiting.
pub type Gate<'a> = MutexGuard<'a, ()>;

/// A channel.
#[derive(Default)]
pub struct Channel {
    shared: Mutex<Shared>,
    work: Condvar,
    /// Before `shared`.
    gate: Mutex<()>,
}

impl Channel {
    /// Waits until no access is under way that began before the call.
    pub fn drain(&self) {
        drop(self.gate.lock());
    }

    /// What the worker holds while it touches memory.
    pub fn enter(&self) -> Gate<'_> {
        self.gate.lock()
    }

    /// Looks at the state, or changes it without a word to the worker.
    pub fn with<R>(&self, work: impl FnOnce(&mut State) -> R) -> R {
        work(&mut self.shared.lock().state)
    }

    /// All registers as they lie in memory.
    #[must_use]
    pub fn image(&self) -> [u8; CHANNEL_BYTES] {
        self.shared.lock().state.image()
    }

    /// Writes `data` to the registers from `offset` on, lower ones first. On return nothing is under way that a
    /// write made void. Says whether there may be work, and whether an interrupt is to be sent.
    pub fn write(&self, offset: usize, data: &[u8]) -> Effects {
        let mut all = Effects::default();
        for (register, start, bytes) in REGISTERS {
            let Some((value, mask)) = part(offset, data, start, bytes) else { continue };
            let effects = self.shared.lock().state.write(register, value, mask);
            all.work |= effects.work;
            all.drain |= effects.drain;
            all.interrupt |= effects.interrupt;
        }
        if all.work {
            self.work.notify_one();
        }
        if all.drain {
            self.drain();
        }
        all
    }

    /// Back to power-on. On return no access is under way.
    pub fn reset(&self) {
        self.shared.lock().state.reset();
        self.drain();
    }

    /// The next descriptor, as soon as there is one. `None`: the worker is to end.
    pub fn next(&self) -> Option<Work> {
        let mut shared = self.shared.lock();
        while !shared.exiting {
            if let Some(work) = shared.state.take() {
                return Some(work);
            }
            self.work.wait(&mut shared);
        }
        None
    }

    /// The worker is to end.
    pub fn exit(&self) {
        let mut shared = self.shared.lock();
        shared.exiting = true;
        shared.state.reset();
        self.work.notify_one();
    }
}

/// The bytes of `data`, which lies at `offset`, that fall into a register: its value and which bits are written.
fn part(offset: usize, data: &[u8], start: usize, bytes: usize) -> Option<(u64, u64)> {
    let (mut value, mut mask) = ([0; 8], [0; 8]);
    let mut written = false;
    for (at, byte) in (offset..).zip(data).filter(|(at, _)| (start..start + bytes).contains(at)) {
        value[at - start] = *byte;
        mask[at - start] = 0xff;
        written = true;
    }
    written.then(|| (u64::from_le_bytes(value), u64::from_le_bytes(mask)))
}
