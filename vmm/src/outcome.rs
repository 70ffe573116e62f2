//! How a run ends, and the exit code that tells it.

use std::fmt;
use std::process::ExitCode;
use std::sync::OnceLock;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Exit code of wrong usage, and of an environment that cannot run a guest.
pub(crate) const USAGE: u8 = 2;
/// The exit port's status `n`, 1 to [`STATUS_MAX`], is exit code `STATUS_BASE + n`; status 0 is 0.
const STATUS_BASE: u8 = 64;
/// Greater statuses count as this one, so that codes stay below 128, where shells report signals.
const STATUS_MAX: u8 = 63;

/// The table of exit codes, as the help prints it.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0       guest powered off, or wrote status 0 to the exit port
  1       the run failed on the host's side (KVM error)
  2       wrong usage or environment; nothing was run
  3       guest asked for a reset
  4       guest reported a panic
  5       triple fault
  6       stopped from outside: Ctrl-A x, SIGINT, SIGTERM, SIGHUP
  64+N    guest wrote status N to the exit port, N = 1 to 63 (greater ones count as 63)";

/// Why the machine stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The guest powered itself off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest reported that it panicked.
    Panic,
    /// The guest's CPU shut down.
    TripleFault,
    /// A guest's program wrote its status to the exit port.
    Status(u8),
    /// The user or a signal ended the run.
    Stopped,
    /// The host could not go on.
    HostFailure(String),
}

impl Outcome {
    /// The process exit code.
    pub(crate) fn code(&self) -> u8 {
        match *self {
            Self::PowerOff | Self::Status(0) => 0,
            Self::HostFailure(_) => 1,
            Self::Reset => 3,
            Self::Panic => 4,
            Self::TripleFault => 5,
            Self::Stopped => 6,
            Self::Status(status) => STATUS_BASE + status.min(STATUS_MAX),
        }
    }
}

impl From<&Outcome> for ExitCode {
    fn from(outcome: &Outcome) -> Self {
        Self::from(outcome.code())
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("guest powered off"),
            Self::Reset => f.write_str("guest asked for a reset"),
            Self::Panic => f.write_str("guest panicked"),
            Self::TripleFault => f.write_str("triple fault"),
            Self::Status(status) => write!(f, "guest program ended with status {status}"),
            Self::Stopped => f.write_str("stopped from outside"),
            Self::HostFailure(reason) => write!(f, "the host could not go on: {reason}"),
        }
    }
}

/// Where whoever ends the run says so: the first reason counts. Shared by vCPUs, devices and the event loop.
pub(crate) struct Ending {
    first: OnceLock<Outcome>,
    event: EventFd,
}

impl Ending {
    /// # Errors
    /// The host has no event fd left.
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self { first: OnceLock::new(), event: EventFd::new(EFD_NONBLOCK)? })
    }

    /// Ends the run; later reasons are dropped.
    pub(crate) fn request(&self, outcome: Outcome) {
        if self.first.set(outcome).is_ok() {
            // Fails only if the counter is full: then it is readable already.
            let _ = self.event.write(1);
        }
    }

    /// Why the run ends, once it does.
    pub(crate) fn outcome(&self) -> Option<&Outcome> {
        self.first.get()
    }

    /// Becomes readable when the run ends, and stays so.
    pub(crate) fn event(&self) -> &EventFd {
        &self.event
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn different_ends_have_different_codes() {
        let mut ends = vec![
            Outcome::PowerOff,
            Outcome::Reset,
            Outcome::Panic,
            Outcome::TripleFault,
            Outcome::Stopped,
            Outcome::HostFailure(String::new()),
        ];
        ends.extend((1..=STATUS_MAX).map(Outcome::Status));
        let codes: HashSet<u8> = ends.iter().map(Outcome::code).collect();
        assert_eq!(codes.len(), ends.len());
        assert!(!codes.contains(&USAGE));
        assert!(codes.iter().all(|code| *code < 128));
        assert_eq!(Outcome::Status(0).code(), 0);
        assert_eq!(Outcome::Status(255).code(), 127);
    }

    #[test]
    fn the_first_reason_counts() {
        let ending = Ending::new().unwrap();
        assert_eq!(ending.outcome(), None);
        ending.request(Outcome::TripleFault);
        ending.request(Outcome::PowerOff);
        assert_eq!(ending.outcome(), Some(&Outcome::TripleFault));
        assert_eq!(ending.event().read().unwrap(), 1);
    }
}
