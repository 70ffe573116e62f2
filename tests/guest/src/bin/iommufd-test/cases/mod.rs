//! The cases, by subject.

mod dirty;
mod fault;
mod host;
mod invalidate;
mod nested;
mod reset;
mod second_stage;

use anyhow::Result;

use crate::bench::Bench;

/// Whether a case can pass when the endpoint has no PRI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Works on what is mapped, or wants its faults reported at once.
    Translation,
    /// Needs page requests.
    PageRequests,
}

/// One case.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    /// Its one name.
    pub(crate) name: &'static str,
    /// What it needs of the endpoint.
    pub(crate) needs: Needs,
    /// Whether the kernel has reason to log a DMAR fault meanwhile.
    pub(crate) provokes: bool,
    /// The case itself.
    pub(crate) run: fn(&mut Bench<'_>) -> Result<()>,
}

impl Case {
    const fn new(name: &'static str, needs: Needs, run: fn(&mut Bench<'_>) -> Result<()>) -> Self {
        Self { name, needs, provokes: false, run }
    }

    const fn provoking(mut self) -> Self {
        self.provokes = true;
        self
    }
}

/// All cases, in the order in which they run.
pub(crate) fn all() -> Vec<Case> {
    [
        host::CASES,
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
    use super::*;

    #[test]
    fn names_are_unique_and_plain() {
        let mut names: Vec<&str> = all().iter().map(|case| case.name).collect();
        let plain = |name: &&str| {
            name.bytes().all(|byte| byte.is_ascii_lowercase() || b"-0123456789".contains(&byte))
        };
        assert!(names.iter().all(plain));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
