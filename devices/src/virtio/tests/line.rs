//! Drivers that use no messages.

use super::rig::{BUFFERS, ISR, Rig, WITHOUT_EVENT_IDX, disk, reg, until};
use crate::pci::PciFunction;

const READ: u32 = 0;
const DATA: u64 = BUFFERS + 0x1000;
/// Command register: memory space and bus mastering, in its first byte; interrupts off, in its second.
const RUNS: u8 = 6;
const INTERRUPT_DISABLE: u8 = 4;
const STATUS: u16 = 6;
const PENDING: u8 = 1 << 3;

/// Messages off.
fn without_messages() -> Rig {
    let mut rig = Rig::cold(disk(), false);
    rig.bring_up(WITHOUT_EVENT_IDX);
    switch_messages(&rig, false);
    rig
}

fn switch_messages(rig: &Rig, on: bool) {
    let control = rig.capability(0x11, |_| true) + 2;
    rig.function.config_write(control, &[0, u8::from(on) << 7]);
}

fn request(rig: &mut Rig) {
    assert_eq!(rig.request(READ, 0, &[(DATA, 512, true)]), 0);
}

/// (asserted, the status register's bit)
fn line(rig: &Rig) -> (bool, bool) {
    (rig.line.is_asserted(), rig.config8(STATUS) & PENDING != 0)
}

#[test]
fn the_line_is_asserted_until_its_reason_is_read() {
    let mut rig = without_messages();
    assert_eq!((rig.config8(0x3d), line(&rig)), (1, (false, false)), "INTA");
    for _ in 0..3 {
        request(&mut rig);
        until("asserted", || line(&rig) == (true, true));
        assert_eq!((rig.read8(ISR), line(&rig)), (1, (false, false)));
        assert_eq!((rig.read8(ISR), line(&rig)), (0, (false, false)));
    }
    assert_eq!(rig.interrupts(), [0_u32; 0], "no message");
}

type Act = fn(&Rig);

/// (name, what keeps it down, the line then, what lets it up, the line then)
#[test]
fn switches_keep_the_line_down() {
    const OFF: Act = |rig| rig.function.config_write(4, &[RUNS, INTERRUPT_DISABLE]);
    const ON: Act = |rig| rig.function.config_write(4, &[RUNS, 0]);
    type Row = (&'static str, Act, (bool, bool), Act, (bool, bool));
    let rows: [Row; 4] = [
        ("switched off", OFF, (false, true), ON, (true, true)),
        (
            "messages",
            |rig| switch_messages(rig, true),
            (false, false),
            |rig| switch_messages(rig, false),
            (true, true),
        ),
        ("device reset", |rig| rig.write8(reg::STATUS, 0), (false, false), ON, (false, false)),
        ("function reset", |rig| rig.function.reset(), (false, false), ON, (false, false)),
    ];
    for (name, down, held, up, released) in rows {
        let mut rig = without_messages();
        request(&mut rig);
        until("asserted", || line(&rig) == (true, true));
        down(&rig);
        assert_eq!(line(&rig), held, "{name}");
        up(&rig);
        assert_eq!(line(&rig), released, "{name}, and no longer");
    }
}
