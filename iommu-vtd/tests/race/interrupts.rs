//! Interrupts by entries that are replaced.

use iommu_core::{InterruptRemapper, Msi, MsiSink, SourceId};

use crate::explore;
use crate::world::{ENDPOINT, IRT, World};

const INDEX: u64 = 5;
const OLD: u64 = 0x41;
const NEW: u64 = 0x42;

/// What an interrupt is delivered to: it must not come by the old entry once the wait is done.
struct Judge<'w>(&'w World);

impl MsiSink for Judge<'_> {
    fn send(&self, _: SourceId, msi: Msi) {
        if u64::from(msi.data & 0xff) == OLD {
            assert!(!self.0.completed(), "delivered by an old entry after the wait");
        }
        // Delivery takes its time.
        self.0.msi.sent.lock().clear();
        if u64::from(msi.data & 0xff) == OLD {
            assert!(!self.0.completed(), "under way by an old entry after the wait");
        }
    }
}

fn race(descriptor: [u64; 2]) {
    let world = World::new(|_| ());
    let entry = IRT + 16 * INDEX;
    world.set_word(entry, OLD << 16 | 1);
    let msi = Msi { address: 0xfee0_0010 | INDEX << 5, data: 0 };
    let devices: Vec<_> = (0..2)
        .map(|_| {
            let world = world.clone();
            shuttle::thread::spawn(move || {
                for _ in 0..3 {
                    world.unit.deliver(ENDPOINT, msi, &Judge(&world));
                }
            })
        })
        .collect();
    world.set_word(entry, NEW << 16 | 1);
    world.submit(&[descriptor]);
    for device in devices {
        device.join().unwrap();
    }
}

#[test]
fn all_entries() {
    explore(|| race([4, 0]));
}

#[test]
fn one_entry() {
    explore(|| race([INDEX << 32 | 1 << 4 | 4, 0]));
}
