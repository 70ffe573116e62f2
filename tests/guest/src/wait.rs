//! Waiting for a device that may be slow, on a machine that may have one CPU for everything.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Turns without a pause: as long as a descriptor on resident memory takes.
const EAGER: u32 = 64;
/// How long to yield before sleeping; the kernel's page request thread may need this CPU.
const YIELDING: Duration = Duration::from_millis(2);
/// The shortest and the longest sleep: what takes long is asked about less often, since a look at a
/// register may leave the virtual machine.
const NAPS: (Duration, Duration) = (Duration::from_micros(200), Duration::from_millis(5));

static PATIENCE_SECONDS: AtomicU64 = AtomicU64::new(30);

/// How long a descriptor may take before a case gives up.
pub fn patience() -> Duration {
    Duration::from_secs(PATIENCE_SECONDS.load(Ordering::Relaxed))
}

/// Sets [`patience`].
pub fn set_patience(seconds: u64) {
    PATIENCE_SECONDS.store(seconds, Ordering::Relaxed);
}

/// Waits until `condition` holds.
///
/// # Errors
/// It does not within `limit`.
pub fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) -> Result<()> {
    let started = Instant::now();
    for turn in 0_u32.. {
        // Before the look: a thread that stood still for longer than the limit must not go without one.
        let elapsed = started.elapsed();
        if condition() {
            return Ok(());
        }
        if turn < EAGER {
            std::hint::spin_loop();
            continue;
        }
        if elapsed > limit {
            break;
        }
        if elapsed < YIELDING {
            thread::yield_now();
        } else {
            thread::sleep((elapsed / 16).clamp(NAPS.0, NAPS.1));
        }
    }
    bail!("nothing happened for {} s", limit.as_secs())
}
