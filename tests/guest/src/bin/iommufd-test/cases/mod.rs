//! The cases, by subject.

mod churn;
mod dirty;
mod fault;
mod host;
mod invalidate;
mod nested;
mod reset;
mod second_stage;

use anyhow::Result;

use crate::bench::Bench;

pub(crate) use guest::program::Needs;

/// One case.
pub(crate) type Case = guest::program::Case<fn(&mut Bench<'_>) -> Result<()>>;

/// All cases, in the order in which they run.
pub(crate) fn all() -> Vec<Case> {
    [
        host::CASES,
        churn::CASES,
        second_stage::CASES,
        nested::CASES,
        invalidate::CASES,
        fault::CASES,
        dirty::CASES,
        reset::CASES,
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_are_unique_and_plain() {
        assert_eq!(guest::program::bad_name(&super::all()), None);
    }
}
