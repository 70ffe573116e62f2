//! Chapter 7: the page request queue.
//!
//! Head, tail and address are plain storage: base, size and both offsets are taken from the registers at each
//! request, and no copy of them is kept.

use arbitrary_int::traits::Integer;
use arbitrary_int::{u9, u20, u52};
use iommu_core::{Gpa, Invalidation, IovaRange, Msi, PageRequest, Pasid, Scope, StageTag, Tag};

use crate::event;
use crate::memory::TableMemory;
use crate::regs::{PQA, PQH, PQT, PRS, RegisterFile};
use crate::spec::page_request::{PAGE_REQUEST, PAGE_REQUEST_BYTES, PageRequestHigh, PageRequestLow};
use crate::spec::registers::{PageQueueOffset, PageRequestStatus};

/// What became of a request that passed its checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enqueued {
    /// The guest sees it.
    Queued(Option<Msi>),
    /// There was no room for it, and this is the first that finds none, or another before.
    Overflow(Option<Msi>),
    /// The queue is not in memory.
    NoMemory,
}

/// Puts a request into the queue. Holds the message of the page request event, if one is due.
pub fn enqueue(file: &mut RegisterFile, memory: &impl TableMemory, request: &PageRequest) -> Enqueued {
    let status = file.get(PRS);
    if status.pro() {
        return Enqueued::Overflow(None);
    }
    let address = file.get(PQA);
    let len_bytes = 4096 << address.pqs().as_u32();
    // Software can write any offset, so the ring's end may lie before it.
    let tail = u64::from(file.get(PQT).index().value()) * PAGE_REQUEST_BYTES % len_bytes;
    let head = u64::from(file.get(PQH).index().value()) * PAGE_REQUEST_BYTES % len_bytes;
    let next = (tail + PAGE_REQUEST_BYTES) % len_bytes;
    if next == head {
        return Enqueued::Overflow(signal(file, PageRequestStatus::DEFAULT.with_pro(true)));
    }
    let gpa = Gpa((address.pqa().value() << 12).wrapping_add(tail));
    if !memory.write(gpa, &descriptor(request)) {
        log::debug!("page request queue at {gpa} is not memory");
        return Enqueued::NoMemory;
    }
    file.set(PQT, PageQueueOffset::new_with_raw_value(next));
    Enqueued::Queued(signal(file, PageRequestStatus::DEFAULT.with_ppr(true)))
}

/// Sets a status bit and raises the event if none was set before.
fn signal(file: &mut RegisterFile, set: PageRequestStatus) -> Option<Msi> {
    let status = file.get(PRS);
    file.set(PRS, PageRequestStatus::new_with_raw_value(status.raw_value() | set.raw_value()));
    if status.raw_value() == 0 { event::PAGE_REQUEST.raise(file) } else { None }
}

/// Software wrote PRS or a register of its event: what follows from it.
#[must_use]
pub fn settle(file: &mut RegisterFile) -> Option<Msi> {
    let status = file.get(PRS).raw_value() != 0;
    event::PAGE_REQUEST.settle(file, status)
}

/// A stop marker: a device says that it has no more requests for the PASID. It gets no response.
#[must_use]
pub fn is_stop_marker(request: &PageRequest) -> bool {
    request.last && !request.read && !request.write && request.pasid.is_some()
}

/// What is dropped from IOTLBs before a request is queued, so that the retry sees what the guest changed.
#[must_use]
pub fn implicit_invalidation(tag: &Tag, request: &PageRequest) -> Invalidation {
    let range = IovaRange::aligned(request.address.0, 12);
    Invalidation::new(match tag.stage {
        StageTag::First => Scope::PasidRange { domain: tag.domain, pasid: tag.pasid, range },
        StageTag::Second | StageTag::PassThrough => Scope::DomainRange { domain: tag.domain, range },
        StageTag::Nested => Scope::Domain(tag.domain),
    })
}

fn descriptor(request: &PageRequest) -> [u8; 32] {
    let present = request.pasid.is_some();
    let low = PageRequestLow::builder()
        .with_pmr(request.privileged)
        .with_exr(present && request.read && request.execute)
        .with_pasid(u20::new(request.pasid.map_or(0, Pasid::get)))
        .with_rid(request.source.0)
        .with_pp(present)
        .with_kind(PAGE_REQUEST)
        .build();
    let high = PageRequestHigh::builder()
        .with_addr(u52::new(request.address.0 >> 12))
        .with_prgi(u9::new(request.group.get()))
        .with_lpig(request.last)
        .with_wrr(request.write)
        .with_rdr(request.read)
        .build();
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&low.raw_value().to_le_bytes());
    bytes[8..16].copy_from_slice(&high.raw_value().to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use iommu_core::{DomainId, GroupIndex, Iova, SourceId, VendorData};
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    use super::*;
    use crate::capability::{Capability, Profile};

    const MESSAGE: Msi = Msi { address: 0xfee0_0000, data: 0x51 };
    const REQUEST: PageRequest = PageRequest {
        source: SourceId(0x0108),
        pasid: Some(Pasid::truncate(0xf_0001)),
        address: Iova(0x7fff_1234_5678),
        read: true,
        write: true,
        execute: false,
        privileged: false,
        last: true,
        group: GroupIndex::truncate(0x1ff),
        vendor: VendorData::NONE,
    };

    struct Bench {
        memory: GuestMemoryMmap,
        file: RegisterFile,
    }

    impl Bench {
        /// One page of queue at 0x2000: 128 entries, 127 usable.
        fn new() -> Self {
            let mut file = RegisterFile::new(&Capability::new(&Profile::svm(46)).unwrap());
            file.write(0xe4, &0x51u32.to_le_bytes());
            file.write(0xe8, &0xfee0_0000u32.to_le_bytes());
            file.write(0xe0, &[0; 4]);
            file.write(0xd0, &0x2000u64.to_le_bytes());
            Self { memory: GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap(), file }
        }

        fn enqueue(&mut self, request: &PageRequest) -> Enqueued {
            enqueue(&mut self.file, &self.memory, request)
        }

        fn write(&mut self, offset: u64, value: u64) -> Option<Msi> {
            self.file.write(offset, &value.to_le_bytes()[..if offset == 0xdc { 4 } else { 8 }]);
            settle(&mut self.file)
        }

        fn word(&self, gpa: u64) -> u64 {
            self.memory.read_obj(GuestAddress(gpa)).unwrap()
        }

        fn tail(&self) -> u64 {
            self.file.get(PQT).raw_value()
        }
    }

    /// (name, request, quadword 0, quadword 1)
    #[test]
    fn descriptors() {
        let no_pasid = PageRequest { pasid: None, execute: true, last: false, ..REQUEST };
        let marker = PageRequest { read: false, write: false, execute: true, ..REQUEST };
        let rows = [
            ("read and write", REQUEST, 0x000f_0001_0108_0101, 0x7fff_1234_5fff),
            ("execute", PageRequest { execute: true, ..REQUEST }, 0x001f_0001_0108_0101, 0x7fff_1234_5fff),
            (
                "privileged",
                PageRequest { privileged: true, ..REQUEST },
                0x002f_0001_0108_0101,
                0x7fff_1234_5fff,
            ),
            ("no pasid, not last", no_pasid, 0x0108_0001, 0x7fff_1234_5ffb),
            ("stop marker", marker, 0x000f_0001_0108_0101, 0x7fff_1234_5ffc),
        ];
        for (name, request, low, high) in rows {
            let mut bench = Bench::new();
            assert_eq!(bench.enqueue(&request), Enqueued::Queued(Some(MESSAGE)), "{name}");
            assert_eq!((bench.word(0x2000), bench.word(0x2008)), (low, high), "{name}");
            assert_eq!((bench.word(0x2010), bench.word(0x2018), bench.tail()), (0, 0, 32), "{name}");
        }
        assert!(is_stop_marker(&marker) && !is_stop_marker(&REQUEST) && !is_stop_marker(&no_pasid));
    }

    #[test]
    fn one_message_per_clearing_of_the_status() {
        let mut bench = Bench::new();
        assert_eq!(bench.enqueue(&REQUEST), Enqueued::Queued(Some(MESSAGE)));
        assert_eq!(bench.enqueue(&REQUEST), Enqueued::Queued(None));
        assert_eq!(bench.write(0xdc, 1), None);
        assert_eq!(bench.enqueue(&REQUEST), Enqueued::Queued(Some(MESSAGE)));
        assert_eq!(bench.tail(), 96);
    }

    #[test]
    fn a_full_queue_overflows_until_cleared() {
        let mut bench = Bench::new();
        for _ in 0..127 {
            assert!(matches!(bench.enqueue(&REQUEST), Enqueued::Queued(_)));
        }
        assert_eq!(bench.enqueue(&REQUEST), Enqueued::Overflow(None), "PPR is set, so no event");
        assert_eq!(bench.file.get(PRS).raw_value(), 3);
        let _ = bench.write(0xc0, bench.tail());
        assert_eq!(bench.enqueue(&REQUEST), Enqueued::Overflow(None), "room, but PRO");
        let _ = bench.write(0xdc, 3);
        assert_eq!(bench.enqueue(&REQUEST), Enqueued::Queued(Some(MESSAGE)));
        assert_eq!(bench.tail(), 0, "wrapped");
    }

    #[test]
    fn overflow_alone_raises_the_event() {
        let mut bench = Bench::new();
        let _ = bench.write(0xc0, 0x20);
        assert_eq!(bench.enqueue(&REQUEST), Enqueued::Overflow(Some(MESSAGE)));
        assert_eq!(bench.file.get(PRS).raw_value(), 2);
    }

    #[test]
    fn hostile_offsets_and_addresses_stay_inside() {
        let mut bench = Bench::new();
        let _ = bench.write(0xc8, 0x7_ffe0);
        assert_eq!(bench.enqueue(&REQUEST), Enqueued::Overflow(Some(MESSAGE)), "tail taken modulo the size");
        let mut bench = Bench::new();
        let _ = bench.write(0xd0, 0xffff_ffff_ffff_f007);
        assert_eq!(bench.enqueue(&REQUEST), Enqueued::NoMemory);
        assert_eq!((bench.tail(), bench.file.get(PRS).raw_value()), (0, 0));
    }

    #[test]
    fn implicit_invalidation_depends_on_the_stages() {
        let domain = DomainId(1);
        let pasid = Pasid::truncate(7);
        let range = IovaRange::aligned(0x7fff_1234_5000, 12);
        let rows = [
            (StageTag::First, Scope::PasidRange { domain, pasid, range }),
            (StageTag::Second, Scope::DomainRange { domain, range }),
            (StageTag::PassThrough, Scope::DomainRange { domain, range }),
            (StageTag::Nested, Scope::Domain(domain)),
        ];
        for (stage, scope) in rows {
            let found = implicit_invalidation(&Tag { domain, pasid, stage }, &REQUEST);
            assert_eq!(found.scope, scope, "{stage:?}");
        }
    }
}
