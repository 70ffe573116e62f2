//! Rows: descriptor in, value or error out.

use iommu_core::DomainId;
use proptest::prelude::*;

use super::*;
use crate::capability::Profile;

const SCALABLE: QueueMode = QueueMode { wide: true, tables: TranslationTableMode::Scalable };
const LEGACY: QueueMode = QueueMode { wide: true, tables: TranslationTableMode::Legacy };
const NARROW: QueueMode = QueueMode { wide: false, tables: TranslationTableMode::Legacy };

fn capability() -> Capability {
    Capability::new(&Profile { interrupt_remapping: false, ..Profile::svm(46) }.settled()).unwrap()
}

fn without_device_tlb() -> Capability {
    let profile = Profile { device_tlb: false, interrupt_remapping: false, ..Profile::svm(46) }.settled();
    Capability::new(&profile).unwrap()
}

fn decoded(low: u64, high: u64) -> Result<Descriptor, QueueError> {
    decode(&[low, high, 0, 0], SCALABLE, &capability())
}

fn translations(scope: Scope, leaf_only: bool) -> Result<Descriptor, QueueError> {
    Ok(Descriptor::Translations(Invalidation { scope, leaf_only, vendor: VendorData::NONE }))
}

fn device(pasid: Option<u32>, all_pasids: bool, range: IovaRange) -> Result<Descriptor, QueueError> {
    let pasid = pasid.map(Pasid::truncate);
    Ok(Descriptor::DeviceTlb(DeviceTlbInvalidation { source: SourceId(0x0108), pasid, all_pasids, range }))
}

fn answer(pasid: Option<u32>, group: u16, code: ResponseCode) -> Result<Descriptor, QueueError> {
    Ok(Descriptor::Response(PageResponse {
        source: SourceId(0x0108),
        pasid: pasid.map(Pasid::truncate),
        group: GroupIndex::truncate(group),
        code,
        vendor: VendorData::NONE,
    }))
}

fn wait(status: Option<(u64, u32)>, interrupt: bool) -> Result<Descriptor, QueueError> {
    let status = status.map(|(address, data)| (Gpa(address), data));
    Ok(Descriptor::Wait(WaitAction { status, interrupt, drain: false }))
}

fn pasid_entries(domain: u32, pasid: u32) -> Result<Descriptor, QueueError> {
    let (domain, pasid) = (DomainId(domain), Pasid::truncate(pasid));
    Ok(Descriptor::PasidCache(PasidScope::Pasid { domain, pasid }))
}

const DRAIN: WaitAction = WaitAction { status: Some((Gpa(0x1000), 2)), interrupt: false, drain: true };

fn range(start: u64, last: u64) -> IovaRange {
    IovaRange::new(start, last).unwrap()
}

#[test]
fn context_cache_invalidations() {
    let domain = DomainId(5);
    let source = |source, mask| Ok(ContextScope::Source { source: SourceId(source), mask });
    let (all, reserved) = (Ok(ContextScope::All), Err(QueueError::Reserved));
    // (name, quadword 0, under scalable tables, under legacy tables)
    let rows = [
        ("global", 0x11, all, all),
        ("domain", 0x5_0021, all, Ok(ContextScope::Domain(domain))),
        ("domain 0, as caching mode has it", 0x21, all, Ok(ContextScope::Domain(DomainId(0)))),
        ("device", 0x010b_0000_0031, source(0x010b, 0), source(0x010b, 0)),
        ("device, with any domain", 0x010b_0005_0031, source(0x010b, 0), source(0x010b, 0)),
        ("2 functions", 0x1_010f_0000_0031, source(0x010b, 4), source(0x010b, 4)),
        ("4 functions", 0x2_010f_0000_0031, source(0x0109, 6), source(0x0109, 6)),
        ("8 functions", 0x3_010f_0000_0031, source(0x0108, 7), source(0x0108, 7)),
        ("reserved granularity", 0x01, reserved, reserved),
    ];
    for (name, low, scalable, legacy) in rows {
        for (mode, expected) in [(SCALABLE, scalable), (LEGACY, legacy)] {
            let found = decode(&[low, 0, 0, 0], mode, &capability());
            assert_eq!(found, expected.map(Descriptor::ContextCache), "{name}, {mode:?}");
        }
    }
}

#[test]
fn pasid_cache_invalidations() {
    let domain = DomainId(5);
    let pasid = Pasid::truncate(0xf_ffff);
    let rows = [
        ("domain", 0x5_0007, Ok(PasidScope::Domain(domain))),
        ("pasid in domain", 0x000f_ffff_0005_0017, Ok(PasidScope::Pasid { domain, pasid })),
        ("global", 0x37, Ok(PasidScope::All)),
        ("reserved granularity", 0x27, Err(QueueError::Reserved)),
    ];
    for (name, low, expected) in rows {
        assert_eq!(decoded(low, 0), expected.map(Descriptor::PasidCache), "{name}");
    }
}

/// (name, scope, does it hit 0108h, 0109h, 010Ch, all of domain 3)
#[test]
fn context_scopes_hit_functions_or_domains() {
    let source = |mask| ContextScope::Source { source: SourceId(0x0108), mask };
    let rows = [
        ("all", ContextScope::All, [true; 3]),
        ("domain", ContextScope::Domain(DomainId(3)), [true; 3]),
        ("other domain", ContextScope::Domain(DomainId(4)), [false; 3]),
        ("one function", source(0), [true, false, false]),
        ("2 functions", source(4), [true, false, true]),
        ("4 functions", source(6), [true, false, true]),
        ("8 functions", source(7), [true; 3]),
    ];
    for (name, scope, expected) in rows {
        let found = [0x0108, 0x0109, 0x010c].map(|id| scope.hits(SourceId(id), Some(DomainId(3))));
        assert_eq!(found, expected, "{name}");
    }
    assert!(!ContextScope::Domain(DomainId(0)).hits(SourceId(8), None), "no domain is not domain 0");
}

#[test]
fn translation_invalidations() {
    let domain = DomainId(1);
    let pasid = Pasid::truncate(3);
    let page = |range| Scope::DomainRange { domain, range };
    let pasid_page = |range| Scope::PasidRange { domain, pasid, range };
    let upper = range(0xffff_8000_0000_0000, u64::MAX);
    let rows = [
        ("global, both drains", 0xd2, 0, translations(Scope::All, false)),
        ("domain", 0x1_0022, 0, translations(Scope::Domain(domain), false)),
        ("page", 0x1_0032, 0x5000, translations(page(range(0x5000, 0x5fff)), false)),
        (
            "2 MiB, low bits masked",
            0x1_0032,
            0x30_7049,
            translations(page(range(0x20_0000, 0x3f_ffff)), true),
        ),
        (
            "beyond MGAW is cut",
            0x1_0032,
            0xffff_8000_0000_5000,
            translations(page(range(0x8000_0000_5000, 0x8000_0000_5fff)), false),
        ),
        ("AM is MAMV", 0x1_0032, 18, translations(page(range(0, 0x3fff_ffff)), false)),
        ("AM above MAMV", 0x1_0032, 19, Err(QueueError::Reserved)),
        ("reserved granularity", 0x02, 0, Err(QueueError::Reserved)),
        ("hint means nothing without pages", 0x1_0022, 0x40, translations(Scope::Domain(domain), false)),
        ("pasid", 0x3_0001_0026, 0, translations(Scope::Pasid { domain, pasid }, false)),
        ("pasid page, hint", 0x3_0001_0036, 0x5040, translations(pasid_page(range(0x5000, 0x5fff)), true)),
        ("pasid upper half", 0x3_0001_0036, 0xffff_8000_0000_0023, translations(pasid_page(upper), false)),
        ("pasid AM 51", 0x3_0001_0036, 51, translations(pasid_page(range(0, (1 << 63) - 1)), false)),
        ("pasid AM 52", 0x3_0001_0036, 52, translations(pasid_page(IovaRange::ALL), false)),
        ("pasid AM 63", 0x3_0001_0036, 63, translations(pasid_page(IovaRange::ALL), false)),
        ("pasid reserved granularity", 0x3_0001_0016, 0, Err(QueueError::Reserved)),
        ("pasid reserved granularity 0", 0x3_0001_0006, 0, Err(QueueError::Reserved)),
    ];
    for (name, low, high, expected) in rows {
        assert_eq!(decoded(low, high), expected, "{name}");
    }
}

#[test]
fn device_tlb_invalidations() {
    let low = 0x0108_0000_0003;
    let pasid = 0x0000_0003_0108_0008;
    let rows = [
        ("one page", low, 0x5000, device(None, false, range(0x5000, 0x5fff))),
        ("two pages", low, 0x4001, device(None, false, range(0x4000, 0x5fff))),
        ("four pages", low, 0x5001, device(None, false, range(0x4000, 0x7fff))),
        ("everything, as Linux says it", low, 0x7fff_ffff_ffff_f001, device(None, false, IovaRange::ALL)),
        ("all ones", low, 0xffff_ffff_ffff_f001, device(None, false, IovaRange::ALL)),
        ("limits and PFSID", low | 0xfff0_0000_001f_f000, 0, device(None, false, range(0, 0xfff))),
        ("pasid page", pasid, 0x5000, device(Some(3), false, range(0x5000, 0x5fff))),
        ("pasid range", pasid, 0x4800, device(Some(3), false, range(0x4000, 0x5fff))),
        (
            "pasid upper half",
            pasid,
            0xffff_bfff_ffff_f800,
            device(Some(3), false, range(0xffff_8000_0000_0000, u64::MAX)),
        ),
        ("all pasids", pasid | 0xfff0_0000_0000_f1f0, 0x1, device(Some(3), true, range(0, 0xfff))),
    ];
    for (name, low, high, expected) in rows {
        assert_eq!(decoded(low, high), expected, "{name}");
    }
}

#[test]
fn waits_and_responses() {
    use ResponseCode::{Failure, Invalid, Success};
    let rows = [
        ("status", 0x2_0000_0025, 0x1234, wait(Some((0x1234, 2)), false)),
        ("beyond HAW is cut", 0x2_0000_0025, 0x4000_0000_1000, wait(Some((0x1000, 2)), false)),
        ("fence only", 0x2_0000_0045, 0x1000, wait(None, false)),
        ("drain", 0x2_0000_00a5, 0x1000, Ok(Descriptor::Wait(DRAIN))),
        ("interrupt", 0x15, 0, wait(None, true)),
        ("nothing asked", 0x05, 0, wait(None, false)),
        ("status address not aligned", 0x2_0000_0025, 0x1002, Err(QueueError::Reserved)),
        ("success", 0x7_0108_0019, 5 << 3, answer(Some(7), 5, Success)),
        ("no pasid", 0x7_0108_0009, 5 << 3, answer(None, 5, Success)),
        ("invalid", 0x7_0108_1019, 0x1ff << 3 | 4, answer(Some(7), 0x1ff, Invalid)),
        ("Linux's failure", 0x7_0108_2019, 0, answer(Some(7), 0, Failure)),
        ("failure", 0x7_0108_f019, 0, answer(Some(7), 0, Failure)),
    ];
    for (name, low, high, expected) in rows {
        assert_eq!(decoded(low, high), expected, "{name}");
    }
}

/// What a unit does not offer is reserved in descriptors, or not looked at. (name, change to the profile, descriptor,
/// expected with the feature, expected without)
#[test]
fn fields_depend_on_the_profile() {
    type Row = (
        &'static str,
        fn(&mut Profile),
        [u64; 2],
        Result<Descriptor, QueueError>,
        Result<Descriptor, QueueError>,
    );
    let (device_tlb, pasid_device_tlb) = (0x0108_0000_0003, 0x0000_0003_0108_0008);
    let page = range(0x5000, 0x5fff);
    let reserved = Err(QueueError::Reserved);
    let domain = |raw| translations(Scope::Domain(DomainId(raw)), false);
    let pages = translations(Scope::DomainRange { domain: DomainId(1), range: page }, false);
    let (one, of_pasid) = (device(None, false, page), device(Some(3), false, page));
    let without_pfsid: fn(&mut Profile) = |p| p.device_tlb_throttle = false;
    let few_domains: fn(&mut Profile) = |p| p.domain_id_bits = 8;
    let rows: [Row; 8] = [
        ("PFSID 3:0", without_pfsid, [device_tlb | 1 << 12, 0x5000], one, reserved),
        ("PFSID 15:4", without_pfsid, [device_tlb | 1 << 63, 0x5000], one, reserved),
        ("PFSID of 0", without_pfsid, [device_tlb, 0x5000], one, one),
        ("PFSID 3:0, PASID", without_pfsid, [pasid_device_tlb | 1 << 15, 0x5000], of_pasid, reserved),
        ("PFSID 15:4, PASID", without_pfsid, [pasid_device_tlb | 1 << 52, 0x5000], of_pasid, reserved),
        ("pages", |p| p.page_selective = false, [0x1_0032, 0x5000], pages, reserved),
        ("domain", few_domains, [0x0105_0022, 0], domain(0x105), domain(5)),
        (
            "domain of a PASID",
            few_domains,
            [0x000f_ffff_0105_0017, 0],
            pasid_entries(0x105, 0xf_ffff),
            pasid_entries(5, 0xf_ffff),
        ),
    ];
    for (name, change, [low, high], with, without) in rows {
        let mut profile = Profile::svm(46);
        assert_eq!(decode(&[low, high, 0, 0], SCALABLE, &Capability::new(&profile).unwrap()), with, "{name}");
        change(&mut profile);
        let found = decode(&[low, high, 0, 0], SCALABLE, &Capability::new(&profile).unwrap());
        assert_eq!(found, without, "{name}, not offered");
    }
}

/// Which types each mode takes. (mode, types taken of 1..=0xa, the error of all others)
#[test]
fn types_depend_on_mode_and_profile() {
    use TranslationTableMode::{AbortDma, Legacy, Reserved, Scalable};
    let mode = |wide, tables| QueueMode { wide, tables };
    let full = capability();
    let rows = [
        ("legacy, 128 bits", mode(false, Legacy), full, &[1, 2, 3, 5][..], QueueError::Type),
        ("legacy, 256 bits", mode(true, Legacy), full, &[1, 2, 3, 5], QueueError::Type),
        ("scalable", mode(true, Scalable), full, &[1, 2, 3, 5, 6, 7, 8, 9], QueueError::Type),
        ("abort", mode(true, AbortDma), full, &[1, 2, 3, 5, 6, 7, 8, 9], QueueError::Type),
        ("no ATS", mode(true, Scalable), without_device_tlb(), &[1, 2, 5, 6, 7], QueueError::Type),
        ("scalable, 128 bits", mode(false, Scalable), full, &[], QueueError::Width),
        ("abort, 128 bits", mode(false, AbortDma), full, &[], QueueError::Width),
        ("reserved", mode(true, Reserved), full, &[], QueueError::Mode),
    ];
    // A granularity that each type takes; 4:5 of the others are something else or nothing.
    let granularity = |kind| [1, 2, 0, 0, 0, 2, 3, 0, 0, 1][usize::try_from(kind).unwrap() - 1] << 4;
    for (name, mode, capability, taken, error) in rows {
        for kind in 1..=0xa_u64 {
            let found = decode(&[kind | granularity(kind), 0, 0, 0], mode, &capability);
            if taken.contains(&kind) {
                assert!(found.is_ok(), "{name}: type {kind}");
            } else {
                assert_eq!(found, Err(error), "{name}: type {kind}");
            }
        }
    }
    for low in [0x0, 0xb, 0xf, 0x201, 0xe05] {
        assert_eq!(decode(&[low, 0, 0, 0], LEGACY, &capability()), Err(QueueError::Type), "{low:#x}");
    }
}

/// Every bit that the manual leaves undefined stops the queue, alone. (name, a good descriptor, undefined bits
/// of quadword 0, of quadword 1)
#[test]
fn reserved_bits_stop_the_queue() {
    let rows = [
        ("context-cache", 0x11, 0xfffc_0000_0000_f1c0, u64::MAX),
        ("iotlb", 0x12, 0xffff_ffff_0000_f100, 0xf80),
        ("device-tlb", 0x03, 0x000f_0000_ffe0_01f0, 0xffe),
        ("wait", 0x25, 0xffff_f100, 0x3),
        ("pasid iotlb", 0x26, 0xfff0_0000_0000_f1c0, 0xf80),
        ("pasid-cache", 0x37, 0xfff0_0000_0000_f1c0, u64::MAX),
        ("pasid device-tlb", 0x08, 0, 0x7fe),
        ("response", 0x09, 0xfff0_0000_0000_01e0, 0xffff_ffff_ffff_f003),
    ];
    for (name, good, low, high) in rows {
        assert!(decoded(good, 0).is_ok(), "{name}");
        for bit in (0..64).map(|n| 1_u64 << n) {
            let expected = |undefined| (bit & undefined != 0).then_some(QueueError::Reserved);
            // Bits 11:9 and 3:0 are the type, 5:4 the granularity where there is one.
            if bit & 0xe3f == 0 {
                assert_eq!(decoded(good | bit, 0).err(), expected(low), "{name}: quadword 0, {bit:#x}");
            }
            if !(name == "iotlb" && bit & 0x3f != 0) {
                assert_eq!(decoded(good, bit).err(), expected(high), "{name}: quadword 1, {bit:#x}");
            }
            for words in [[good, 0, bit, 0], [good, 0, 0, bit]] {
                assert_eq!(
                    decode(&words, SCALABLE, &capability()),
                    Err(QueueError::Reserved),
                    "{name}: padding"
                );
            }
        }
    }
    let poor = without_device_tlb();
    assert_eq!(decode(&[0x85, 0, 0, 0], SCALABLE, &poor), Err(QueueError::Reserved), "PD without PDS");
}

proptest! {
    #[test]
    fn decode_is_total(words in any::<[u64; 4]>(), kind in 0_u64..16, narrow in any::<bool>()) {
        let words = if narrow { [words[0], words[1], 0, 0] } else { words };
        let words = [words[0] & !0xe0f | kind, words[1], words[2], words[3]];
        for mode in [SCALABLE, LEGACY, NARROW] {
            let _ = decode(&words, mode, &capability());
            let _ = decode(&words, mode, &without_device_tlb());
        }
    }
}

#[test]
fn interrupt_entry_invalidations() {
    let profile = Profile { interrupt_remapping: true, ..Profile::svm(46) };
    let capability = Capability::new(&profile).unwrap();
    let block = |first, mask| Ok(Descriptor::InterruptEntries(InterruptScope::Block { first, mask }));
    let rows = [
        ("global", 0x04, Ok(Descriptor::InterruptEntries(InterruptScope::All))),
        ("global, index ignored", 0x1234_0000_0004, Ok(Descriptor::InterruptEntries(InterruptScope::All))),
        ("one", 0x1235_0000_0014, block(0x1235, 0)),
        ("four, index not aligned", 0x1235_1000_0014, block(0x1234, 3)),
        ("half of all", 0xffff_7800_0014, block(0x8000, 0x7fff)),
        ("mask beyond MHMV", 0x0000_8000_0014, Err(QueueError::Reserved)),
        ("reserved bit", 0x0100_0014, Err(QueueError::Reserved)),
    ];
    for (name, low, expected) in rows {
        for mode in [SCALABLE, LEGACY, NARROW] {
            assert_eq!(decode(&[low, 0, 0, 0], mode, &capability), expected, "{name} {mode:?}");
        }
    }
    assert_eq!(decoded(0x04, 0), Err(QueueError::Type), "without interrupt remapping");
    assert!(InterruptScope::All.hits(7));
    let four = InterruptScope::Block { first: 0x1234, mask: 3 };
    assert!(four.hits(0x1237) && !four.hits(0x1238) && !four.hits(0x1233));
}
