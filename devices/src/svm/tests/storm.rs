//! Everything at once, from several threads: a driver, an IOMMU that invalidates and answers, a guest that
//! switches things on and off.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use iommu_core::{PageRequestOutcome, ResponseCode};

use super::rig::{INTERRUPT, Rig, control_page, copy, until};
use crate::pci::PciFunction;
use crate::svm::spec::Descriptor;

const SOURCE_PAGE: u64 = 0x10_0000;
const TARGET: u64 = 0x20_0000;
const PAGES: u64 = 8;
const ROUNDS: u64 = 400;

/// Runs `work` with the round's number, at this pace, until told to stop.
fn thread(
    rig: &Arc<Rig>,
    stop: &Arc<AtomicBool>,
    pace: Duration,
    work: impl Fn(&Rig, u64) + Send + 'static,
) -> JoinHandle<()> {
    let (rig, stop) = (rig.clone(), stop.clone());
    std::thread::spawn(move || {
        let mut round = 0;
        while !stop.load(Ordering::Relaxed) {
            work(&rig, round);
            round += 1;
            std::thread::sleep(pace);
        }
    })
}

/// What software may do at any time.
fn switch(rig: &Rig, round: u64) {
    match round % 14 {
        0 => rig.write32(control_page(0), 0),
        1 => rig.write32(control_page(0), 1),
        2 => rig.write32(0xc, 1),
        9 => rig.write32(0x20, 2 | 1 << 4 | super::rig::PASID.get() << 8),
        10 => rig.write32(0x20, 1 | 1 << 8),
        11 => rig.write32(0x1c, u32::try_from(round % 3).unwrap()),
        12 => rig.share(1),
        13 => rig.open_window(0, 1, super::rig::PASID),
        3 => rig.set_extended(0xf, 6, 0),
        4 => rig.set_extended(0x13, 4, 0),
        5 => rig.set_extended(0x13, 4, 2),
        6 => rig.config16(4, 2),
        7 => rig.function.reset(),
        _ => rig.bring_up(),
    }
}

#[test]
fn a_storm_ends_with_a_device_that_works() {
    let rig = Arc::new(Rig::new());
    rig.hold_page_requests();
    let pages: Vec<_> = (0..2 * PAGES).map(|_| rig.page()).collect();
    let place = move |n: u64| {
        let n = n % (2 * PAGES);
        (if n < PAGES { SOURCE_PAGE } else { TARGET - PAGES * 0x1000 }) + n * 0x1000
    };
    let stop = Arc::new(AtomicBool::new(false));
    let threads = [
        // Unmaps and invalidates.
        thread(&rig, &stop, Duration::from_micros(20), move |rig, round| {
            rig.iommu.unmap(Some(super::rig::PASID), place(round * 7));
            rig.invalidate(place(round * 7));
        }),
        // Serves page requests: mostly well, sometimes not, sometimes twice.
        thread(&rig, &stop, Duration::from_micros(1), move |rig, round| {
            let Some(request) = rig.iommu.page_requests.lock().pop() else { return };
            let gpa = pages[usize::try_from(request.address.0 >> 12).unwrap() % pages.len()];
            rig.map_to(request.address.0, gpa, true);
            let code = if round % 11 == 0 { ResponseCode::Invalid } else { ResponseCode::Success };
            rig.respond_to(request.group, code);
            if round % 5 == 0 {
                rig.respond_to(request.group, code);
            }
        }),
        // Switches.
        thread(&rig, &stop, Duration::from_millis(1), switch),
    ];
    for round in 0..ROUNDS {
        for queue in 0..2 {
            let request = copy(SOURCE_PAGE + round * 3, TARGET + round * 5, 0x1800);
            let ahead = u8::try_from(round % 5).unwrap();
            let request = Descriptor { flags: request.flags | INTERRUPT, ahead, ..request };
            rig.start(queue, request);
            rig.start(queue, Descriptor { opcode: 8, operand: (round % 2).into(), ..request });
            rig.start_through(
                0,
                Descriptor { opcode: 6, source: TARGET.into(), length: 5.into(), ..request },
            );
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().unwrap();
    }
    rig.function.reset();
    for queue in 0..2 {
        rig.until_idle(queue);
    }
    rig.bring_up();
    rig.iommu.on_page_request(|_, _| PageRequestOutcome::Answered(ResponseCode::Invalid));
    until("all outstanding forgotten", || rig.pri_status() & 3 == 0);
    for queue in 0..2 {
        rig.assert_alive(queue);
    }
    assert!(rig.read64(0x40) >= 2);
}
