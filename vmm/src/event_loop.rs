//! What the main thread does while the guest runs: keyboard, signals, the end.

use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::sync::{Arc, OnceLock};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use rustix::stdio::stdin;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::signal::register_signal_handler;

use crate::outcome::{Ending, Outcome};
use crate::terminal::{Escapes, Key};
use crate::vfio::served::Served;

/// Takes bytes from the front; how many.
pub(crate) type Enqueue = Box<dyn FnMut(&[u8]) -> usize + Send>;

/// Where what the user types goes.
pub(crate) struct Keyboard {
    /// What it does not take is offered again when `room` is signalled.
    pub(crate) enqueue: Enqueue,
    /// Signalled when more can be taken.
    pub(crate) room: Arc<EventFd>,
}

/// The event loop failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// No event fd or epoll.
    #[error("event loop")]
    Events(#[from] event_manager::Error),
    /// No signal handler.
    #[error("signals")]
    Signals(#[source] std::io::Error),
}

/// Signals that end the run.
const FATAL: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];
/// Written by the handler of those.
static SIGNALLED: OnceLock<EventFd> = OnceLock::new();

extern "C" fn on_fatal_signal(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // Only looks up a value and writes to a file: allowed in a signal handler.
    if let Some(event) = SIGNALLED.get() {
        let _ = event.write(1);
    }
}

/// Makes signals that would end the process end the run instead. From here on; call it before anything that has
/// to be undone.
///
/// # Errors
/// The host refused.
pub(crate) fn catch_signals() -> Result<(), Error> {
    let event = EventFd::new(EFD_NONBLOCK).map_err(Error::Signals)?;
    SIGNALLED.get_or_init(|| event);
    for signal in FATAL {
        register_signal_handler(signal, on_fatal_signal).map_err(|error| Error::Signals(error.into()))?;
    }
    Ok(())
}

/// Bytes typed ahead that are kept for the guest; beyond, the keyboard waits.
const TYPE_AHEAD: usize = 4096;

/// Serves events until the run ends; why it did.
///
/// # Errors
/// The host cannot wait for events.
pub(crate) fn run(
    ending: &Arc<Ending>,
    keyboard: Option<Keyboard>,
    served: Vec<Served>,
) -> Result<Outcome, Error> {
    let mut manager = EventManager::<Subscriber>::new()?;
    manager.add_subscriber(Subscriber::End(ending.clone()));
    if SIGNALLED.get().is_some() {
        manager.add_subscriber(Subscriber::Signals(ending.clone()));
    }
    if let Some(keyboard) = keyboard {
        let (escapes, waiting) = (Escapes::default(), VecDeque::new());
        let input = Input { keyboard, escapes, waiting, ending: ending.clone() };
        manager.add_subscriber(Subscriber::Input(input));
    }
    for it in served {
        manager.add_subscriber(Subscriber::Served(it));
    }
    loop {
        if let Some(outcome) = ending.outcome() {
            return Ok(outcome.clone());
        }
        match manager.run() {
            Ok(_) => {}
            Err(event_manager::Error::Epoll(error)) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whom events are for.
enum Subscriber {
    End(Arc<Ending>),
    Signals(Arc<Ending>),
    Input(Input),
    Served(Served),
}

impl MutEventSubscriber for Subscriber {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match self {
            // The loop looks at the outcome itself.
            Self::End(_) => {}
            Self::Signals(ending) => ending.request(Outcome::Stopped),
            Self::Input(input) if events.fd() == input.keyboard.room.as_raw_fd() => {
                // Fails only if somebody else took the count, and nobody does.
                let _ = input.keyboard.room.read();
                input.offer();
            }
            Self::Served(it) => {
                if !it.serve() {
                    let _ = ops.remove(events);
                }
            }
            Self::Input(input) => {
                if !input.read() {
                    // Nothing more will come; the guest runs on.
                    let _ = ops.remove(events);
                }
            }
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let added = match self {
            Self::End(ending) => ops.add(Events::new(ending.event(), EventSet::IN)),
            Self::Signals(_) => match SIGNALLED.get() {
                Some(event) => ops.add(Events::new(event, EventSet::IN)),
                None => Ok(()),
            },
            Self::Served(it) => ops.add(Events::new(it, EventSet::IN)),
            Self::Input(input) => ops
                .add(Events::new(&*input.keyboard.room, EventSet::IN))
                .and_then(|()| ops.add(Events::new(&stdin(), EventSet::IN))),
        };
        if let Err(error) = added {
            // Standard input that is a file or /dev/null cannot be waited for: such a guest gets no input.
            log::debug!("not waited for: {error}");
        }
    }
}

/// The keyboard's side.
struct Input {
    keyboard: Keyboard,
    escapes: Escapes,
    waiting: VecDeque<u8>,
    ending: Arc<Ending>,
}

impl Input {
    /// Takes what was typed. False at the end of input.
    fn read(&mut self) -> bool {
        let mut typed = [0; 256];
        let room = (TYPE_AHEAD - self.waiting.len().min(TYPE_AHEAD)).min(typed.len());
        // With no room, one byte is still read: the escape sequence has to work when the guest hangs.
        let count = match rustix::io::read(stdin(), &mut typed[..room.max(1)]) {
            Ok(0) => return false,
            Ok(count) => count,
            Err(error) => return matches!(error, rustix::io::Errno::INTR | rustix::io::Errno::AGAIN),
        };
        for byte in &typed[..count] {
            match self.escapes.next(*byte) {
                Some(Key::Leave) => self.ending.request(Outcome::Stopped),
                Some(Key::Guest(byte)) if self.waiting.len() < TYPE_AHEAD => self.waiting.push_back(byte),
                Some(Key::Guest(_)) | None => {}
            }
        }
        self.offer();
        true
    }

    /// Offers the guest what waits.
    fn offer(&mut self) {
        let waiting = self.waiting.make_contiguous();
        if !waiting.is_empty() {
            let taken = (self.keyboard.enqueue)(waiting).min(waiting.len());
            self.waiting.drain(..taken);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loop_ends_with_the_first_outcome() {
        let ending = Arc::new(Ending::new().unwrap());
        let other = ending.clone();
        let thread = std::thread::spawn(move || other.request(Outcome::Status(3)));
        assert_eq!(run(&ending, None, vec![]).unwrap(), Outcome::Status(3));
        thread.join().unwrap();
    }
}
