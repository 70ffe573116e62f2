//! Fault queues.

use rustix::io::Errno;

use super::super::{FAILING, Outcome, Response, Row, Step};
use super::{NESTED, WITH_FAULTS, after, differs, no, ok, parent, row, same};

use Response::{Failure, Invalid, Success};

/// PASID 1 of a device goes through a table with a fault queue.
fn attached() -> Vec<super::Line> {
    after(
        parent(),
        [
            ok(Step::Queue("queue")),
            ok(Step::Table("nested", WITH_FAULTS)),
            ok(Step::Attach("device", Some(1), "nested")),
        ],
    )
}

fn request(group: u32) -> super::Line {
    ok(Step::Request("device", Some(1), group))
}

/// Reads groups, by index and cookie.
fn read(room: usize, groups: &[(u32, u32)]) -> super::Line {
    same(Step::Read("queue", room), Outcome::Groups(groups.to_vec()))
}

fn respond(responses: &[Response]) -> Step {
    Step::Respond("queue", responses.to_vec())
}

/// So many answers are taken.
fn taken(responses: &[Response], count: usize) -> super::Line {
    same(respond(responses), Outcome::Count(count * 8))
}

pub(super) fn rows() -> Vec<Row> {
    let mut rows = coming();
    rows.extend(departures());
    rows
}

fn coming() -> Vec<Row> {
    vec![
        row("reading", after(attached(), reading())),
        row("answering", after(attached(), answering())),
        row("cookies-come-back", after(attached(), cookies())),
        row("an-answer-to-cookie-zero-makes-it-one", after(attached(), zero())),
        row(
            "faults-without-pasid",
            after(
                attached(),
                [
                    ok(Step::Attach("device", None, "nested")),
                    ok(Step::Request("device", None, 4)),
                    read(1, &[(4, 1)]),
                    taken(&[Success(1)], 1),
                ],
            ),
        ),
        row(
            "faults-that-nobody-takes",
            after(
                attached(),
                [
                    // Attached to nothing, and to tables without a queue.
                    ok(Step::Request("device", Some(2), 0)),
                    ok(Step::Request("device", None, 1)),
                    ok(Step::Table("silent", NESTED)),
                    ok(Step::Attach("device", Some(2), "silent")),
                    ok(Step::Attach("device", None, "parent")),
                    ok(Step::Request("device", Some(2), 2)),
                    ok(Step::Request("device", None, 3)),
                    read(8, &[]),
                ],
            ),
        ),
        row(
            "faults-of-a-pasid-that-is-not-attached",
            after(
                attached(),
                [
                    ok(Step::Attach("device", None, "nested")),
                    ok(Step::Request("device", Some(2), 9)),
                    differs(
                        Step::Read("queue", 8),
                        Outcome::Groups(vec![]),
                        Outcome::Groups(vec![(9, 1)]),
                        "mock devices have PASID tables of the guest's own, VT-d ones have not",
                    ),
                ],
            ),
        ),
    ]
}

/// What goes answers.
fn departures() -> Vec<Row> {
    vec![
        row("detaching-answers", after(attached(), gone(Step::Detach("device", Some(1))))),
        row(
            "replacing-answers",
            after(
                after(attached(), [ok(Step::Table("next", WITH_FAULTS))]),
                gone(Step::Attach("device", Some(1), "next")),
            ),
        ),
        row("closing-answers", after(attached(), gone(Step::Close("device")))),
        row(
            "other-attachments-are-left-alone",
            after(
                attached(),
                [
                    ok(Step::Attach("device", Some(2), "nested")),
                    request(1),
                    ok(Step::Request("device", Some(2), 2)),
                    request(3),
                    read(2, &[(1, 1), (2, 2)]),
                    ok(Step::Detach("device", Some(1))),
                    no(respond(&[Success(1)]), Errno::INVAL),
                    read(8, &[]),
                    taken(&[Success(2)], 1),
                ],
            ),
        ),
        row(
            "a-refused-replacement",
            after(
                attached(),
                [
                    ok(Step::Attach("device", Some(FAILING), "nested")),
                    ok(Step::Table("next", NESTED)),
                    ok(Step::Provoke),
                    no(Step::Attach("device", Some(FAILING), "next"), Errno::NOMEM),
                    ok(Step::Request("device", Some(FAILING), 5)),
                    differs(
                        Step::Read("queue", 8),
                        Outcome::Groups(vec![]),
                        Outcome::Groups(vec![(5, 1)]),
                        "VT-d has torn the old entry down before it looks at the new one; mock devices keep it",
                    ),
                ],
            ),
        ),
    ]
}

fn reading() -> Vec<super::Line> {
    vec![
        read(8, &[]),
        read(0, &[]),
        no(Step::ReadBytes("queue", 39), Errno::SPIPE),
        request(5),
        request(6),
        request(7),
        no(Step::ReadBytes("queue", 41), Errno::SPIPE),
        // No room for the first group.
        no(Step::ReadBytes("queue", 0), Errno::INVAL),
        read(2, &[(5, 1), (6, 2)]),
        read(2, &[(7, 3)]),
        read(2, &[]),
    ]
}

fn answering() -> Vec<super::Line> {
    vec![
        no(respond(&[Success(1)]), Errno::INVAL),
        request(5),
        // Before it is read, nobody knows its cookie.
        no(respond(&[Success(1)]), Errno::INVAL),
        read(8, &[(5, 1)]),
        no(Step::WriteBytes("queue", 7), Errno::SPIPE),
        same(Step::WriteBytes("queue", 0), Outcome::Count(0)),
        no(respond(&[Success(2)]), Errno::INVAL),
        no(respond(&[Failure(1)]), Errno::INVAL),
        taken(&[Invalid(1)], 1),
        no(respond(&[Invalid(1)]), Errno::INVAL),
        // In order, up to the first that cannot be.
        request(1),
        request(2),
        request(3),
        read(8, &[(1, 1), (2, 2), (3, 3)]),
        taken(&[Success(2), Success(2), Success(3)], 1),
        no(respond(&[Success(2), Success(3)]), Errno::INVAL),
        taken(&[Invalid(3), Failure(1)], 1),
        taken(&[Success(1)], 1),
    ]
}

fn cookies() -> Vec<super::Line> {
    vec![
        request(1),
        request(2),
        read(8, &[(1, 1), (2, 2)]),
        taken(&[Success(1)], 1),
        // The lowest that is free.
        request(3),
        request(4),
        read(8, &[(3, 1), (4, 3)]),
        taken(&[Success(1), Success(2), Success(3)], 3),
        // A group index may be used again while it waits; cookies tell them apart.
        request(9),
        request(9),
        read(8, &[(9, 1), (9, 2)]),
        taken(&[Success(2), Invalid(1)], 2),
    ]
}

/// What came through an attachment is answered when it goes, read or not, and what is asked afterwards does not come.
fn gone(how: Step) -> Vec<super::Line> {
    vec![
        request(1),
        read(1, &[(1, 1)]),
        request(2),
        ok(how),
        no(respond(&[Success(1)]), Errno::INVAL),
        read(8, &[]),
        ok(Step::Destroy("nested")),
    ]
}

fn zero() -> Vec<super::Line> {
    vec![
        no(respond(&[Failure(0)]), Errno::INVAL),
        request(1),
        read(1, &[(1, 1)]),
        no(respond(&[Success(0)]), Errno::INVAL),
        request(2),
        request(3),
        read(8, &[(2, 0), (3, 2)]),
        taken(&[Success(0), Success(1), Success(2)], 3),
    ]
}
