//! Translation against an independent naive model, over random tables, spoiled tables and requests.
//!
//! `PROPTEST_CASES` sets the number of scenarios; each makes six requests and one page request on the same
//! memory, and compares the answers and all of memory.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod oracle;

use std::collections::BTreeMap;

use iommu_core::{
    Access, AddressType, Completion, Domain, DomainId, Fault, GroupIndex, Iova, PageRequest, Pasid,
    Permissions, Request, SourceId, Translation, VendorData,
};
use iommu_vtd::ats::admit_page_request;
use iommu_vtd::memory::TableMemory;
use iommu_vtd::rules::Rules;
use iommu_vtd::spec::registers::{Cap, Ecap};
use iommu_vtd::tables::{Context, RootLatch, pasid_domain};
use iommu_vtd::translate::translate;
use oracle::{Image, Outcome, Registers};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const PAGE: u64 = 4096;
const PAGES: u64 = 12;
const fn page_at(number: u64) -> u64 {
    number * PAGE
}

const SOURCES: [u16; 4] = [0x0018, 0x0098, 0x1218, 0x0019];
const PASIDS: [u32; 6] = [0, 5, 63, 64, 0x2000, 0xf_ffff];
/// Input addresses: both halves, both widths, around the interrupt range, and not canonical.
const INPUTS: [u64; 12] = [
    0x7f12_3456_7000,
    0xffff_8123_4567_8000,
    0x00ab_cdef_1234_5000,
    0xff12_3456_789a_b000,
    0xfee0_1000,
    0xfeef_f000,
    0xfef0_0000,
    0xfed0_0000,
    0xc000_0000,
    0x8000_0000_0000,
    0x0100_0000_0000_0000,
    0x1000,
];
/// Output addresses, before they are aligned to the size of the page.
const OUTPUTS: [u64; 7] =
    [0x1234_5000, 0xfee0_0000, 0xfeef_f000, 0xfed0_0000, 0xc000_0000, 0x3f_ffff_f000, 0x1_0000_0000];

/// How one word is spoiled.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Flip(u32),
    Zero,
    Ones,
    /// An address at which there is no memory.
    Astray,
}

#[derive(Clone, Debug)]
struct Tables {
    rid_pasid: u32,
    rid_priv: bool,
    /// DTE, PASIDE, PRE, FPD.
    context: [bool; 4],
    pdts: u64,
    fpd: [bool; 2],
    pgtt: u64,
    five_level: bool,
    /// PWSNP, PGSNP, SRE, WPE, EAFE.
    entry: [bool; 5],
    domain: u16,
    leaf_level: u64,
    input: u64,
    output: u64,
    /// Bits of the paging entries, by level.
    flags: [u64; 5],
    /// (which word of those on the path, how).
    damage: Vec<(usize, Damage)>,
}

/// A few bits that are usually on or off.
fn mostly(on: bool) -> impl Strategy<Value = bool> {
    prop::bool::weighted(if on { 0.9 } else { 0.1 })
}

fn damage() -> impl Strategy<Value = (usize, Damage)> {
    let how = prop_oneof![
        6 => (0u32..64).prop_map(Damage::Flip),
        1 => Just(Damage::Zero),
        1 => Just(Damage::Ones),
        2 => Just(Damage::Astray),
    ];
    (0usize..24, how)
}

/// P is on; the others are those that the walk looks at or must not look at.
fn paging_flags() -> impl Strategy<Value = u64> {
    let bits = [
        (1, 0.8),
        (2, 0.9),
        (3, 0.2),
        (5, 0.6),
        (6, 0.5),
        (8, 0.2),
        (9, 0.2),
        (10, 0.5),
        (58, 0.2),
        (63, 0.2),
    ];
    bits.map(|(bit, weight)| prop::bool::weighted(weight).prop_map(move |on| u64::from(on) << bit))
        .prop_map(|set| 1 | set.into_iter().sum::<u64>())
}

fn tables() -> impl Strategy<Value = Tables> {
    let context = (
        prop_oneof![6 => Just(0u32), 1 => select(&PASIDS[..])],
        mostly(false),
        [mostly(true), mostly(true), mostly(true), mostly(false)],
        prop_oneof![4 => Just(0u64), 1 => Just(7)],
        [mostly(false), mostly(false)],
    );
    let entry = (
        prop_oneof![10 => Just(1u64), 3 => Just(4), 1 => Just(2), 1 => Just(3), 1 => Just(0)],
        any::<bool>(),
        (mostly(true), [any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()]),
        any::<u16>(),
    );
    let pages = (
        1u64..=3,
        select(&INPUTS[..]),
        select(&OUTPUTS[..]),
        [paging_flags(), paging_flags(), paging_flags(), paging_flags(), paging_flags()],
        prop_oneof![2 => Just(Vec::new()), 3 => prop::collection::vec(damage(), 1..3)],
    );
    (context, entry, pages).prop_map(|(context, entry, pages)| Tables {
        rid_pasid: context.0,
        rid_priv: context.1,
        context: context.2,
        pdts: context.3,
        fpd: context.4,
        pgtt: entry.0,
        five_level: entry.1,
        entry: [entry.2.0, entry.2.1[0], entry.2.1[1], entry.2.1[2], entry.2.1[3]],
        domain: entry.3,
        leaf_level: pages.0,
        input: pages.1,
        output: pages.2,
        flags: pages.3,
        damage: pages.4,
    })
}

fn registers() -> impl Strategy<Value = Registers> {
    // DT PT SC PRS SRS NWFS EAFS PASID SMTS SSADS SSTS FSTS SMPWCS RPS ADMS RPRIVS
    let often = [2, 6, 7, 29, 31, 33, 34, 40, 43, 45, 47, 48, 49, 53];
    let seldom = [52];
    let ecap = (
        prop::collection::vec(prop::bool::weighted(0.03), often.len()),
        prop::collection::vec(any::<bool>(), seldom.len()),
        prop_oneof![4 => Just(19u64), 1 => Just(4), 1 => Just(12)],
    )
        .prop_map(move |(off, on, pss)| {
            let often = often.iter().zip(off).filter(|(_, off)| !off).map(|(bit, _)| 1u64 << bit);
            let seldom = seldom.iter().zip(on).filter(|(_, on)| *on).map(|(bit, _)| 1u64 << bit);
            often.chain(seldom).sum::<u64>() | pss << 35
        });
    // ND, FS1GP, FS5LP.
    let cap = (prop_oneof![4 => Just(6u64), 1 => Just(2)], any::<bool>(), mostly(true))
        .prop_map(|(nd, gib, five)| nd | u64::from(gib) << 56 | u64::from(five) << 60);
    let rtaddr =
        prop_oneof![20 => Just(0x400u64), 1 => Just(0x800u64), 1 => Just(0xc00), 1 => Just(1 << 30 | 0x400)];
    (select(&[39u32, 46, 52][..]), cap, ecap, mostly(true), rtaddr)
        .prop_map(|(haw, cap, ecap, enabled, rtaddr)| Registers { haw, cap, ecap, enabled, rtaddr })
}

#[derive(Clone, Debug)]
struct Ask {
    request: oracle::Request,
    /// Use the address that is mapped, with this offset; else `request.address`.
    mapped: Option<u64>,
}

fn ask() -> impl Strategy<Value = Ask> {
    use oracle::{Access, AddressType};
    let at = prop_oneof![
        4 => Just(AddressType::Untranslated),
        2 => Just(AddressType::Translation { nw: false }),
        2 => Just(AddressType::Translation { nw: true }),
        1 => Just(AddressType::Translated),
    ];
    let access = select(&[Access::Read, Access::Write, Access::Atomic, Access::ZeroLength][..]);
    let pasid = prop_oneof![3 => Just(None), 6 => Just(Some(5u32)), 2 => select(&PASIDS[..]).prop_map(Some)];
    let source = prop_oneof![8 => Just(SOURCES[0]), 1 => select(&SOURCES[..])];
    let mapped = prop_oneof![5 => (0u64..0x40_0000).prop_map(Some), 1 => Just(None)];
    let request = (source, pasid, select(&INPUTS[..]), access, at, mostly(false), mostly(false)).prop_map(
        |(source, pasid, address, access, at, pr, er)| oracle::Request {
            source,
            pasid,
            address,
            access,
            at,
            pr,
            er,
        },
    );
    (request, mapped).prop_map(|(request, mapped)| Ask { request, mapped })
}

/// Lays the tables out: page 0 root, 1 and 2 context tables, 3 directory, 4 and 5 PASID tables, 6 to 10 the
/// first-stage tables of levels 5 to 1. Page 11 stays empty.
fn lay_out(tables: &Tables) -> Image {
    let mut image = Image(vec![0; usize::try_from(PAGES * PAGE / 8).unwrap()]);
    let mut path = Vec::new();
    let mut put = |at: u64, word: u64| {
        path.push(usize::try_from(at / 8).unwrap());
        image.0[usize::try_from(at / 8).unwrap()] = word;
    };
    put(0, page_at(1) | 1);
    put(8, page_at(2) | 1);
    let [dte, paside, pre, fpd] = tables.context.map(u64::from);
    let context = [
        page_at(3) | tables.pdts << 9 | pre << 4 | paside << 3 | dte << 2 | fpd << 1 | 1,
        u64::from(tables.rid_pasid) | u64::from(tables.rid_priv) << 20,
        0,
        0,
    ];
    for page in [1, 2] {
        for (word, value) in (0..).zip(context) {
            put(page * PAGE + 0x18 * 32 + word * 8, value);
        }
    }
    for (index, page) in [(0, 4), (1, 5)] {
        put(3 * PAGE + index * 8, page_at(page) | u64::from(tables.fpd[0]) << 1 | 1);
    }
    let top = if tables.five_level { 6 } else { 7 };
    let [pwsnp, pgsnp, sre, wpe, eafe] = tables.entry.map(u64::from);
    let entry = [
        tables.pgtt << 6 | u64::from(tables.fpd[1]) << 1 | 1,
        u64::from(tables.domain) | pwsnp << 23 | pgsnp << 24,
        page_at(top) | u64::from(tables.five_level) << 2 | sre | wpe << 4 | eafe << 7,
    ];
    for index in [5, 0, 63] {
        for (word, value) in (0..).zip(entry) {
            put(4 * PAGE + index * 64 + word * 8, value);
        }
    }
    for level in (tables.leaf_level..=5).rev() {
        let shift = 12 + 9 * (level - 1);
        let flags = tables.flags[usize::try_from(level - 1).unwrap()];
        let target = if level > tables.leaf_level {
            (12 - level) * PAGE
        } else {
            let size = u64::from(level > 1) << 7;
            tables.output >> shift << shift | size
        };
        put((11 - level) * PAGE + (tables.input >> shift & 0x1ff) * 8, target | flags);
    }
    for &(which, how) in &tables.damage {
        let word = &mut image.0[path[which % path.len()]];
        match how {
            Damage::Flip(bit) => *word ^= 1 << bit,
            Damage::Zero => *word = 0,
            Damage::Ones => *word = u64::MAX,
            Damage::Astray => *word = *word & 0xfff | 1 << 32,
        }
    }
    image
}

fn real_request(request: &oracle::Request) -> Request {
    Request {
        source: SourceId(request.source),
        pasid: request.pasid.map(Pasid::truncate),
        address: Iova(request.address),
        access: match request.access {
            oracle::Access::Read => Access::Read,
            oracle::Access::Write => Access::Write,
            oracle::Access::Atomic => Access::Atomic,
            oracle::Access::ZeroLength => Access::ZeroLengthRead,
        },
        address_type: match request.at {
            oracle::AddressType::Untranslated => AddressType::Untranslated,
            oracle::AddressType::Translation { nw } => AddressType::Translation { no_write: nw },
            oracle::AddressType::Translated => AddressType::Translated,
        },
        privileged: request.pr,
        execute: request.er,
    }
}

/// The real answer in the oracle's words.
fn outcome(request: &oracle::Request, result: Result<Translation, Fault>) -> Outcome {
    match result {
        Ok(translation) if translation.untranslated_only => {
            assert!(!translation.permissions.read);
            Outcome::UntranslatedOnly { write: translation.permissions.write }
        }
        Ok(translation) if translation.permissions == Permissions::NONE => Outcome::Empty,
        Ok(translation) => {
            let unnamed = translation.tag.domain == DomainId(0);
            Outcome::Page {
                output: translation.gpa(Iova(request.address)).0,
                bits: translation.page_bits,
                read: translation.permissions.read,
                write: translation.permissions.write,
                domain: (!unnamed).then(|| u16::try_from(translation.tag.domain.0).unwrap()),
            }
        }
        Err(fault) => {
            let code = u8::try_from(fault.reason.code).unwrap();
            let code = (code != 0).then_some(code);
            match fault.completion {
                Completion::UnsupportedRequest => Outcome::UnsupportedRequest(code, fault.log),
                Completion::CompleterAbort => Outcome::CompleterAbort(code, fault.log),
                Completion::Empty => Outcome::EmptyRecorded(code, fault.log),
            }
        }
    }
}

/// Domain 0 is a name like any other, but not to be told from none.
fn without_zero(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Page { output, bits, read, write, domain } => {
            Outcome::Page { output, bits, read, write, domain: domain.filter(|&d| d != 0) }
        }
        other => other,
    }
}

thread_local! {
    static MEMORY: GuestMemoryMmap =
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), usize::try_from(PAGES * PAGE).unwrap())]).unwrap();
}

fn store(memory: &GuestMemoryMmap, image: &Image) {
    let bytes: Vec<u8> = image.0.iter().flat_map(|word| word.to_le_bytes()).collect();
    memory.write_slice(&bytes, GuestAddress(0)).unwrap();
}

fn fetch(memory: &GuestMemoryMmap) -> Image {
    let mut bytes = vec![0; usize::try_from(PAGES * PAGE).unwrap()];
    assert!(TableMemory::read(memory, iommu_core::Gpa(0), &mut bytes));
    Image(bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect())
}

fn check(memory: &GuestMemoryMmap, regs: Registers, tables: &Tables, asks: &[Ask]) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    let mut image = lay_out(tables);
    store(memory, &image);
    let rules = Rules::from_registers(
        regs.haw,
        Cap::new_with_raw_value(regs.cap),
        Ecap::new_with_raw_value(regs.ecap),
    );
    let cx = Context { memory, rules: &rules, root: RootLatch::new(regs.rtaddr, regs.enabled) };
    for ask in asks {
        let mut request = ask.request;
        if let Some(offset) = ask.mapped {
            let page_bits = 12 + 9 * (tables.leaf_level - 1);
            request.address = (tables.input >> page_bits << page_bits) + offset % (1 << page_bits);
        }
        let expected = without_zero(oracle::translate(&regs, &mut image, &request));
        let found = outcome(&request, translate(&cx, &real_request(&request)));
        assert_eq!(found, expected, "{request:x?}");
        assert!(fetch(memory) == image, "memory after {request:x?}");
        outcomes.push(found);
    }
    if regs.enabled {
        let request = &asks[0].request;
        check_page_request(&cx, &regs, &image, request);
    }
    assert!(fetch(memory) == image, "a page request changes nothing");
    outcomes
}

fn check_page_request(
    cx: &Context<'_, GuestMemoryMmap>,
    regs: &Registers,
    image: &Image,
    request: &oracle::Request,
) {
    let pasid = request.pasid.map(Pasid::truncate);
    let expected = oracle::page_request(regs, image, request.source, request.pasid);
    let page_request = PageRequest {
        source: SourceId(request.source),
        pasid,
        address: Iova(request.address),
        read: true,
        write: false,
        execute: false,
        privileged: request.pr,
        last: true,
        group: GroupIndex::truncate(3),
        vendor: VendorData::NONE,
    };
    let found = admit_page_request(cx, &page_request)
        .map(|tag| (u16::try_from(tag.domain.0).unwrap(), u64::from(tag.pasid.get())))
        .map_err(|fault| (u8::try_from(fault.reason.code).unwrap(), fault.log));
    assert_eq!(found, expected, "page request of {request:x?}");
    // What can have page requests is bound to something.
    if let Ok((domain, _)) = expected {
        let id = match pasid_domain(cx, SourceId(request.source), pasid) {
            Domain::FirstStage { id, .. } | Domain::PassThrough { id } => id,
            other => panic!("{other:?}"),
        };
        assert_eq!(id, DomainId(domain.into()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn translation_equals_the_oracle(
        regs in registers(),
        tables in tables(),
        asks in prop::collection::vec(ask(), 6),
    ) {
        MEMORY.with(|memory| check(memory, regs, &tables, &asks));
    }
}

/// The property would hold of anything if the scenarios met nothing: they reach every condition of this slice
/// but the failing atomic update, which needs another CPU.
#[test]
fn scenarios_reach_every_condition() {
    let strategy = (registers(), tables(), prop::collection::vec(ask(), 6));
    let mut runner = TestRunner::deterministic();
    let mut met = BTreeMap::<String, u32>::new();
    for _ in 0..2500 {
        let (regs, tables, asks) = strategy.new_tree(&mut runner).unwrap().current();
        for outcome in MEMORY.with(|memory| check(memory, regs, &tables, &asks)) {
            let name = match outcome {
                Outcome::UnsupportedRequest(code, _) => format!("UR {:02x}", code.unwrap_or(0)),
                Outcome::CompleterAbort(code, _) => format!("CA {:02x}", code.unwrap_or(0)),
                Outcome::EmptyRecorded(..) => "empty, recorded".into(),
                Outcome::Empty => "empty".into(),
                Outcome::UntranslatedOnly { write } => format!("untranslated only {write}"),
                Outcome::Page { bits, write, .. } => format!("page {bits} {write}"),
            };
            *met.entry(name).or_default() += 1;
        }
    }
    let untranslated: [u8; 34] = [
        0x00, 0x29, 0x30, 0x33, 0x38, 0x39, 0x3a, 0x40, 0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x48, 0x50, 0x51,
        0x52, 0x58, 0x59, 0x5a, 0x5b, 0x5c, 0x5d, 0x70, 0x71, 0x72, 0x73, 0x80, 0x81, 0x83, 0x85, 0x87, 0x89,
    ];
    let aborts: [u8; 9] = [0x38, 0x3a, 0x40, 0x42, 0x43, 0x50, 0x52, 0x5a, 0x87];
    let mut names: Vec<String> = untranslated.iter().map(|code| format!("UR {code:02x}")).collect();
    names.extend(aborts.iter().map(|code| format!("CA {code:02x}")));
    let others = ["UR 90", "empty", "untranslated only true", "untranslated only false", "page 12 true"];
    names.extend(others.map(String::from));
    names.extend(["page 12 false", "page 20 true", "page 21 true", "page 30 true"].map(String::from));
    let missing: Vec<_> = names.iter().filter(|name| !met.contains_key(*name)).collect();
    assert!(missing.is_empty(), "{missing:?} not among {met:?}");
}
