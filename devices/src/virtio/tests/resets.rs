//! Resets and bus mastering while the device is at work.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use parking_lot::Mutex;

use super::rig::{BUFFERS, Rig, disk, until};
use crate::pci::PciFunction;
use crate::virtio::blk::{Disk, MemoryDisk};

const DATA: u64 = BUFFERS + 0x1000;

/// Says when a read begins, and waits to be let go.
struct Slow {
    inner: MemoryDisk,
    begun: Sender<()>,
    go: Receiver<()>,
}

impl Disk for Slow {
    fn len(&self) -> u64 {
        self.inner.len()
    }
    fn read(&mut self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        // Whoever is gone does not want to hold it up either.
        let _ = self.begun.send(());
        let _ = self.go.recv();
        self.inner.read(offset, data)
    }
    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.inner.write(offset, data)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn discard(&mut self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
}

fn slow() -> (Slow, Receiver<()>, Sender<()>) {
    let ((begun, has_begun), (let_go, go)) = (channel(), channel());
    (Slow { inner: disk(), begun, go }, has_begun, let_go)
}

type Reset = fn(&Rig);

const RESETS: [(&str, Reset); 3] = [
    ("status", |rig| rig.write8(super::rig::reg::STATUS, 0)),
    ("function-level", |rig| {
        let express = rig.capability(0x10, |_| true);
        rig.function.config_write(express + 8, &[0, 0x80]);
    }),
    ("conventional", |rig| rig.function.reset()),
];

/// The reset does not wait for the disk, and what the disk does afterwards leaves no trace in memory.
#[test]
fn a_reset_ends_what_is_under_way() {
    for (name, reset) in RESETS {
        let (disk, begun, go) = slow();
        let mut rig = Rig::with(disk, false);
        let buffers = rig.prepare(0, 3, &[(DATA, 512, true)]);
        rig.submit(&buffers);
        begun.recv_timeout(Duration::from_secs(20)).unwrap();
        reset(&rig);
        assert_eq!((rig.status(), rig.read16(super::rig::reg::ENABLE)), (0, 0), "{name}");
        go.send(()).unwrap();
        // The next request finds a worker that is done with the last one.
        rig.bring_up(u64::MAX);
        go.send(()).unwrap();
        assert_eq!(rig.request(0, 4, &[(DATA + 0x1000, 512, true)]), 0, "{name}");
        assert_eq!(rig.peek(DATA, 512), [0; 512], "{name}: data of a request before the reset");
        assert_eq!(rig.used_index(), 1, "{name}");
        until("the interrupt of a used buffer", || rig.interrupts().contains(&1));
    }
}

/// A session that is open when the reset comes is over when the reset returns.
#[test]
fn a_reset_waits_for_an_open_session() {
    for (name, reset) in RESETS {
        let mut rig = Rig::new();
        let ((entered, has_entered), (let_go, go)) = (channel(), channel::<()>());
        let go = Mutex::new(go);
        *rig.on_translate.lock() = Some(Box::new(move |request| {
            if request.address.0 & !0xfff == DATA {
                let _ = entered.send(());
                let _ = go.lock().recv();
            }
        }));
        let buffers = rig.prepare(0, 3, &[(DATA, 512, true)]);
        rig.submit(&buffers);
        has_entered.recv_timeout(Duration::from_secs(20)).unwrap();
        std::thread::scope(|scope| {
            let resetting = scope.spawn(|| reset(&rig));
            std::thread::sleep(Duration::from_millis(30));
            assert!(!resetting.is_finished(), "{name}: a session is open");
            let_go.send(()).unwrap();
        });
        *rig.on_translate.lock() = None;
        assert_eq!(rig.peek(DATA, 512), super::rig::sector(3), "{name}: the session was let end");
        assert_eq!(rig.peek(BUFFERS + 0x100, 1), [0xff], "{name}: and nothing followed it");
        rig.assert_recovers();
    }
}

/// Two of the resets switch bus mastering off.
#[test]
fn a_function_reset_takes_bus_mastering_back() {
    for (name, reset) in &RESETS[1..] {
        let mut rig = Rig::new();
        reset(&rig);
        rig.start(u64::MAX);
        let buffers = rig.prepare(0, 3, &[(DATA, 512, true)]);
        rig.submit(&buffers);
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!((rig.used_index(), rig.status()), (0, 0xf), "{name}");
        rig.function.config_write(4, &[6, 0]);
        rig.wait();
    }
}

#[test]
fn without_bus_mastering_the_device_waits() {
    let (disk, begun, go) = slow();
    let mut rig = Rig::with(disk, false);
    let buffers = rig.prepare(0, 3, &[(DATA, 512, true)]);
    rig.submit(&buffers);
    begun.recv_timeout(Duration::from_secs(20)).unwrap();
    rig.function.config_write(4, &[2, 0]);
    go.send(()).unwrap();
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!((rig.used_index(), rig.peek(DATA, 512)), (0, vec![0; 512]));
    rig.function.config_write(4, &[6, 0]);
    rig.wait();
    assert_eq!(rig.peek(DATA, 512), super::rig::sector(3));
}

#[test]
fn a_device_that_waits_can_be_reset_and_dropped() {
    let mut rig = Rig::new();
    rig.function.config_write(4, &[2, 0]);
    let buffers = rig.prepare(0, 3, &[(DATA, 512, true)]);
    rig.submit(&buffers);
    rig.write8(super::rig::reg::STATUS, 0);
    rig.assert_recovers();
    rig.function.config_write(4, &[2, 0]);
    let buffers = rig.prepare(0, 3, &[(DATA, 512, true)]);
    rig.submit(&buffers);
    drop(rig);
}

#[test]
fn notifications_to_a_device_that_does_not_run_are_ignored() {
    let mut rig = Rig::cold(disk(), false);
    rig.kick();
    rig.function.bar_write(0, super::rig::NOTIFY + 0xffc, &[0; 4]);
    rig.assert_recovers();
    rig.write8(super::rig::reg::STATUS, 0);
    let buffers = rig.prepare(0, 3, &[(DATA, 512, true)]);
    rig.submit(&buffers);
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!((rig.used_index(), rig.status()), (1, 0), "the rings of before the reset are forgotten");
}

/// The port's cache is the IOMMU's: after an invalidation nothing is done by the old translation.
#[test]
fn an_invalidation_takes_effect() {
    let mut rig = Rig::new();
    assert_eq!(rig.request(0, 1, &[(DATA, 512, true)]), 0);
    let old = rig.gpa(DATA);
    rig.map_to(DATA, 0x3f_0000, true);
    assert_eq!(rig.request(0, 2, &[(DATA, 512, true)]), 0);
    assert_eq!(rig.peek(DATA, 512), super::rig::sector(2));
    rig.map_to(DATA, old, true);
    assert_eq!(rig.peek(DATA, 512), super::rig::sector(1));
    until("quiet", || rig.status() == 0xf);
}
