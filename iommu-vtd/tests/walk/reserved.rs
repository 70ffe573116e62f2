//! Every bit of every structure: set alone, it must or must not be refused as reserved.
//!
//! The tables below are the manual's, by its own bit positions.

use iommu_core::Gpa;
use iommu_vtd::testkit::PageSize;

use super::world::*;

/// Reserved whatever is offered (inclusive `low..=high`).
type Ranges = &'static [(u32, u32)];

struct Structure {
    name: &'static str,
    code: u16,
    at: fn(&World<'_>) -> Gpa,
    words: u32,
    reserved: Ranges,
    /// Asked without PASID.
    legacy: bool,
}

/// A structure of one word on the way of a request with PASID.
const fn word(name: &'static str, code: u16, at: fn(&World<'_>) -> Gpa, reserved: Ranges) -> Structure {
    Structure { name, code, at, words: 1, reserved, legacy: false }
}

fn process(world: &World<'_>, level: u32) -> Gpa {
    first_at(world, PAGE, level)
}

const H: u32 = HAW;

const STRUCTURES: &[Structure] = &[
    word("root half", 0x3a, |w| w.tables.root(), &[(1, 11), (H, 63)]),
    Structure {
        words: 4,
        ..word("context entry", 0x42, |w| w.context().at(), &[(5, 6), (7, 8), (H, 63), (85, 255)])
    },
    word("directory entry", 0x52, |w| w.pasid(PROCESS).directory_at(), &[(2, 11), (H, 63)]),
    Structure {
        words: 8,
        // Without a second stage SSADE and SSPTPTR are reserved, AW is let through.
        ..word(
            "PASID entry",
            0x5a,
            |w| w.pasid(PROCESS).at(),
            &[
                (5, 5),
                (9, 9),
                (10, 11),
                (12, 63),
                (80, 86),
                (89, 127),
                (129, 129),
                (136, 139),
                (128 + H, 191),
                (192, 511),
            ],
        )
    },
    word("PML4E", 0x72, |w| process(w, 4), &[(7, 7), (H, 51)]),
    // As large pages these two would have address bits below the page's size.
    word("PDPE to a table", 0x72, |w| process(w, 3), &[(7, 7), (H, 51)]),
    word("PDE to a table", 0x72, |w| process(w, 2), &[(7, 7), (H, 51)]),
    word("PTE", 0x72, |w| process(w, 1), &[(H, 51)]),
];

/// Sets each bit alone. Clearing a set bit is not of interest.
fn check(structure: &Structure, prepare: fn(&World<'_>)) {
    let memory = memory();
    let world = World::new(&memory);
    prepare(&world);
    let at = (structure.at)(&world);
    for bit in 0..structure.words * 64 {
        let word_at = Gpa(at.0 + u64::from(bit / 64) * 8);
        let word = world.tables.word(word_at);
        let mask = 1 << (bit % 64);
        if word & mask != 0 {
            continue;
        }
        world.tables.set_word(word_at, word | mask);
        let request = if structure.legacy { without_pasid(read()) } else { read() };
        let found = code(world.ask(&request));
        world.tables.set_word(word_at, word);
        let reserved = structure.reserved.iter().any(|&(low, high)| (low..=high).contains(&bit));
        assert_eq!(found == structure.code, reserved, "{} bit {bit}: {found:#x}", structure.name);
    }
}

#[test]
fn reserved_bits_are_those_of_the_manual() {
    for structure in STRUCTURES {
        check(structure, |_| ());
    }
}

#[test]
fn reserved_bits_of_a_five_level_table_and_of_large_pages() {
    let five: fn(&World<'_>) = |w| {
        let space = w.tables.address_space(5);
        space.map(PAGE, OUTPUT, PageSize::Size4K, iommu_vtd::testkit::flags::READY);
        w.pasid(PROCESS).attach(7, &space);
    };
    check(&word("PML5E", 0x72, |w| process(w, 5), &[(7, 7), (H, 51)]), five);
    check(&word("PML4E under it", 0x72, |w| process(w, 4), &[(7, 7), (H, 51)]), five);
    // Bit 12 is PAT.
    let large = word("2 MiB PDE", 0x72, |w| process(w, 2), &[(13, 20), (H, 51)]);
    check(&large, |w| _ = w.map(PROCESS, PAGE, 0, PageSize::Size2M));
    let huge = word("1 GiB PDPE", 0x72, |w| process(w, 3), &[(13, 29), (H, 51)]);
    check(&huge, |w| _ = w.map(PROCESS, PAGE, 0, PageSize::Size1G));
}

/// With a second stage offered, SSADE and SSPTPTR are defined, and ignored where they do not apply.
#[test]
fn reserved_bits_of_a_pasid_entry_with_everything_offered() {
    let reserved: Ranges =
        &[(5, 5), (10, 11), (H, 63), (80, 86), (89, 127), (129, 129), (136, 139), (128 + H, 191), (192, 511)];
    let entry = Structure { words: 8, ..word("PASID entry", 0x5a, |w| w.pasid(PROCESS).at(), reserved) };
    check(&entry, |w| w.registers(CAP_ALL, ECAP_ALL));
    check(&entry, |w| w.second());
    check(&entry, |w| w.nested());
    check(&entry, |w| {
        w.registers(CAP_ALL, ECAP_ALL);
        w.pasid(PROCESS).pass_through(7);
    });
}

fn second(world: &World<'_>, level: u32) -> Gpa {
    second_at(world, PAGE, level)
}

/// Replaces the page of the second stage by a larger one at 0.
fn enlarge(world: &World<'_>, level: u32) {
    world.second();
    edit(world, second(world, level), |_| 0x83);
}

/// The page size bit of the last level is ignored; bit 12 of a large page is reserved, other than in the first
/// stage; bit 62 is reserved everywhere, bits 61, 63 and 60:52 are ignored.
#[test]
fn reserved_bits_of_second_stage_entries() {
    let table: Ranges = &[(7, 7), (11, 11), (H, 51), (62, 62)];
    check(&word("SS-PML4E", 0x7a, |w| second(w, 4), table), |w| w.second());
    check(&word("SS-PDPE to a table", 0x7a, |w| second(w, 3), table), |w| w.second());
    check(&word("SS-PDE to a table", 0x7a, |w| second(w, 2), table), |w| w.second());
    check(&word("SS-PTE", 0x7a, |w| second(w, 1), &[(H, 51), (62, 62)]), |w| w.second());
    let large = word("2 MiB SS-PDE", 0x7a, |w| second(w, 2), &[(12, 20), (H, 51), (62, 62)]);
    check(&large, |w| enlarge(w, 2));
    let huge = word("1 GiB SS-PDPE", 0x7a, |w| second(w, 3), &[(12, 29), (H, 51), (62, 62)]);
    check(&huge, |w| enlarge(w, 3));
    let five: fn(&World<'_>) = |w| {
        w.registers(CAP_ALL, ECAP_ALL);
        let space = w.tables.second_space(5);
        space.map(PAGE, OUTPUT, PageSize::Size4K, iommu_vtd::testkit::flags::SECOND);
        w.pasid(PROCESS).attach(7, &space);
    };
    check(&word("SS-PML5E", 0x7a, |w| second(w, 5), table), five);
}

/// SNP of a leaf depends on snoop control and on nothing else.
#[test]
fn snoop_bit_is_reserved_without_snoop_control() {
    for (name, level) in [("SS-PTE", 1), ("2 MiB SS-PDE", 2), ("1 GiB SS-PDPE", 3)] {
        for offered in [true, false] {
            let memory = memory();
            let world = World::new(&memory);
            world.second();
            if level > 1 {
                enlarge(&world, level);
            }
            edit(&world, second(&world, level), |word| word | 1 << 11);
            if !offered {
                world.registers(CAP_ALL, ECAP_ALL & !(1 << 7));
            }
            assert_eq!(code(world.ask(&read())), if offered { 0 } else { 0x7a }, "{name}, SC={offered}");
        }
    }
}

/// (SSLPS, 2 MiB, 1 GiB)
#[test]
fn large_pages_of_the_second_stage_are_offered_one_by_one() {
    for (sslps, two_mib, one_gib) in [(0, false, false), (1, true, false), (2, false, true), (3, true, true)]
    {
        for (level, offered) in [(2, two_mib), (3, one_gib)] {
            let memory = memory();
            let world = World::new(&memory);
            enlarge(&world, level);
            world.registers(CAP_ALL & !(3 << 34) | sslps << 34, ECAP_ALL);
            assert_eq!(
                code(world.ask(&read())),
                if offered { 0 } else { 0x7a },
                "SSLPS={sslps} level {level}"
            );
        }
    }
}

#[test]
fn reserved_bits_of_legacy_tables() {
    let root: fn(&World<'_>) -> Gpa = |w| w.root.get().table();
    let entry: fn(&World<'_>) -> Gpa = |w| w.legacy_at();
    let legacy =
        |name, code, at, words, reserved| Structure { words, legacy: true, ..word(name, code, at, reserved) };
    check(&legacy("root entry", 0x0a, root, 2, &[(1, 11), (H, 63), (64, 127)]), |w| w.legacy());
    let reserved: Ranges = &[(4, 11), (H, 63), (71, 71), (88, 127)];
    check(&legacy("context entry", 0x0b, entry, 2, reserved), |w| w.legacy());
    // Where it is not used, SSPTPTR may hold anything.
    let passes: Ranges = &[(4, 11), (71, 71), (88, 127)];
    check(&legacy("pass-through context entry", 0x0b, entry, 2, passes), |w| {
        w.legacy();
        edit(w, w.legacy_at(), |word| word & !0b1100 | 2 << 2);
    });
    let table: fn(&World<'_>) -> Gpa = |w| legacy_second_at(w, PAGE, 2);
    check(&legacy("SS-PDE", 0x0c, table, 1, &[(7, 7), (11, 11), (H, 51), (62, 62)]), |w| w.legacy());
}

/// Domain-ids of legacy context entries.
#[test]
fn domain_ids_of_legacy_mode_have_as_many_bits_as_offered() {
    for (nd, bits) in [(0, 4), (2, 8), (6, 16)] {
        for bit in 0..16 {
            let memory = memory();
            let world = World::new(&memory);
            world.legacy();
            world.registers(CAP_ALL & !7 | nd, ECAP_ALL);
            edit(&world, Gpa(world.legacy_at().0 + 8), |word| word & 7 | 1 << (8 + bit));
            let expected = if bit < bits { 0 } else { 0x0b };
            assert_eq!(code(world.ask(&without_pasid(read()))), expected, "ND={nd} bit {bit}");
        }
    }
}

/// (name, what is not offered, structure, bit, code). With the feature the bit is defined, without it reserved.
#[test]
fn what_is_not_offered_is_reserved() {
    type At = fn(&World<'_>) -> Gpa;
    let context: At = |w| w.context().at();
    let entry: At = |w| w.pasid(PROCESS).at();
    let rows: [(&str, u64, u64, At, u32, u16); 13] = [
        ("DTE without DT", 0, 1 << 2, context, 2, 0x42),
        ("PASIDE without PASID", 0, 1 << 40, context, 3, 0x42),
        ("PRE without PRS", 0, 1 << 29, context, 4, 0x42),
        ("RID_PASID without RPS", 0, 1 << 49, context, 64, 0x42),
        ("RID_PRIV without RPRIVS", 0, 1 << 53, context, 84, 0x42),
        ("PWSNP without SMPWCS", 0, 1 << 48, entry, 87, 0x5a),
        ("PGSNP without SC", 0, 1 << 7, entry, 88, 0x5a),
        ("SRE without SRS", 0, 1 << 31, entry, 128, 0x5a),
        ("FSPM without FSTS", 0, 1 << 47, entry, 130, 0x5a),
        ("WPE without FSTS", 0, 1 << 47, entry, 132, 0x5a),
        ("EAFE without EAFS", 0, 1 << 34, entry, 135, 0x5a),
        ("FSPTPTR without FSTS", 0, 1 << 47, entry, 140, 0x5a),
        ("1 GiB page without FS1GP", 1 << 56, 0, |w| process(w, 3), 7, 0x72),
    ];
    for (name, cap, ecap, at, bit, expected) in rows {
        for offered in [true, false] {
            let memory = memory();
            let world = World::new(&memory);
            let space = world.tables.address_space(4);
            space.map(PAGE, 0, PageSize::Size1G, iommu_vtd::testkit::flags::READY);
            world.pasid(PROCESS).attach(7, &space);
            // The structure as it is when nothing optional is used, and then this one bit.
            if expected != 0x72 {
                world.tables.set_word(process(&world, 3), 0);
            }
            if expected == 0x42 {
                world.context().edit(|low| low.with_dte(bit == 4).with_paside(false).with_pre(false));
            }
            let word_at = Gpa(at(&world).0 + u64::from(bit / 64) * 8);
            world.tables.set_word(word_at, world.tables.word(word_at) | 1 << (bit % 64));
            if !offered {
                world.registers(CAP & !cap, ECAP & !ecap);
            }
            let found = code(world.ask(&read()));
            assert_eq!(found == expected, !offered, "{name}, offered: {offered}: {found:#x}");
        }
    }
}

#[test]
fn domain_ids_have_as_many_bits_as_offered() {
    let memory = memory();
    let world = World::new(&memory);
    for (nd, bits) in [(0, 4), (2, 8), (6, 16)] {
        world.registers(CAP & !7 | nd, ECAP);
        for bit in 0..16 {
            world.pasid(PROCESS).edit(1, |word| word & !0xffff | 1 << bit);
            let expected = if bit < bits { 0 } else { 0x5a };
            assert_eq!(code(world.ask(&read())), expected, "ND={nd} bit {bit}");
        }
    }
}
