//! The cases, by subject.

mod access;
mod invalidation;
mod planned;
mod removal;
mod request;

use anyhow::Result;

use crate::bench::Bench;

pub(crate) use guest::program::Needs;

/// One case.
pub(crate) type Case = guest::program::Case<fn(&mut Bench<'_>) -> Result<()>>;

/// All cases, in the order in which they run.
pub(crate) fn all() -> Vec<Case> {
    [invalidation::CASES, request::CASES, access::CASES, removal::CASES].concat()
}

/// The cases about what is on from power-on on.
pub(crate) fn planned() -> Vec<Case> {
    planned::CASES.to_vec()
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_are_unique_and_plain() {
        assert_eq!(guest::program::bad_name(&[super::all(), super::planned()].concat()), None);
    }
}
