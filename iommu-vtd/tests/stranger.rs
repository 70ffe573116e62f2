//! A VMM of somebody else: every trait implemented and every type built with what these crates export, without
//! their test kits and, for tables, without vm-memory.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use iommu_core::{
    Access, Capabilities, Completion, DeviceTlbCompletion, DeviceTlbInvalidation, Dma, Domain, DomainId,
    Endpoint, Fault, FaultClass, FaultReason, Gpa, HostError, HostIommu, InterruptRemapper, Invalidation,
    Iova, Msi, MsiSink, PageRequest, PageRequestOutcome, PageResponse, Pasid, Permissions, PortSet,
    RemappedMsi, Request, ResponseCode, RouteListener, SourceId, StageTag, Tag, Translation, Translator,
};
use iommu_vtd::{Capability, Profile, TableMemory, Unit, UnitConfig};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const DEVICE: SourceId = SourceId(0x18);
/// A page-table entry.
const LEAF: u64 = 0x8000;

/// Guest memory as a list of words.
struct Words(Vec<AtomicU64>);

impl Words {
    fn word(&self, gpa: Gpa) -> Option<&AtomicU64> {
        gpa.0.is_multiple_of(8).then(|| self.0.get(usize::try_from(gpa.0 / 8).ok()?)).flatten()
    }

    fn set(&self, gpa: u64, word: u64) {
        self.word(Gpa(gpa)).unwrap().store(word, Ordering::SeqCst);
    }
}

/// What the unit needs of memory, for an `Arc` of it.
struct Shared(Arc<Words>);

impl TableMemory for Shared {
    type Hint<'a> = ();

    fn load_words_near<const N: usize>(&self, gpa: Gpa, (): &mut ()) -> Option<[u64; N]> {
        let mut words = [0; N];
        for (word, at) in words.iter_mut().zip((gpa.0..).step_by(8)) {
            *word = self.0.word(Gpa(at))?.load(Ordering::SeqCst);
        }
        Some(words)
    }

    fn compare_exchange(&self, gpa: Gpa, old: u64, new: u64) -> Option<Result<u64, u64>> {
        Some(self.0.word(gpa)?.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst))
    }

    fn read(&self, gpa: Gpa, buffer: &mut [u8]) -> bool {
        (gpa.0..).zip(buffer).all(|(at, byte)| {
            let word = self.0.word(Gpa(at & !7));
            word.is_some_and(|word| {
                *byte = word.load(Ordering::SeqCst).to_le_bytes()[usize::try_from(at & 7).unwrap()];
                true
            })
        })
    }

    fn write(&self, gpa: Gpa, bytes: &[u8]) -> bool {
        (gpa.0..).zip(bytes).all(|(at, byte)| {
            let (shift, word) = (8 * (at & 7), self.0.word(Gpa(at & !7)));
            let put = |old| Some(old & !(0xff << shift) | u64::from(*byte) << shift);
            word.is_some_and(|word| word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, put).is_ok())
        })
    }
}

/// Takes notes of everything that comes out of a model.
#[derive(Default)]
struct Notes(Mutex<Vec<String>>);

impl Notes {
    fn add(&self, note: impl std::fmt::Debug) {
        self.0.lock().unwrap().push(format!("{note:?}"));
    }
}

impl MsiSink for Notes {
    fn send(&self, _: SourceId, msi: Msi) {
        self.add(msi);
    }
}

impl Endpoint for Notes {
    fn invalidate_device_tlb(&self, invalidation: &DeviceTlbInvalidation) -> DeviceTlbCompletion {
        self.add(invalidation.pasid);
        DeviceTlbCompletion::Complete
    }

    fn page_group_response(&self, response: &PageResponse) {
        self.add(response.code);
    }
}

#[test]
fn a_unit_on_memory_of_ones_own() {
    let words = Arc::new(Words((0..0x9000 / 8).map(|_| AtomicU64::new(0)).collect()));
    let config = UnitConfig { capability: Capability::new(&Profile::svm(46)).unwrap(), source: SourceId(0) };
    let notes = Arc::new(Notes::default());
    let unit = Unit::new(&config, Shared(words.clone()), notes.clone());
    let endpoint: Arc<dyn Endpoint> = notes.clone();
    unit.attach_endpoint(DEVICE, Arc::downgrade(&endpoint));
    // Root, context, directory and PASID entry, then four levels that map page 0 of PASID 1 to page 9.
    let entries = [(0x1000, 0x2001), (0x2000 + 0x18 * 32, 0x301d), (0x3000, 0x4001)];
    let pasid = [(0x4000 + 64, 0x41), (0x4000 + 72, 1 << 23 | 1), (0x4000 + 80, 0x5000)];
    let pages = [(0x5000, 0x6007), (0x6000, 0x7007), (0x7000, 0x8007), (LEAF, 0x9007)];
    for (gpa, word) in entries.into_iter().chain(pasid).chain(pages) {
        words.set(gpa, word);
    }
    for (offset, value) in [(0x20, 0x1000 | 1 << 10), (0x90, 0x800)] {
        unit.mmio_write(offset, &u64::to_le_bytes(value));
    }
    unit.mmio_write(0x18, &0xc400_0000_u32.to_le_bytes());
    let request = Request::untranslated(DEVICE, Pasid::new(1), Iova(0x123), Access::Write);
    let found = unit.translate(&request).unwrap();
    assert_eq!((found.gpa(Iova(0x123)), found.page_bits), (Gpa(0x9123), 12));
    assert_eq!(Shared(words.clone()).load(Gpa(LEAF)), Some(0x9067), "accessed and dirty");
    // A device-TLB invalidation and a page group response, at the start of memory.
    let descriptors =
        [1 << 32 | 0x18 << 16 | 8, 0x7fff_ffff_ffff_f800, 0, 0, 1 << 32 | 0x18 << 16 | 0x19, 0, 0, 0];
    for (index, word) in descriptors.into_iter().enumerate() {
        words.set(8 * index as u64, word);
    }
    unit.mmio_write(0x88, &64_u32.to_le_bytes());
    assert_eq!(*notes.0.lock().unwrap(), ["Some(Pasid(1))", "Success"]);
}

/// A model that adds a number to every address below a limit.
struct Adder {
    limit: u64,
    faults: Notes,
}

impl Translator for Adder {
    fn translate(&self, request: &Request) -> Result<Translation, Fault> {
        if request.address.0 >= self.limit {
            return Err(Fault {
                request: *request,
                reason: FaultReason { class: FaultClass::NotPresent, code: 1 },
                completion: Completion::UnsupportedRequest,
                log: true,
            });
        }
        Ok(Translation {
            iova: request.address,
            base: Gpa(request.address.0 + 0x1000),
            page_bits: 12,
            permissions: Permissions::READ_WRITE,
            untranslated_only: false,
            tag: Tag { domain: DomainId(1), pasid: Pasid::ZERO, stage: StageTag::Second },
        })
    }

    fn report(&self, fault: &Fault) {
        self.faults.add(fault.request.address);
    }

    fn page_request(&self, request: &PageRequest) -> PageRequestOutcome {
        self.faults.add(request.group);
        PageRequestOutcome::Answered(ResponseCode::Invalid)
    }
}

#[test]
fn a_model_of_ones_own_behind_ports() {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
    let adder = Arc::new(Adder { limit: 0x2000, faults: Notes::default() });
    let mut port = Dma::new(DEVICE, memory.clone(), adder.clone(), Arc::new(PortSet::default())).port();
    port.session(None).write_obj(7_u8, GuestAddress(0x1fff)).unwrap();
    assert_eq!(memory.read_obj::<u8>(GuestAddress(0x2fff)).unwrap(), 7);
    assert!(port.session(None).write_obj(7_u16, GuestAddress(0x1fff)).is_err());
    assert_eq!(*adder.faults.0.lock().unwrap(), ["Iova(8192)"]);
}

/// Lets every interrupt pass with another vector.
#[derive(Default)]
struct Vectors(Mutex<Vec<Weak<dyn RouteListener>>>);

impl InterruptRemapper for Vectors {
    fn deliver(&self, source: SourceId, msi: Msi, sink: &dyn MsiSink) {
        if let Some(msi) = self.resolve(source, msi) {
            sink.send(source, msi);
        }
    }

    fn resolve(&self, _: SourceId, msi: Msi) -> Option<Msi> {
        Some(Msi { data: msi.data + 1, ..msi })
    }

    fn add_listener(&self, listener: Weak<dyn RouteListener>) {
        self.0.lock().unwrap().push(listener);
    }
}

impl RouteListener for Notes {
    fn routes_changed(&self) {
        self.add("routes");
    }
}

#[test]
fn a_remapper_of_ones_own_before_a_sink() {
    let (vectors, notes) = (Arc::new(Vectors::default()), Arc::new(Notes::default()));
    let listener: Arc<dyn RouteListener> = notes.clone();
    vectors.add_listener(Arc::downgrade(&listener));
    RemappedMsi::new(vectors.clone(), notes.clone()).send(DEVICE, Msi { address: 0xfee0_0000, data: 0x30 });
    for listener in vectors.0.lock().unwrap().iter().filter_map(Weak::upgrade) {
        listener.routes_changed();
    }
    assert_eq!(*notes.0.lock().unwrap(), ["Msi { address: 4276092928, data: 49 }", "\"routes\""]);
}

/// A host that refuses whatever it is asked to bind.
struct Host;

impl HostIommu for Host {
    fn capabilities(&self) -> Capabilities {
        Capability::new(&Profile::svm(46)).unwrap().neutral()
    }

    fn set_domain(&self, source: SourceId, _: Option<Pasid>, _: &Domain) -> Result<(), HostError> {
        let reason = std::io::Error::other("busy");
        Err(HostError { operation: "attach", object: source.to_string(), still_bound: false, source: reason })
    }

    fn invalidate(&self, _: &Invalidation) {}

    fn sync(&self) -> Result<(), HostError> {
        Ok(())
    }

    fn drain_page_requests(&self, _: &dyn Translator) -> Result<(), HostError> {
        Ok(())
    }

    fn respond(&self, _: &PageResponse) -> Result<(), HostError> {
        Ok(())
    }
}

#[test]
fn a_host_of_ones_own() {
    let host: &dyn HostIommu = &Host;
    assert_eq!(host.capabilities().pasid_bits, 20);
    host.invalidate(&Invalidation::ALL);
    let error = host.set_domain(DEVICE, None, &Domain::Blocked).unwrap_err();
    assert_eq!(error.to_string(), "attach on 00:03.0 failed");
}
