//! The table, a chapter each for address spaces, page tables, attachments and fault queues.

mod attachments;
mod faults;
mod spaces;
mod tables;

use rustix::io::Errno;

use super::{Array, Data, Entry, Expected, Line, Name, Outcome, Row, Step, Table};

/// All sequences. Names are plain.
#[must_use]
pub fn rows() -> Vec<Row> {
    let chapters = [spaces::rows(), tables::rows(), attachments::rows(), faults::rows()];
    chapters.into_iter().flatten().collect()
}

fn row(name: Name, parts: impl IntoIterator<Item = Line>) -> Row {
    Row { name, lines: parts.into_iter().collect() }
}

fn same(step: Step, outcome: Outcome) -> Line {
    Line { step, expected: Expected::Same(outcome) }
}

fn ok(step: Step) -> Line {
    same(step, Outcome::Done)
}

fn no(step: Step, errno: Errno) -> Line {
    same(step, Outcome::Refused(errno))
}

fn differs(step: Step, vtd: Outcome, mock: Outcome, why: &'static str) -> Line {
    Line { step, expected: Expected::Differs { vtd, mock, why } }
}

/// An address space, with a device that has PASIDs beside it.
fn space_and_device() -> Vec<Line> {
    vec![ok(Step::Ioas("space")), ok(Step::Device("device", true))]
}

/// The same, and a nest parent that the device may use with PASIDs.
fn parent() -> Vec<Line> {
    let mut lines = space_and_device();
    lines.push(ok(Step::Table("parent", PARENT)));
    lines
}

/// A table that may be a parent, for use with PASIDs.
const PARENT: Table = Table {
    device: "device",
    parent: "space",
    nest_parent: true,
    pasid: true,
    queue: None,
    data: Data::None,
};
/// A table of the kernel's own that may not.
const PAGING: Table = Table { nest_parent: false, ..PARENT };
/// A guest's table on the parent.
const NESTED: Table = Table { parent: "parent", data: Data::Good, ..PAGING };
/// The same with a fault queue.
const WITH_FAULTS: Table = Table { queue: Some("queue"), ..NESTED };

/// `more` after `before`.
fn after(mut before: Vec<Line>, more: impl IntoIterator<Item = Line>) -> Vec<Line> {
    before.extend(more);
    before
}

fn good(entries: usize) -> Array {
    Array::Of(vec![Entry::Good; entries])
}
