//! Page tables: what is made of what, what holds what, and invalidations.

use rustix::io::Errno;

use super::super::{Array, Data, Entry, NOTHING, Outcome, Row, Step, Table};
use super::{NESTED, PAGING, PARENT, WITH_FAULTS, after, good, no, ok, parent, row, same};

pub(super) fn rows() -> Vec<Row> {
    vec![
        order_of_destruction(),
        row(
            "what-a-device-says",
            [
                ok(Step::Device("device", true)),
                same(Step::Info("device"), Outcome::Count(20)),
                ok(Step::Device("plain", false)),
                same(Step::Info("plain"), Outcome::Count(0)),
                no(Step::Info(NOTHING), Errno::NOENT),
                ok(Step::Ioas("space")),
                no(Step::Info("space"), Errno::NOENT),
            ],
        ),
        row("what-a-table-is-of", after(parent(), of_what())),
        row("what-describes-a-table", after(parent(), described_by())),
        row("flags-of-a-table", after(parent(), flags())),
        row(
            "what-invalidations-are-of",
            after(
                parent(),
                [
                    ok(Step::Table("nested", NESTED)),
                    ok(Step::Invalidate("nested", good(1))),
                    ok(Step::Invalidate("nested", good(0))),
                    stopped(Step::Invalidate("parent", good(1)), 0, Errno::INVAL),
                    stopped(Step::Invalidate("space", good(1)), 0, Errno::INVAL),
                    stopped(Step::Invalidate(NOTHING, good(1)), 0, Errno::NOENT),
                    stopped(Step::Invalidate("nested", Array::UnknownType), 0, Errno::INVAL),
                    stopped(Step::Invalidate("nested", Array::Short), 0, Errno::INVAL),
                ],
            ),
        ),
        row("invalidations-in-part", {
            let mixed = |entries: &[Entry]| Step::Invalidate("nested", Array::Of(entries.to_vec()));
            let (yes, flag, bad) = (Entry::Good, Entry::UnknownFlag, Entry::Malformed);
            after(
                parent(),
                [
                    ok(Step::Table("nested", NESTED)),
                    ok(Step::Attach("device", Some(1), "nested")),
                    ok(mixed(&[yes, yes, yes])),
                    stopped(mixed(&[flag]), 0, Errno::OPNOTSUPP),
                    stopped(mixed(&[bad]), 0, Errno::INVAL),
                    stopped(mixed(&[yes, flag, yes]), 1, Errno::OPNOTSUPP),
                    stopped(mixed(&[yes, yes, bad, flag]), 2, Errno::INVAL),
                    stopped(mixed(&[yes, yes, yes, bad]), 3, Errno::INVAL),
                ],
            )
        }),
    ]
}

fn stopped(step: Step, done: usize, errno: Errno) -> super::Line {
    same(step, Outcome::Stopped(done, errno))
}

/// Nothing goes before what stands on it.
fn order_of_destruction() -> Row {
    row(
        "order-of-destruction",
        after(
            parent(),
            [
                ok(Step::Queue("queue")),
                ok(Step::Table("nested", WITH_FAULTS)),
                ok(Step::Attach("device", Some(1), "nested")),
                no(Step::Destroy("space"), Errno::BUSY),
                no(Step::Destroy("parent"), Errno::BUSY),
                no(Step::Destroy("queue"), Errno::BUSY),
                no(Step::Destroy("nested"), Errno::BUSY),
                no(Step::Destroy("device"), Errno::BUSY),
                ok(Step::Detach("device", Some(1))),
                ok(Step::Destroy("nested")),
                no(Step::Destroy("queue"), Errno::BUSY),
                ok(Step::CloseQueue("queue")),
                ok(Step::Destroy("queue")),
                no(Step::Destroy("space"), Errno::BUSY),
                ok(Step::Destroy("parent")),
                ok(Step::Destroy("space")),
                no(Step::Destroy("device"), Errno::BUSY),
                ok(Step::Close("device")),
                no(Step::Destroy("device"), Errno::NOENT),
            ],
        ),
    )
}

fn of_what() -> Vec<super::Line> {
    let of = |parent| Step::Table("table", Table { parent, ..NESTED });
    let behind = |device| Step::Table("table", Table { device, ..NESTED });
    vec![
        no(of(NOTHING), Errno::INVAL),
        no(of("device"), Errno::INVAL),
        no(behind(NOTHING), Errno::NOENT),
        no(behind("space"), Errno::NOENT),
        ok(Step::Table("paging", PAGING)),
        no(of("paging"), Errno::INVAL),
        ok(Step::Table("nested", NESTED)),
        no(of("nested"), Errno::INVAL),
        ok(Step::Queue("queue")),
        no(of("queue"), Errno::INVAL),
    ]
}

fn described_by() -> Vec<super::Line> {
    let nested = |data| Step::Table("table", Table { data, ..NESTED });
    let paging = |data| Step::Table("table", Table { data, ..PAGING });
    let on_paging = |data| Step::Table("table", Table { data, parent: "paging", ..NESTED });
    vec![
        no(nested(Data::None), Errno::OPNOTSUPP),
        no(nested(Data::UnknownType), Errno::OPNOTSUPP),
        no(nested(Data::Short), Errno::INVAL),
        no(nested(Data::Empty), Errno::INVAL),
        no(nested(Data::Untyped), Errno::INVAL),
        no(paging(Data::UnknownType), Errno::OPNOTSUPP),
        no(paging(Data::Empty), Errno::INVAL),
        no(paging(Data::Untyped), Errno::INVAL),
        ok(Step::Table("paging", PAGING)),
        no(on_paging(Data::None), Errno::OPNOTSUPP),
        no(on_paging(Data::UnknownType), Errno::INVAL),
    ]
}

fn flags() -> Vec<super::Line> {
    let table = |table| Step::Table("table", table);
    let plain = Table { pasid: false, ..PARENT };
    vec![
        no(table(Table { nest_parent: true, ..NESTED }), Errno::OPNOTSUPP),
        no(table(Table { queue: Some(NOTHING), ..NESTED }), Errno::NOENT),
        no(table(Table { queue: Some("space"), ..NESTED }), Errno::NOENT),
        ok(Step::Queue("queue")),
        no(table(Table { queue: Some("queue"), ..PARENT }), Errno::OPNOTSUPP),
        no(table(Table { queue: Some("queue"), data: Data::None, ..NESTED }), Errno::OPNOTSUPP),
        // A table of the kernel's own may have one.
        ok(table(Table { queue: Some("queue"), ..PAGING })),
        ok(Step::CloseQueue("queue")),
        no(Step::Destroy("queue"), Errno::BUSY),
        ok(Step::Destroy("table")),
        ok(Step::Destroy("queue")),
        // Parent and child need not agree on PASIDs.
        ok(Step::Table("plain", plain)),
        ok(Step::Table("with", Table { parent: "plain", ..NESTED })),
        ok(Step::Table("without", Table { pasid: false, ..NESTED })),
    ]
}
