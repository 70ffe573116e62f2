use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::time::Duration;

use super::*;

/// Remembers what it was told, and complains of a level told twice.
#[derive(Default)]
struct Told {
    level: AtomicBool,
    times: AtomicU8,
}

impl IrqLine for Told {
    fn set(&self, asserted: bool) {
        assert_ne!(self.level.swap(asserted, Ordering::AcqRel), asserted, "told of no change");
        self.times.fetch_add(1, Ordering::AcqRel);
    }
}

fn line() -> (Intx, Arc<Told>) {
    let told = Arc::new(Told::default());
    (Intx::new(told.clone()), told)
}

/// (name, what happens, asserted, the status register's bit, how often the line is told)
#[test]
fn reasons_and_switches_make_the_level() {
    type Step = fn(&Intx);
    const RAISE: Step = |line| line.set_pending(true);
    const LOWER: Step = |line| line.set_pending(false);
    const OPEN: Step = |line| line.set_switches(false, false);
    const DISABLE: Step = |line| line.set_switches(true, false);
    const MESSAGES: Step = |line| line.set_switches(false, true);
    const BOTH: Step = |line| line.set_switches(true, true);
    const RESET: Step = Intx::reset;
    let rows: [(&str, &[Step], bool, bool, u8); 13] = [
        ("power on", &[], false, false, 0),
        ("a reason", &[RAISE], true, true, 1),
        ("a reason twice", &[RAISE, RAISE], true, true, 1),
        ("no reason any more", &[RAISE, LOWER], false, false, 2),
        ("disabled", &[RAISE, DISABLE], false, true, 2),
        ("a reason while disabled", &[DISABLE, RAISE], false, true, 0),
        ("enabled again", &[DISABLE, RAISE, OPEN], true, true, 1),
        ("messages", &[RAISE, MESSAGES], false, false, 2),
        ("a reason while there are messages", &[MESSAGES, RAISE], false, false, 0),
        ("messages off again", &[MESSAGES, RAISE, OPEN], true, true, 1),
        ("messages off, still disabled", &[BOTH, RAISE, DISABLE], false, true, 0),
        ("gone before messages are off", &[MESSAGES, RAISE, LOWER, OPEN], false, false, 0),
        ("reset", &[DISABLE, RAISE, OPEN, RESET], false, false, 2),
    ];
    for (name, steps, asserted, pending, times) in rows {
        let (intx, told) = line();
        steps.iter().for_each(|step| step(&intx));
        let found =
            (told.level.load(Ordering::Acquire), intx.is_pending(), told.times.load(Ordering::Acquire));
        assert_eq!(found, (asserted, pending, times), "{name}");
    }
}

/// Whoever comes last, in the end the line knows what is the case.
#[test]
fn changes_at_once_end_in_the_right_level() {
    for round in 0..200 {
        let (intx, told) = line();
        std::thread::scope(|scope| {
            scope.spawn(|| (0..50).for_each(|n| intx.set_pending(n % 2 == round % 2)));
            scope.spawn(|| (0..50).for_each(|n| intx.set_switches(n % 3 == 0, n % 5 == round % 5)));
        });
        let state = intx.state.load(Ordering::Acquire);
        assert_eq!(told.level.load(Ordering::Acquire), is_asserted(state), "round {round}: {state:#b}");
    }
}

/// With the line kept down, an interrupt waits for nobody who is telling the line.
#[test]
fn with_messages_an_interrupt_takes_no_lock() {
    let (intx, _) = line();
    intx.set_switches(false, true);
    std::thread::scope(|scope| {
        let _held = intx.told.lock();
        let (done, is_done) = mpsc::channel();
        let intx = &intx;
        scope.spawn(move || {
            intx.set_pending(true);
            intx.set_pending(false);
            done.send(())
        });
        assert_eq!(is_done.recv_timeout(Duration::from_secs(60)), Ok(()));
    });
}
