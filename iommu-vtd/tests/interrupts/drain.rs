//! An invalidation waits for deliveries that are under way (§6.5.4).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use iommu_core::{InterruptRemapper, Msi, MsiSink, SourceId};
use parking_lot::Mutex;

use crate::bench::{ALL, Bench, IRE, SOURCE, entry, profile, to_entry};

/// Says that a message is here, and holds it until it is let go.
struct Slow {
    arrived: Mutex<Sender<Msi>>,
    release: Mutex<Receiver<()>>,
}

impl MsiSink for Slow {
    fn send(&self, _: SourceId, msi: Msi) {
        self.arrived.lock().send(msi).unwrap();
        self.release.lock().recv().unwrap();
    }
}

type Step = fn(&Bench);

#[test]
fn nothing_old_arrives_after_the_change_is_done() {
    let rows: [(&str, Step); 3] = [
        ("invalidation", Bench::kick),
        ("remapping off", |bench| bench.command(0)),
        ("new table", |bench| bench.set_table(crate::bench::OTHER_TABLE | 0xf, IRE)),
    ];
    for (name, step) in rows {
        let bench = Arc::new(Bench::on(&profile(), true));
        bench.set_entry(1, entry(0x31, 3));
        bench.prepare(ALL, IRE);
        let ((arrived, hears), (lets_go, release)) = (channel(), channel());
        let slow = Slow { arrived: Mutex::new(arrived), release: Mutex::new(release) };
        let unit = bench.unit.clone();
        let sender = thread::spawn(move || unit.deliver(SOURCE, to_entry(1), &slow));
        hears.recv().unwrap();
        let done = Arc::new(AtomicBool::new(false));
        let changer = {
            let (bench, done) = (bench.clone(), done.clone());
            thread::spawn(move || {
                step(&bench);
                done.store(true, Ordering::Release);
            })
        };
        thread::sleep(Duration::from_millis(100));
        assert!(!done.load(Ordering::Acquire), "{name}: done while a message is under way");
        lets_go.send(()).unwrap();
        sender.join().unwrap();
        changer.join().unwrap();
        assert!(done.load(Ordering::Acquire), "{name}");
    }
}
