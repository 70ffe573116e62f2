//! What devices are attached to.

use rustix::io::Errno;

use super::super::{FAILING, NOTHING, Outcome, Row, Step, Table};
use super::{NESTED, PAGING, PARENT, WITH_FAULTS, after, differs, no, ok, parent, row, space_and_device};

/// Without the flag that lets it be used beside PASIDs.
const PLAIN: Table = Table { pasid: false, ..PARENT };

pub(super) fn rows() -> Vec<Row> {
    let mut rows = arriving();
    rows.extend(leaving());
    rows
}

fn arriving() -> Vec<Row> {
    let attach = |pasid, table| Step::Attach("device", pasid, table);
    let detach = |pasid| Step::Detach("device", pasid);
    vec![
        row("what-a-device-is-attached-to", after(parent(), to_what())),
        row(
            "a-space-is-held",
            after(
                space_and_device(),
                [
                    ok(attach(None, "space")),
                    ok(attach(None, "space")),
                    no(Step::Destroy("space"), Errno::BUSY),
                    ok(detach(None)),
                    ok(Step::Destroy("space")),
                ],
            ),
        ),
        row("a-table-is-replaced", replaced(None)),
        row("a-table-of-a-pasid-is-replaced", replaced(Some(7))),
        row("pasids-need-tables-for-them", after(parent(), flags())),
        row(
            "pasids-are-as-wide-as-they-are",
            after(
                parent(),
                [
                    ok(attach(Some((1 << 20) - 1), "parent")),
                    no(attach(Some(1 << 20), "parent"), Errno::INVAL),
                    ok(detach(Some((1 << 20) - 1))),
                ],
            ),
        ),
        row(
            "a-device-without-pasids-takes-them-and-does-nothing",
            after(
                parent(),
                [
                    ok(Step::Device("plain", false)),
                    differs(
                        Step::Attach("plain", Some(1), "parent"),
                        Outcome::Done,
                        Outcome::Refused(Errno::INVAL),
                        "a mock device without PASIDs has one of them, 0",
                    ),
                    ok(Step::Detach("plain", Some(1))),
                ],
            ),
        ),
    ]
}

/// How devices come off.
fn leaving() -> Vec<Row> {
    let attach = |pasid, table| Step::Attach("device", pasid, table);
    let detach = |pasid| Step::Detach("device", pasid);
    vec![
        row(
            "what-is-not-attached-is-detached",
            after(
                parent(),
                [ok(detach(None)), ok(detach(Some(3))), ok(attach(Some(3), "parent")), ok(detach(Some(4)))],
            ),
        ),
        row(
            "closing-detaches",
            after(
                parent(),
                [
                    ok(Step::Table("nested", NESTED)),
                    ok(attach(None, "nested")),
                    ok(attach(Some(5), "nested")),
                    no(Step::Destroy("nested"), Errno::BUSY),
                    ok(Step::Close("device")),
                    ok(Step::Destroy("nested")),
                    ok(Step::Destroy("parent")),
                ],
            ),
        ),
        row(
            "two-devices-share-a-table",
            after(
                parent(),
                [
                    ok(Step::Device("other", true)),
                    ok(Step::Table("nested", NESTED)),
                    ok(attach(Some(1), "nested")),
                    ok(Step::Attach("other", Some(1), "nested")),
                    ok(detach(Some(1))),
                    no(Step::Destroy("nested"), Errno::BUSY),
                    ok(Step::Detach("other", Some(1))),
                    ok(Step::Destroy("nested")),
                ],
            ),
        ),
        row("a-refused-replacement-leaves-the-books", refused()),
    ]
}

fn to_what() -> Vec<super::Line> {
    let attach = |pasid, table| Step::Attach("device", pasid, table);
    vec![
        no(attach(None, NOTHING), Errno::NOENT),
        no(attach(Some(1), NOTHING), Errno::NOENT),
        no(attach(None, "device"), Errno::INVAL),
        no(attach(Some(1), "device"), Errno::INVAL),
        ok(Step::Queue("queue")),
        no(attach(None, "queue"), Errno::INVAL),
        // The kernel makes a table that is not for PASIDs.
        no(attach(Some(1), "space"), Errno::INVAL),
        ok(Step::Table("nested", NESTED)),
        ok(attach(None, "parent")),
        ok(attach(None, "nested")),
        ok(attach(Some(1), "nested")),
        ok(attach(Some(2), "parent")),
    ]
}

fn replaced(pasid: Option<u32>) -> Vec<super::Line> {
    let attach = |table| Step::Attach("device", pasid, table);
    after(
        parent(),
        [
            ok(Step::Table("one", NESTED)),
            ok(Step::Table("two", NESTED)),
            ok(attach("one")),
            ok(attach("one")),
            no(Step::Destroy("one"), Errno::BUSY),
            ok(attach("two")),
            ok(Step::Destroy("one")),
            no(Step::Destroy("two"), Errno::BUSY),
            no(attach("one"), Errno::NOENT),
            no(Step::Destroy("two"), Errno::BUSY),
            ok(attach("parent")),
            ok(Step::Destroy("two")),
            ok(Step::Detach("device", pasid)),
            ok(Step::Destroy("parent")),
        ],
    )
}

fn flags() -> Vec<super::Line> {
    let attach = |pasid, table| Step::Attach("device", pasid, table);
    vec![
        ok(Step::Table("plain", PLAIN)),
        ok(Step::Table("paging", PAGING)),
        no(attach(Some(1), "plain"), Errno::INVAL),
        // Beside requests without PASID.
        ok(attach(None, "plain")),
        no(attach(Some(1), "parent"), Errno::INVAL),
        ok(Step::Detach("device", None)),
        ok(attach(Some(1), "parent")),
        no(attach(None, "plain"), Errno::INVAL),
        no(attach(None, "space"), Errno::INVAL),
        ok(attach(None, "paging")),
        ok(Step::Detach("device", Some(1))),
        ok(attach(None, "plain")),
    ]
}

fn refused() -> Vec<super::Line> {
    let attach = |table| Step::Attach("device", Some(FAILING), table);
    after(
        parent(),
        [
            ok(Step::Queue("queue")),
            ok(Step::Table("old", WITH_FAULTS)),
            ok(Step::Table("new", NESTED)),
            ok(attach("old")),
            ok(Step::Provoke),
            no(attach("new"), Errno::NOMEM),
            no(Step::Destroy("old"), Errno::BUSY),
            ok(Step::Destroy("new")),
            ok(Step::Detach("device", Some(FAILING))),
            ok(Step::Destroy("old")),
        ],
    )
}
