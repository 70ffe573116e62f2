//! What a function's interrupts and notices arrive by, as one file to wait for.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

/// Whose event it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// A vector: table and number.
    Vector(u16, u16),
    /// The interrupt line.
    Line,
    /// The device reported an error.
    Error,
    /// The host wants it back.
    Request,
}

impl Token {
    fn to_raw(self) -> u64 {
        match self {
            Self::Vector(table, vector) => u64::from(table) << 16 | u64::from(vector),
            Self::Error => 1 << 32,
            Self::Request => 1 << 33,
            Self::Line => 1 << 34,
        }
    }

    fn from_raw(raw: u64) -> Self {
        let [v0, v1, t0, t1, notice, ..] = raw.to_le_bytes();
        match notice {
            0 => Self::Vector(u16::from_le_bytes([t0, t1]), u16::from_le_bytes([v0, v1])),
            1 => Self::Error,
            2 => Self::Request,
            _ => Self::Line,
        }
    }
}

/// Events to wait for. One that is closed is waited for no longer.
pub(super) struct Events(Epoll);

/// Events that are looked at in one go; the others are found by the next.
const AT_ONCE: usize = 32;

impl Events {
    pub(super) fn new() -> io::Result<Self> {
        Epoll::new().map(Self)
    }

    pub(super) fn add(&self, event: &EventFd, token: Token) -> io::Result<()> {
        let wanted = EpollEvent::new(EventSet::IN, token.to_raw());
        self.0.ctl(ControlOperation::Add, event.as_raw_fd(), wanted)
    }

    /// What has happened, without waiting.
    pub(super) fn happened(&self) -> Vec<Token> {
        let mut events = [EpollEvent::default(); AT_ONCE];
        let count = self.0.wait(0, &mut events).unwrap_or(0);
        events[..count].iter().map(|event| Token::from_raw(event.data())).collect()
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
