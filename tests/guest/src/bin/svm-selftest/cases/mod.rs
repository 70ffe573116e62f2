//! The cases, by subject.

mod ahead;
mod batch;
mod bind;
mod command;
mod crowd;
mod fault;
mod huge;
mod kinds;
mod operation;
mod paging;
mod process;
mod queue;
mod reclaim;
mod soak;
mod trouble;
mod unbind;
mod userfault;

use anyhow::Result;

use crate::bench::Bench;

pub(crate) use process::run_child;

pub(crate) use guest::program::Needs;

/// One case.
pub(crate) type Case = guest::program::Case<fn(&mut Bench<'_>) -> Result<()>>;

/// All cases, in the order in which they run.
pub(crate) fn all() -> Vec<Case> {
    [
        bind::CASES,
        operation::CASES,
        paging::CASES,
        kinds::CASES,
        huge::CASES,
        reclaim::CASES,
        userfault::CASES,
        fault::CASES,
        queue::CASES,
        batch::CASES,
        command::CASES,
        ahead::CASES,
        unbind::CASES,
        process::CASES,
        crowd::CASES,
        trouble::CASES,
        soak::CASES,
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
