//! The locks and atomics that an IOMMU model is made of.
//!
//! These are parking_lot's locks and the standard library's atomics, under names of their own for one reason:
//! compiled with `--cfg shuttle` they are those of the shuttle scheduler, which runs a test under many
//! interleavings of its threads and can tell which one broke it. Nothing else changes, and an ordinary build does
//! not know shuttle.

use std::time::Instant;

#[cfg(not(shuttle))]
pub use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
#[cfg(not(shuttle))]
pub use std::sync::atomic;

#[cfg(shuttle)]
mod explored;
#[cfg(shuttle)]
pub use explored::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
#[cfg(shuttle)]
pub use shuttle::sync::atomic;

/// Unlocks; a thread that waits gets the lock before this one can take it again.
#[inline]
pub fn unlock_fair<T>(guard: MutexGuard<'_, T>) {
    #[cfg(not(shuttle))]
    MutexGuard::unlock_fair(guard);
    // The scheduler tries the unfair ones too.
    #[cfg(shuttle)]
    drop(guard);
}

/// Takes the lock, unless that takes longer than until `deadline`.
pub fn lock_until<T>(mutex: &Mutex<T>, deadline: Instant) -> Option<MutexGuard<'_, T>> {
    #[cfg(not(shuttle))]
    return mutex.try_lock_until(deadline);
    // The scheduler knows no time.
    #[cfg(shuttle)]
    {
        let _ = deadline;
        Some(mutex.lock())
    }
}
