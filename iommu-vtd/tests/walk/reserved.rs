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
}

fn process(world: &World<'_>, level: u32) -> Gpa {
    let entry = world.pasid(PROCESS).at();
    let mut table = world.tables.word(Gpa(entry.0 + 16)) & !0xfff;
    let five = world.tables.word(Gpa(entry.0 + 16)) & 4 != 0;
    for above in (level + 1..=if five { 5 } else { 4 }).rev() {
        let index = PAGE >> (12 + 9 * (above - 1)) & 0x1ff;
        table = world.tables.word(Gpa(table + index * 8)) & 0xf_ffff_ffff_f000;
    }
    Gpa(table + (PAGE >> (12 + 9 * (level - 1)) & 0x1ff) * 8)
}

const H: u32 = HAW;

const STRUCTURES: &[Structure] = &[
    Structure {
        name: "root half",
        code: 0x3a,
        at: |w| w.tables.root(),
        words: 1,
        reserved: &[(1, 11), (H, 63)],
    },
    Structure {
        name: "context entry",
        code: 0x42,
        at: |w| w.context().at(),
        words: 4,
        reserved: &[(5, 6), (7, 8), (H, 63), (85, 255)],
    },
    Structure {
        name: "directory entry",
        code: 0x52,
        at: |w| w.pasid(PROCESS).directory_at(),
        words: 1,
        reserved: &[(2, 11), (H, 63)],
    },
    Structure {
        name: "PASID entry",
        code: 0x5a,
        at: |w| w.pasid(PROCESS).at(),
        words: 8,
        // Without a second stage SSADE and SSPTPTR are reserved, AW is let through.
        reserved: &[
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
    },
    Structure { name: "PML4E", code: 0x72, at: |w| process(w, 4), words: 1, reserved: &[(7, 7), (H, 51)] },
    // As large pages these two would have address bits below the page's size.
    Structure {
        name: "PDPE to a table",
        code: 0x72,
        at: |w| process(w, 3),
        words: 1,
        reserved: &[(7, 7), (H, 51)],
    },
    Structure {
        name: "PDE to a table",
        code: 0x72,
        at: |w| process(w, 2),
        words: 1,
        reserved: &[(7, 7), (H, 51)],
    },
    Structure { name: "PTE", code: 0x72, at: |w| process(w, 1), words: 1, reserved: &[(H, 51)] },
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
        let found = code(world.ask(&read()));
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
    let pml5e = Structure {
        name: "PML5E",
        code: 0x72,
        at: |w| process(w, 5),
        words: 1,
        reserved: &[(7, 7), (H, 51)],
    };
    check(&pml5e, five);
    let pml4e = Structure { name: "PML4E under it", at: |w| process(w, 4), ..pml5e };
    check(&pml4e, five);

    // Bit 12 is PAT.
    let large = Structure {
        name: "2 MiB PDE",
        code: 0x72,
        at: |w| process(w, 2),
        words: 1,
        reserved: &[(13, 20), (H, 51)],
    };
    check(&large, |w| _ = w.map(PROCESS, PAGE, 0, PageSize::Size2M));
    let huge = Structure {
        name: "1 GiB PDPE",
        code: 0x72,
        at: |w| process(w, 3),
        words: 1,
        reserved: &[(13, 29), (H, 51)],
    };
    check(&huge, |w| _ = w.map(PROCESS, PAGE, 0, PageSize::Size1G));
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
