//! Address spaces.

use iommu_core::Permissions;
use rustix::io::Errno;

use super::super::{NOTHING, Outcome, Row, Step};
use super::{PAGING, PARENT, Table, after, differs, no, ok, parent, row, same, space_and_device};

const RW: Permissions = Permissions::READ_WRITE;
const READ: Permissions = Permissions { write: false, ..Permissions::READ_WRITE };
/// Beyond all that page tables reach, as a page from where mappings begin.
const BEYOND: u64 = 1 << 44;

pub(super) fn rows() -> Vec<Row> {
    let mut rows = without_tables();
    rows.extend(limits());
    rows.extend(read_only());
    rows
}

fn without_tables() -> Vec<Row> {
    vec![
        row(
            "a-space-is-destroyed-once",
            [ok(Step::Ioas("a")), ok(Step::Destroy("a")), no(Step::Destroy("a"), Errno::NOENT)],
        ),
        row("nothing-is-not-destroyed", [no(Step::Destroy(NOTHING), Errno::NOENT)]),
        row(
            "nothing-is-no-space",
            [
                no(Step::Map(NOTHING, 0, 1, RW), Errno::NOENT),
                no(Step::Unmap(NOTHING, 0, 1), Errno::NOENT),
                no(Step::UnmapAll(NOTHING), Errno::NOENT),
                no(Step::Ranges(NOTHING), Errno::NOENT),
                no(Step::Copy((NOTHING, 0, 1), (NOTHING, 0), RW), Errno::NOENT),
            ],
        ),
        row(
            "another-object-is-no-space",
            after(
                parent(),
                [
                    no(Step::Map("parent", 0, 1, RW), Errno::NOENT),
                    no(Step::Unmap("device", 0, 1), Errno::NOENT),
                    no(Step::Ranges("parent"), Errno::NOENT),
                ],
            ),
        ),
        mappings("mappings", vec![ok(Step::Ioas("space"))]),
        mappings("mappings-below-a-table", parent()),
        unmapping("unmapping", vec![ok(Step::Ioas("space"))]),
        unmapping("unmapping-below-a-table", parent()),
        copies("copies", vec![ok(Step::Ioas("space")), ok(Step::Ioas("other"))]),
        copies("copies-below-tables", {
            let other = Table { parent: "other", ..PAGING };
            let paging = [ok(Step::Ioas("other")), ok(Step::Table("paging", PAGING))];
            after(space_and_device(), paging.into_iter().chain([ok(Step::Table("other-paging", other))]))
        }),
    ]
}

/// What tables and drivers refuse.
fn limits() -> Vec<Row> {
    vec![
        row(
            "what-no-table-reaches",
            after(
                space_and_device(),
                [
                    ok(Step::Map("space", BEYOND, 1, RW)),
                    no(Step::Table("paging", PAGING), Errno::ADDRINUSE),
                    no(Step::Table("parent", PARENT), Errno::ADDRINUSE),
                    ok(Step::Unmap("space", BEYOND, 1)),
                    ok(Step::Table("parent", PARENT)),
                    no(Step::Map("space", BEYOND, 1, RW), Errno::INVAL),
                    ok(Step::Destroy("parent")),
                    ok(Step::Map("space", BEYOND, 1, RW)),
                ],
            ),
        ),
        row(
            "what-can-be-mapped",
            after(
                space_and_device(),
                [
                    same(Step::Ranges("space"), Outcome::Count(1)),
                    ok(Step::Attach("device", None, "space")),
                    differs(
                        Step::Ranges("space"),
                        Outcome::Count(2),
                        Outcome::Count(1),
                        "mock devices reserve nothing for interrupts",
                    ),
                ],
            ),
        ),
    ]
}

fn read_only() -> Vec<Row> {
    vec![
        row(
            "a-parent-above-read-only",
            after(
                space_and_device(),
                [
                    ok(Step::Map("space", 0, 1, READ)),
                    ok(Step::Table("paging", PAGING)),
                    differs(
                        Step::Table("parent", PARENT),
                        Outcome::Refused(Errno::INVAL),
                        Outcome::Done,
                        "an erratum of VT-d",
                    ),
                ],
            ),
        ),
        row(
            "read-only-below-a-parent",
            after(
                parent(),
                [differs(
                    Step::Map("space", 0, 1, READ),
                    Outcome::Refused(Errno::INVAL),
                    Outcome::Done,
                    "an erratum of VT-d",
                )],
            ),
        ),
    ]
}

fn mappings(name: super::Name, before: Vec<super::Line>) -> Row {
    row(
        name,
        after(
            before,
            [
                ok(Step::Map("space", 0, 4, RW)),
                no(Step::Map("space", 0, 4, RW), Errno::EXIST),
                no(Step::Map("space", 3, 4, RW), Errno::EXIST),
                no(Step::Map("space", 1, 1, RW), Errno::EXIST),
                ok(Step::Map("space", 4, 4, RW)),
                no(Step::Map("space", 8, 1, Permissions::NONE), Errno::INVAL),
                no(Step::Destroy(NOTHING), Errno::NOENT),
            ],
        ),
    )
}

fn unmapping(name: super::Name, before: Vec<super::Line>) -> Row {
    row(
        name,
        after(
            before,
            [
                ok(Step::UnmapAll("space")),
                no(Step::Unmap("space", 0, 4), Errno::NOENT),
                ok(Step::Map("space", 0, 2, RW)),
                ok(Step::Map("space", 2, 2, RW)),
                ok(Step::Map("space", 6, 2, RW)),
                // A cut takes what lies before it.
                no(Step::Unmap("space", 0, 1), Errno::NOENT),
                no(Step::Unmap("space", 0, 3), Errno::NOENT),
                ok(Step::Map("space", 0, 2, RW)),
                no(Step::Map("space", 2, 2, RW), Errno::EXIST),
                // A hole in between does not matter.
                ok(Step::Unmap("space", 0, 8)),
                no(Step::Unmap("space", 0, 8), Errno::NOENT),
                ok(Step::Map("space", 0, 8, RW)),
                ok(Step::UnmapAll("space")),
                no(Step::Unmap("space", 0, 8), Errno::NOENT),
            ],
        ),
    )
}

fn copies(name: super::Name, before: Vec<super::Line>) -> Row {
    row(
        name,
        after(
            before,
            [
                ok(Step::Map("space", 0, 2, RW)),
                ok(Step::Map("space", 2, 2, RW)),
                ok(Step::Map("space", 6, 2, READ)),
                ok(Step::Copy(("space", 0, 2), ("other", 0), RW)),
                no(Step::Copy(("space", 0, 2), ("other", 1), RW), Errno::EXIST),
                // A part of one, and parts of two.
                ok(Step::Copy(("space", 1, 1), ("other", 8), RW)),
                ok(Step::Copy(("space", 1, 2), ("other", 10), RW)),
                no(Step::Copy(("space", 3, 2), ("other", 20), RW), Errno::NOENT),
                no(Step::Copy(("space", 4, 1), ("other", 20), RW), Errno::NOENT),
                no(Step::Copy(("space", 6, 2), ("other", 20), RW), Errno::PERM),
                ok(Step::Copy(("space", 6, 2), ("other", 20), READ)),
                ok(Step::Copy(("space", 0, 2), ("space", 20), READ)),
                // They stay when what they are of goes.
                ok(Step::UnmapAll("space")),
                no(Step::Copy(("space", 0, 1), ("other", 30), RW), Errno::NOENT),
                ok(Step::Copy(("other", 0, 2), ("space", 0), RW)),
                ok(Step::Unmap("other", 10, 2)),
            ],
        ),
    )
}
