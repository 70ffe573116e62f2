//! A page request that is on its way while the driver drains.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use iommu_core::testkit::RecordingMsi;
use iommu_core::{Gpa, PageRequestOutcome, SourceId, Translator};
use iommu_vtd::testkit::Tables;
use iommu_vtd::{Capability, Profile, TableMemory, Unit, UnitConfig};
use vm_memory::{Bytes, GuestAddress};

use crate::driver::{
    ENDPOINT, GCMD, IQA, IQT, Memory, PAGE_QUEUE, PQA, PQT, QIE, RING, RTADDR, SRTP, STATUS, TE,
};
use crate::flows::page_request;

/// Memory in which the first read of one place tells that it was read, and then takes its time.
struct Slow {
    memory: Memory,
    at: Gpa,
    hold: Mutex<Option<(Sender<()>, Receiver<()>)>>,
}

impl TableMemory for Slow {
    type Hint<'a> = <Memory as TableMemory>::Hint<'a>;

    fn load_words_near<'a, const N: usize>(
        &'a self,
        gpa: Gpa,
        hint: &mut Self::Hint<'a>,
    ) -> Option<[u64; N]> {
        let words = self.memory.load_words_near(gpa, hint);
        if gpa == self.at
            && let Some((entered, leave)) = self.hold.lock().unwrap().take()
        {
            entered.send(()).unwrap();
            leave.recv().unwrap();
        }
        words
    }

    fn compare_exchange(&self, gpa: Gpa, old: u64, new: u64) -> Option<Result<u64, u64>> {
        self.memory.compare_exchange(gpa, old, new)
    }

    fn read(&self, gpa: Gpa, buffer: &mut [u8]) -> bool {
        TableMemory::read(&self.memory, gpa, buffer)
    }

    fn write(&self, gpa: Gpa, bytes: &[u8]) -> bool {
        TableMemory::write(&self.memory, gpa, bytes)
    }
}

/// The request found the PASID entry present; then the driver takes the PASID away. When what it waits for is done,
/// the request must be in the queue: it would else ask on behalf of whoever gets the PASID next. Linux looks for it
/// there after the PASID-cache invalidation, and before the wait that drains.
#[test]
fn requests_on_their_way_arrive_before_a_pasid_is_gone() {
    let wait = |flags: u64| [2 << 32 | flags << 4 | 5, STATUS, 0, 0];
    let plain = wait(2);
    let rows: [(&str, Vec<[u64; 4]>); 6] = [
        ("a wait that drains", vec![wait(0xa)]),
        ("PASID cache, one", vec![[1 << 32 | 1 << 16 | 1 << 4 | 7, 0, 0, 0], plain]),
        ("PASID cache, domain", vec![[1 << 16 | 7, 0, 0, 0], plain]),
        ("PASID cache, all", vec![[3 << 4 | 7, 0, 0, 0], plain]),
        ("contexts, device", vec![[u64::from(ENDPOINT.0) << 32 | 3 << 4 | 1, 0, 0, 0], plain]),
        ("contexts, all", vec![[1 << 4 | 1, 0, 0, 0], plain]),
    ];
    for (name, descriptors) in rows {
        arrives_before(name, &descriptors);
    }
}

fn arrives_before(name: &str, descriptors: &[[u64; 4]]) {
    let memory = Memory::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap();
    let tables = Tables::new(&memory, 0x10_0000..0x20_0000);
    let entry = tables.context(ENDPOINT).pasid(1);
    entry.first_stage(1);
    let ((entered, has_entered), (let_go, leave)) = (channel(), channel());
    let hold = Mutex::new(Some((entered, leave)));
    let slow = Slow { memory: memory.clone(), at: entry.at(), hold };
    let config = UnitConfig { capability: Capability::new(&Profile::svm(46)).unwrap(), source: SourceId(0) };
    let unit = Unit::new(&config, slow, Arc::new(RecordingMsi::default()));
    let write = |offset, value: u64| unit.mmio_write(offset, &value.to_le_bytes());
    let command = |value: u32| unit.mmio_write(GCMD, &value.to_le_bytes());
    write(RTADDR, tables.root_register().raw_value());
    write(IQA, RING | 1 << 11 | 1);
    write(PQA, PAGE_QUEUE | 4);
    command(SRTP | QIE);
    command(TE | QIE);
    for (index, word) in descriptors.iter().flatten().enumerate() {
        memory.write_obj::<u64>(*word, GuestAddress(RING + 8 * index as u64)).unwrap();
    }
    thread::scope(|scope| {
        let request = scope.spawn(|| unit.page_request(&page_request(0x7000, 3)));
        has_entered.recv().unwrap();
        entry.clear();
        let (done, is_done) = channel();
        scope.spawn(move || {
            write(IQT, 32 * descriptors.len() as u64);
            done.send(()).unwrap();
        });
        let early = is_done.recv_timeout(Duration::from_millis(50));
        let_go.send(()).unwrap();
        assert_eq!(early, Err(RecvTimeoutError::Timeout), "{name}: done with a request on its way");
        is_done.recv().unwrap();
        let mut tail = [0; 8];
        unit.mmio_read(PQT, &mut tail);
        let status = memory.read_obj(GuestAddress(STATUS)).unwrap();
        assert_eq!((u64::from_le_bytes(tail), status), (32, 2_u32), "{name}");
        assert_eq!(request.join().unwrap(), PageRequestOutcome::Queued, "{name}");
    });
}
