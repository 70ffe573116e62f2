//! The user's terminal: raw while a guest has it, and restored however the run ends.

use std::io::Write;
use std::sync::OnceLock;

use parking_lot::Mutex;
use rustix::stdio::stdin;
use rustix::termios::{OptionalActions, OutputModes, Termios, isatty, tcgetattr, tcsetattr};

/// What to restore, if the terminal is raw. Also read by the panic hook.
static SAVED: OnceLock<Mutex<Option<Termios>>> = OnceLock::new();

fn saved() -> &'static Mutex<Option<Termios>> {
    SAVED.get_or_init(Mutex::default)
}

/// Standard input as a raw terminal, until dropped. Does nothing if it is no terminal.
pub(crate) struct RawTerminal;

impl RawTerminal {
    /// Makes the terminal raw: every key goes to the guest, nothing is echoed. Output is still processed, so that
    /// lines of our own come out straight.
    pub(crate) fn enter() -> Self {
        if isatty(stdin())
            && let Ok(before) = tcgetattr(stdin())
        {
            let mut raw = before.clone();
            raw.make_raw();
            raw.output_modes |= before.output_modes & (OutputModes::OPOST | OutputModes::ONLCR);
            *saved().lock() = Some(before);
            set(&raw);
        }
        Self
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts the terminal back as it was. May be called at any time, also more than once.
pub(crate) fn restore() {
    // Another thread that holds the lock is restoring, or panicked in here: then there is nothing to wait for.
    if let Some(mut saved) = saved().try_lock()
        && let Some(before) = saved.take()
    {
        set(&before);
    }
}

fn set(termios: &Termios) {
    if let Err(error) = tcsetattr(stdin(), OptionalActions::Now, termios) {
        log::warn!("terminal not set: {error}");
    }
}

/// Makes a panic, which would be a bug, restore the terminal and print one line.
pub(crate) fn install_panic_hook() {
    std::panic::set_hook(Box::new(|panic| {
        restore();
        let place =
            panic.location().map_or_else(String::new, |at| format!(" at {}:{}", at.file(), at.line()));
        let text = panic.payload_as_str().unwrap_or("panic").replace('\n', " ");
        // Standard error may be closed; there is nowhere else to say it.
        let _ = writeln!(std::io::stderr(), "svmm: internal error: {text}{place}; please report it");
    }));
}

/// What a key stroke is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// For the guest.
    Guest(u8),
    /// Leave.
    Leave,
}

/// Finds the escape sequences in what the user types: Ctrl-A x leaves, Ctrl-A Ctrl-A is one Ctrl-A for the guest.
#[derive(Debug, Default)]
pub(crate) struct Escapes {
    pending: bool,
}

const CTRL_A: u8 = 1;

impl Escapes {
    /// What one more byte means; nothing yet after the first Ctrl-A, or for an unknown sequence.
    pub(crate) fn next(&mut self, byte: u8) -> Option<Key> {
        match (std::mem::take(&mut self.pending), byte) {
            (true, b'x' | b'X') => Some(Key::Leave),
            (true, CTRL_A) => Some(Key::Guest(CTRL_A)),
            (true, _) => None,
            (false, CTRL_A) => {
                self.pending = true;
                None
            }
            (false, byte) => Some(Key::Guest(byte)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_found() {
        for (name, typed, expected) in [
            ("plain", &b"ax"[..], vec![Key::Guest(b'a'), Key::Guest(b'x')]),
            ("leave", b"a\x01x", vec![Key::Guest(b'a'), Key::Leave]),
            ("literal", b"\x01\x01x", vec![Key::Guest(1), Key::Guest(b'x')]),
            ("unknown", b"\x01qx", vec![Key::Guest(b'x')]),
        ] {
            let mut escapes = Escapes::default();
            let keys: Vec<_> = typed.iter().filter_map(|byte| escapes.next(*byte)).collect();
            assert_eq!(keys, expected, "{name}");
        }
    }
}
