//! Tables against bytes put together by hand from the manual's tables.

use iommu_core::SourceId;

use super::*;
use crate::capability::Capability;
use crate::profile::Profile;

const ENDPOINT: SourceId = SourceId::from_bdf(0, 1, 0);

fn capability(change: impl Fn(&mut Profile)) -> Capability {
    let mut profile = Profile::svm(46);
    change(&mut profile);
    Capability::new(&profile.settled()).unwrap()
}

/// Without interrupt remapping.
fn plain() -> Capability {
    capability(|profile| profile.interrupt_remapping = false)
}

fn ioapic() -> DeviceScope {
    DeviceScope::new(ScopeKind::IoApic(5), SourceId::from_bdf(0xff, 0x1e, 3))
}

/// The unit for all functions, at the customary place.
fn all(scopes: Vec<DeviceScope>) -> Drhd {
    Drhd::for_all(&plain(), 0xfed9_0000, scopes)
}

/// A unit for some functions.
fn some(register_base: u64, scopes: Vec<DeviceScope>) -> Drhd {
    Drhd { include_pci_all: false, ..Drhd::for_all(&plain(), register_base, scopes) }
}

fn endpoint() -> DeviceScope {
    DeviceScope::new(ScopeKind::Endpoint, ENDPOINT)
}

/// A table of one unit for all functions.
fn table() -> Dmar {
    Dmar { units: vec![all(vec![])], ..Dmar::default() }
}

const HEADER: [u8; 12] = [45, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// The unit for all functions, listing nothing.
const ALL: [u8; 16] = [0, 0, 16, 0, 1, 0, 0, 0, 0, 0, 0xd9, 0xfe, 0, 0, 0, 0];

/// (name, scope, its bytes)
#[test]
fn scopes() {
    let at = |kind| DeviceScope::new(kind, SourceId::from_bdf(0xff, 0x1e, 3));
    let rows: [(&str, DeviceScope, &[u8]); 6] = [
        ("endpoint", endpoint(), &[1, 8, 0, 0, 0, 0, 1, 0]),
        (
            "endpoint behind two bridges",
            DeviceScope::new(ScopeKind::Endpoint, SourceId::from_bdf(0, 0x1c, 2)).behind([(0, 1), (31, 7)]),
            &[1, 12, 0, 0, 0, 0, 0x1c, 2, 0, 1, 31, 7],
        ),
        (
            "bridge",
            DeviceScope::new(ScopeKind::SubHierarchy, SourceId::from_bdf(0, 2, 0)),
            &[2, 8, 0, 0, 0, 0, 2, 0],
        ),
        ("I/O APIC", at(ScopeKind::IoApic(5)), &[3, 8, 0, 0, 5, 0xff, 0x1e, 3]),
        ("HPET", at(ScopeKind::Hpet(1)), &[4, 8, 0, 0, 1, 0xff, 0x1e, 3]),
        ("namespace", at(ScopeKind::Namespace(9)), &[5, 8, 0, 0, 9, 0xff, 0x1e, 3]),
    ];
    for (name, scope, expected) in rows {
        let body = Dmar {
            units: vec![some(0xfed9_1000, vec![scope])],
            namespace: vec![Andd { number: 9, name: "\\X".into() }],
            ..Dmar::default()
        }
        .body()
        .unwrap();
        let length = 16 + expected.len();
        assert_eq!(usize::from(body[14]), length, "{name}");
        assert_eq!(&body[28..12 + length], expected, "{name}");
    }
}

/// (name, change to the table, what follows the unit for all functions)
#[test]
fn structures() {
    type Row = (&'static str, fn(&mut Dmar), &'static [u8]);
    let rows: [Row; 8] = [
        ("nothing else", |_| (), &[]),
        (
            "RMRR",
            |t| {
                let range = 0xbf00_0000..=0xbf00_1fff;
                t.reserved_memory.push(Rmrr { segment: 0, range, scopes: vec![endpoint()] });
            },
            &[
                1, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0xbf, 0, 0, 0, 0, 0xff, 0x1f, 0, 0xbf, 0, 0, 0,
                0, // RMRR
                1, 8, 0, 0, 0, 0, 1, 0,
            ],
        ),
        (
            "ATSR for all root ports",
            |t| t.root_ports.push(Atsr { segment: 0, root_ports: vec![] }),
            &[2, 0, 8, 0, 1, 0, 0, 0],
        ),
        (
            "ATSR for one root port of segment 258",
            |t| {
                let port = DeviceScope::new(ScopeKind::SubHierarchy, SourceId::from_bdf(0, 3, 0));
                t.root_ports.push(Atsr { segment: 258, root_ports: vec![port] });
            },
            &[2, 0, 16, 0, 0, 0, 2, 1, 2, 8, 0, 0, 0, 0, 3, 0],
        ),
        (
            "RHSA",
            |t| t.units[0].proximity = Some(0x0102),
            &[3, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0xd9, 0xfe, 0, 0, 0, 0, 2, 1, 0, 0],
        ),
        (
            "ANDD",
            |t| t.namespace.push(Andd { number: 3, name: "\\_SB_.DMA0".into() }),
            b"\x04\0\x13\0\0\0\0\x03\\_SB_.DMA0\0",
        ),
        (
            "SATC",
            |t| t.integrated.push(Satc { segment: 0, required: false, scopes: vec![endpoint()] }),
            &[5, 0, 16, 0, 0, 0, 0, 0, 1, 8, 0, 0, 0, 0, 1, 0],
        ),
        (
            "SATC, required",
            |t| t.integrated.push(Satc { segment: 1, required: true, scopes: vec![endpoint()] }),
            &[5, 0, 16, 0, 1, 0, 1, 0, 1, 8, 0, 0, 0, 0, 1, 0],
        ),
    ];
    for (name, change, expected) in rows {
        let mut table = table();
        change(&mut table);
        assert_eq!(table.body().unwrap(), [&HEADER, &ALL[..], expected].concat(), "{name}");
    }
}

#[test]
fn units_have_size_and_segment_and_their_order() {
    let large = Drhd { register_pages_log2: 1, ..some(0xfed8_0000, vec![endpoint()]) };
    let far = Drhd { segment: 0x1234, ..some(0xfed9_2000, vec![endpoint()]) };
    let table = Dmar { units: vec![far, all(vec![ioapic()]), large], ..Dmar::default() };
    let expected: [&[u8]; 7] = [
        &HEADER,
        &[0, 0, 24, 0, 0, 1, 0, 0, 0, 0, 0xd8, 0xfe, 0, 0, 0, 0],
        &[1, 8, 0, 0, 0, 0, 1, 0],
        &[0, 0, 24, 0, 1, 0, 0, 0, 0, 0, 0xd9, 0xfe, 0, 0, 0, 0],
        &[3, 8, 0, 0, 5, 0xff, 0x1e, 3],
        &[0, 0, 24, 0, 0, 0, 0x34, 0x12, 0, 0x20, 0xd9, 0xfe, 0, 0, 0, 0],
        &[1, 8, 0, 0, 0, 0, 1, 0],
    ];
    assert_eq!(table.body().unwrap(), expected.concat(), "the unit for all is the last of its segment");
}

#[test]
fn structures_ascend_by_type() {
    let scopes = vec![endpoint()];
    let table = Dmar {
        units: vec![Drhd { proximity: Some(0), ..all(vec![]) }, some(0xfed9_1000, scopes.clone())],
        reserved_memory: vec![Rmrr { segment: 0, range: 0..=0xfff, scopes: scopes.clone() }],
        root_ports: vec![Atsr { segment: 0, root_ports: vec![] }],
        integrated: vec![Satc { segment: 0, required: false, scopes }],
        namespace: vec![Andd { number: 0, name: "\\A".into() }],
        ..Dmar::default()
    };
    let body = table.body().unwrap();
    let mut rest = &body[12..];
    let mut types = Vec::new();
    while !rest.is_empty() {
        types.push(u16::from_le_bytes([rest[0], rest[1]]));
        rest = &rest[usize::from(u16::from_le_bytes([rest[2], rest[3]]))..];
    }
    assert_eq!(types, [0, 0, 1, 2, 3, 4, 5]);
}

/// (name, remapping of two units, x2APIC of two units, change to the table, flags)
#[test]
fn flags() {
    type Row = (&'static str, [bool; 2], [bool; 2], fn(&mut Dmar), u8);
    let rows: [Row; 6] = [
        ("none", [false, false], [false, false], |_| (), 0),
        ("all", [true, true], [true, true], |_| (), 1),
        ("one cannot remap", [true, false], [true, false], |_| (), 0),
        ("one has short ids", [true, true], [true, false], |_| (), 3),
        ("not wanted", [true, true], [true, true], |t| t.x2apic_opt_out = true, 3),
        ("opt-in", [false, false], [false, false], |t| t.platform_opt_in = true, 4),
    ];
    for (name, remapping, x2apic, change, expected) in rows {
        let of = |index: usize| {
            capability(|profile| {
                (profile.interrupt_remapping, profile.extended_interrupts) =
                    (remapping[index], x2apic[index]);
            })
        };
        let second = Drhd { capability: of(1), ..some(0xfed9_1000, vec![endpoint()]) };
        let first = Drhd { capability: of(0), ..all(vec![ioapic()]) };
        let mut table = Dmar { units: vec![first, second], ..Dmar::default() };
        change(&mut table);
        assert_eq!(table.body().unwrap()[1], expected, "{name}");
    }
}

#[test]
fn the_narrowest_unit_says_the_width() {
    let narrow = Capability::new(&Profile::legacy(39)).unwrap();
    let second = Drhd { capability: narrow, ..some(0xfed9_1000, vec![endpoint()]) };
    assert_eq!(Dmar { units: vec![all(vec![]), second], ..Dmar::default() }.body().unwrap()[0], 38);
}

/// (name, change to the table, error)
#[test]
fn contradictions_are_refused() {
    type Row = (&'static str, fn(&mut Dmar), DmarError);
    let rows: [Row; 15] = [
        ("no unit", |t| t.units.clear(), DmarError::NoUnit),
        ("two for all", |t| t.units.push(Drhd { register_base: 0, ..all(vec![]) }), DmarError::TwoForAll(0)),
        ("all and one", |t| t.units[0].scopes.push(endpoint()), DmarError::ListsFunctions(0)),
        ("nobody", |t| t.units.push(some(0xfed9_1000, vec![])), DmarError::Empty(0)),
        (
            "function twice",
            |t| t.units.push(some(0xfed9_1000, vec![endpoint(), endpoint()])),
            DmarError::Twice { segment: 0, source_id: 8 },
        ),
        (
            "I/O APIC under two units",
            |t| {
                t.units[0].scopes.push(ioapic());
                let other = DeviceScope::new(ScopeKind::IoApic(5), SourceId(0xfe00));
                t.units.push(some(0xfed9_1000, vec![other]));
            },
            DmarError::Twice { segment: 0, source_id: 0xfe00 },
        ),
        ("odd base", |t| t.units[0].register_base = 0x800, DmarError::Alignment(0x800)),
        (
            "base not aligned to size",
            |t| t.units[0].register_pages_log2 = 5,
            DmarError::Alignment(0xfed9_0000),
        ),
        ("huge", |t| t.units[0].register_pages_log2 = 16, DmarError::Alignment(0xfed9_0000)),
        (
            "shared page",
            |t| t.units.push(some(0xfed9_0000, vec![endpoint()])),
            DmarError::Overlap(0xfed9_0000),
        ),
        (
            "namespace device without name",
            |t| t.units[0].scopes.push(DeviceScope::new(ScopeKind::Namespace(1), SourceId(0xff10))),
            DmarError::Namespace(1),
        ),
        ("relative name", |t| t.namespace.push(Andd { number: 0, name: "DMA0".into() }), DmarError::Name(0)),
        ("NUL", |t| t.namespace.push(Andd { number: 0, name: "\\A\0B".into() }), DmarError::Name(0)),
        (
            "half a page reserved",
            |t| t.reserved_memory.push(Rmrr { segment: 0, range: 0..=0x7ff, scopes: vec![endpoint()] }),
            DmarError::Alignment(0x800),
        ),
        (
            "reserved for nobody",
            |t| t.reserved_memory.push(Rmrr { segment: 0, range: 0..=0xfff, scopes: vec![] }),
            DmarError::Empty(1),
        ),
    ];
    for (name, change, expected) in rows {
        let mut table = table();
        change(&mut table);
        assert_eq!(table.body(), Err(expected), "{name}");
    }
}

#[test]
fn lists_are_neither_empty_nor_endless() {
    type Row = (&'static str, fn(&mut Dmar), DmarError);
    let rows: [Row; 4] = [
        (
            "no integrated device",
            |t| t.integrated.push(Satc { segment: 0, required: false, scopes: vec![] }),
            DmarError::Empty(5),
        ),
        ("deep", |t| t.units.push(some(0xfed9_1000, vec![endpoint().behind([(0, 0); 65])])), DmarError::Long),
        (
            "long",
            |t| t.root_ports.push(Atsr { segment: 0, root_ports: vec![endpoint(); 513] }),
            DmarError::Long,
        ),
        (
            "long and deep",
            |t| {
                let root_ports = vec![endpoint().behind([(0, 0); 64]); 512];
                t.root_ports.push(Atsr { segment: 0, root_ports });
            },
            DmarError::Long,
        ),
    ];
    for (name, change, expected) in rows {
        let mut table = table();
        change(&mut table);
        assert_eq!(table.body(), Err(expected), "{name}");
    }
}
