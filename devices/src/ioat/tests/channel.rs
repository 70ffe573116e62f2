//! The state of a channel by itself: no memory, no thread.

use crate::ioat::spec::Register::{ChainAddress, Command, Control, Count, Error, Status};
use crate::ioat::spec::{CHANNEL_BYTES, REGISTERS, Register, TransferStatus, command};
use crate::ioat::state::{Completion, Effects, State};
use TransferStatus::{Active, Done, Halted, Suspended};

const ALL: u64 = u64::MAX;

fn set(state: &mut State, register: Register, value: u64) -> Effects {
    state.write(register, value, ALL)
}

/// What happens to a channel, in one word each.
#[derive(Clone, Copy, Debug)]
enum Event {
    Begin,
    Count(u16),
    Command(u8),
    /// The worker takes a descriptor.
    Take,
    /// ... and has done what it took last.
    Complete,
    /// ... or could not.
    Fail,
    /// The driver clears all errors.
    Clear,
}

/// (name, events, status afterwards, descriptors done by them)
#[test]
fn commands_and_counts_lead_from_status_to_status() {
    use Event::{Begin, Clear, Command as Do, Complete, Count as Want, Fail, Take};
    const SUSPEND: Event = Do(command::SUSPEND);
    const RESET: Event = Do(command::RESET);
    const ABORT: Event = Do(command::ABORT);
    const RESUME: Event = Do(command::RESUME);
    let rows: &[(&str, &[Event], TransferStatus, u16)] = &[
        ("power on", &[], Halted, 0),
        ("a chain alone", &[Begin], Halted, 0),
        ("nothing wanted", &[Begin, Want(0)], Halted, 0),
        ("wanted", &[Begin, Want(1)], Active, 0),
        ("done", &[Begin, Want(1), Take, Complete], Done, 1),
        ("not all done", &[Begin, Want(2), Take, Complete], Active, 1),
        ("more after all", &[Begin, Want(1), Take, Complete, Want(2), Take, Complete], Done, 2),
        ("the count wraps", &[Begin, Want(1), Take, Complete, Want(0)], Active, 1),
        ("one at a time", &[Begin, Want(2), Take, Take, Complete], Active, 1),
        ("reset", &[Begin, Want(1), RESET], Halted, 0),
        ("reset under way", &[Begin, Want(1), Take, RESET, Complete], Halted, 0),
        ("abort under way", &[Begin, Want(1), Take, ABORT, Complete], Halted, 0),
        ("abort and a new chain", &[Begin, Want(1), Take, ABORT, Begin, Want(1), Complete], Active, 0),
        ("a new chain under way", &[Begin, Want(2), Take, Begin, Complete], Done, 0),
        ("a new chain with more", &[Begin, Want(2), Take, Begin, Want(1), Take, Complete], Done, 1),
        ("suspended when done", &[Begin, Want(1), Take, Complete, SUSPEND], Suspended, 1),
        ("suspended before work", &[Begin, Want(1), SUSPEND, Take], Suspended, 0),
        ("suspended under way: not yet", &[Begin, Want(2), Take, SUSPEND], Active, 0),
        ("suspended under way", &[Begin, Want(2), Take, SUSPEND, Complete], Suspended, 1),
        ("halted is not suspended", &[SUSPEND], Halted, 0),
        ("resumed", &[Begin, Want(2), Take, SUSPEND, Complete, RESUME, Take, Complete], Done, 2),
        ("resumed with nothing to do", &[Begin, Want(1), Take, SUSPEND, Complete, RESUME], Done, 1),
        ("halted is not resumed", &[RESUME], Halted, 0),
        ("a count ends suspension", &[Begin, Want(1), Take, Complete, SUSPEND, Begin, Want(1)], Active, 1),
        ("failed", &[Begin, Want(2), Take, Fail], Halted, 0),
        ("a count does not end an error", &[Begin, Want(2), Take, Fail, Begin, Want(1)], Halted, 0),
        ("cleared", &[Begin, Want(2), Take, Fail, Clear, Begin, Want(1), Take, Complete], Done, 1),
        ("failed after reset", &[Begin, Want(2), Take, RESET, Fail], Halted, 0),
        ("fewer than before", &[Begin, Want(2), Want(0)], Done, 0),
        ("unknown commands", &[Begin, Want(1), Do(0x43)], Active, 0),
    ];
    for (name, events, status, expected) in rows {
        let mut state = State::default();
        let (mut work, mut done) = (None, 0);
        for event in *events {
            match *event {
                Begin => _ = set(&mut state, ChainAddress, 0x1000),
                Want(count) => _ = set(&mut state, Count, count.into()),
                Do(bits) => _ = set(&mut state, Command, bits.into()),
                Take => work = state.take().or(work),
                Complete => {
                    done += u16::from(state.wants(&work.unwrap()));
                    state.complete(&work.unwrap(), 0x1000, false);
                }
                Fail => _ = state.fail(&work.unwrap(), 0x100),
                Clear => _ = set(&mut state, Error, ALL),
            }
        }
        assert_eq!((state.status(), done), (*status, *expected), "{name}");
    }
}

/// What is told of a descriptor is its address and what comes next.
#[test]
fn completions_tell_address_and_status() {
    let mut state = State::default();
    set(&mut state, Register::CompletionAddress, 0x2007);
    set(&mut state, ChainAddress, 0x1000);
    set(&mut state, Count, 3);
    for (next, status) in [(0x1040, Active), (0x1080, Active), (0x10c0, Done)] {
        let work = state.take().unwrap();
        let value = work.address | status as u64;
        assert_eq!(state.completion(&work), Completion { address: 0x2000, value }, "{status:?}");
        state.complete(&work, next, false);
        assert_eq!(state.read(Status), value);
        assert_eq!(state.read(Register::Current), work.address);
    }
    set(&mut state, Count, 4);
    let work = state.take().unwrap();
    assert_eq!((work.address, work.first), (0x10c0, false));
    let failure = state.fail(&work, 0x100);
    assert_eq!((failure.completion, failure.interrupt), (None, false), "nobody asked to be told");
    assert_eq!((state.read(Status), state.read(Error)), (0x1083, 0x100));
}

/// An interrupt that comes before the last one was taken note of is sent when it was.
#[test]
fn no_interrupt_is_lost() {
    let mut state = State::default();
    set(&mut state, ChainAddress, 0x1000);
    set(&mut state, Count, 4);
    let one = |state: &mut State| {
        let work = state.take().unwrap();
        state.complete(&work, 0x1000, true)
    };
    assert!(one(&mut state));
    assert_eq!(state.read(Control) & 1, 1);
    assert!(!one(&mut state) && !one(&mut state), "not twice before it is taken note of");
    assert!(!state.write(Control, 0x10, 0xff).interrupt, "a 0 takes no note");
    assert!(set(&mut state, Control, 0x11).interrupt, "two become one");
    assert!(!set(&mut state, Control, 0x11).interrupt);
    assert!(one(&mut state));
    // Errors, for which one has to ask.
    set(&mut state, Control, 0x15);
    set(&mut state, Count, 5);
    let work = state.take().unwrap();
    let failure = state.fail(&work, 0x200);
    assert!(failure.interrupt && failure.completion.is_some());
}

/// Bits that are not written stay; bits that do not exist are not kept.
#[test]
fn registers_keep_what_they_have_room_for() {
    let rows = [
        (Control, 0x1c),
        (Command, 0),
        (Count, 0xffff),
        (Status, 0x3),
        (ChainAddress, ALL),
        (Register::CompletionAddress, ALL & !7),
        (Register::Current, 0),
        (Error, 0),
        (Register::ErrorMask, 0xffff_ffff),
        (Register::CacheHints, 0xffff_ffff),
    ];
    assert_eq!(rows.len(), REGISTERS.len());
    for (register, expected) in rows {
        let mut state = State::default();
        set(&mut state, register, if register == Command { 0 } else { ALL });
        assert_eq!(state.read(register), expected, "{register:?}");
        let before = state.read(register);
        state.write(register, 0, 0);
        assert_eq!(state.read(register), before, "{register:?}: nothing written");
    }
    assert_eq!(State::default().image().len(), CHANNEL_BYTES);
}
