//! Warnings that a guest can bring about as often as it likes, where the host does not go along.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};

use iommu_core::SourceId;

/// More than this of one function are for debugging.
const LOUD: u32 = 8;

/// Those of one function, or of a part of it.
pub(super) struct Warnings {
    source: SourceId,
    said: AtomicU32,
}

impl Warnings {
    pub(super) fn new(source: SourceId) -> Self {
        Self { source, said: AtomicU32::new(0) }
    }

    /// Logs one; whether it was a warning.
    pub(super) fn say(&self, what: fmt::Arguments<'_>) -> bool {
        let more = |said: u32| Some(said.saturating_add(1));
        let said = self.said.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).unwrap_or(LOUD);
        let loud = said < LOUD;
        if loud {
            log::warn!("{}: {what}", self.source);
        } else {
            log::debug!("{}: {what}", self.source);
        }
        loud
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_few_are_loud() {
        let warnings = Warnings::new(SourceId(8));
        let loud = (0..100).filter(|number| warnings.say(format_args!("{number}"))).count();
        assert_eq!(loud, 8);
    }
}
