//! The manual's table of conditions: code, result for each request type, and whether it is recorded, with
//! "fault processing disable" in each structure on the path. One test per condition, named after it.

mod first;
mod legacy;
mod nested;
mod pasid;
mod second;
mod source;

use iommu_core::{Completion, Permissions, Request};
use iommu_vtd::spec::fault::{CONDITIONS, Reply};

use super::world::*;

/// What one request type gets.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Gets {
    /// Does not apply.
    No,
    /// Unsupported Request; for page requests: refused.
    Ur,
    /// Completer Abort.
    Ca,
    /// Success without permissions, and no fault.
    Nothing,
    /// Success without permissions, and a fault all the same.
    Recorded,
    /// Success with read permission only, and no fault.
    ReadOnly,
    /// Success with write permission only, and no fault.
    WriteOnly,
    /// Success with both permissions.
    All,
}

use Gets::{All, Ca, No, Nothing, ReadOnly, Recorded, Ur, WriteOnly};

/// Which tables a row starts from.
#[derive(Clone, Copy, PartialEq)]
enum Start {
    /// A first stage.
    First,
    /// A second stage.
    Second,
    /// Both.
    Nested,
    /// Legacy mode.
    Legacy,
}

struct Row {
    name: &'static str,
    code: u16,
    start: Start,
    spoil: fn(&World<'_>),
    request: fn(Request) -> Request,
    /// The translated request keeps its PASID.
    translated_with_pasid: bool,
    /// Untranslated, translation, translated, page request.
    gets: [Gets; 4],
    /// How many of context entry, directory entry and PASID entry are read before the condition is found.
    read: usize,
}

fn row(name: &'static str, code: u16) -> Row {
    Row {
        name,
        code,
        start: Start::First,
        spoil: |_| (),
        request: |request| request,
        translated_with_pasid: false,
        gets: [No; 4],
        read: 0,
    }
}

impl Row {
    fn start(mut self, start: Start) -> Self {
        self.start = start;
        self
    }
    fn spoil(mut self, spoil: fn(&World<'_>)) -> Self {
        self.spoil = spoil;
        self
    }
    fn request(mut self, request: fn(Request) -> Request) -> Self {
        self.request = request;
        self
    }
    fn translated_with_pasid(mut self) -> Self {
        self.translated_with_pasid = true;
        self
    }
    fn gets(mut self, gets: [Gets; 4], read: usize) -> Self {
        self.gets = gets;
        self.read = read;
        self
    }
}

fn entry_word(world: &World<'_>, word: u64, change: impl FnOnce(u64) -> u64) {
    world.pasid(PROCESS).edit(word, change);
}

fn rows() -> Vec<Row> {
    let parts = [source::rows, pasid::rows, first::rows, second::rows, nested::rows, legacy::rows];
    parts.into_iter().flat_map(|rows| rows()).collect()
}

/// What `world` answers to the request, in the words of a row; code and record apart.
fn found(world: &World<'_>, request: &Request) -> (Gets, u16, bool) {
    match world.ask(request) {
        Ok(translation) => {
            let gets = match translation.permissions {
                Permissions { read: true, write: true } => All,
                Permissions { read: true, write: false } => ReadOnly,
                Permissions { read: false, write: true } => WriteOnly,
                Permissions { read: false, write: false } => Nothing,
            };
            (gets, 0, false)
        }
        Err(fault) => {
            assert_eq!(fault.request, *request, "a fault carries its request");
            let gets = match fault.completion {
                Completion::UnsupportedRequest => Ur,
                Completion::CompleterAbort => Ca,
                Completion::Empty => Recorded,
            };
            (gets, fault.reason.code, fault.log)
        }
    }
}

/// Sets FPD in the context entry (0), directory entry (1) or PASID entry (2) on the way. `false`: there is none.
fn silence(world: &World<'_>, row: &Row, request: &Request, level: usize) -> bool {
    let pasid = request.pasid.map_or(0, |pasid| pasid.get());
    let at = match (level, row.start) {
        (0, Start::Legacy) => world.legacy_at(),
        (0, _) => world.context().at(),
        (_, Start::Legacy) => return false,
        _ if pasid >= 0x8000 => return false,
        (1, _) => world.pasid(pasid).directory_at(),
        _ => world.pasid(pasid).at(),
    };
    edit(world, at, |word| word | 2);
    true
}

/// `level`: the structure whose FPD is set.
fn check(row: &Row, level: Option<usize>) {
    let memory = memory();
    let world = World::new(&memory);
    match row.start {
        Start::First => {}
        Start::Second => world.second(),
        Start::Nested => world.nested(),
        Start::Legacy => world.legacy(),
    }
    let request = write();
    let request = (row.request)(if row.start == Start::Legacy { without_pasid(request) } else { request });
    let silenced = level.filter(|&level| silence(&world, row, &request, level));
    (row.spoil)(&world);
    let condition = CONDITIONS.iter().find(|condition| u16::from(condition.code) == row.code).unwrap();
    let heard = silenced.is_some_and(|level| level < row.read);
    let recorded = !(heard && condition.qualified);
    let context = format!("{} with FPD in {silenced:?}", row.name);
    let device_tlb = if row.translated_with_pasid { request } else { without_pasid(request) };
    let kinds = [request, translation(request, false), translated(device_tlb)];
    for (kind, (request, gets)) in kinds.iter().zip(row.gets).enumerate() {
        let expected = match gets {
            No => continue,
            Ur | Ca | Recorded => (gets, row.code, recorded),
            Nothing | ReadOnly | WriteOnly | All => (gets, 0, false),
        };
        assert_eq!(found(&world, request), expected, "{context}, request type {kind}");
    }
    if row.gets[3] == Ur {
        let fault = world.page_request(&request).unwrap_err();
        assert_eq!((fault.reason.code, fault.log), (row.code, recorded), "{context}, page request");
    }
}

/// Every row of a condition, without and with FPD, and against the crate's own table.
fn condition(code: u16) {
    let rows: Vec<Row> = rows().into_iter().filter(|row| row.code == code).collect();
    assert!(!rows.is_empty());
    let condition = CONDITIONS.iter().find(|condition| u16::from(condition.code) == code).unwrap();
    for row in rows {
        let columns = [condition.translation, condition.translated, condition.page_request];
        for (column, gets) in columns.into_iter().zip(&row.gets[1..]) {
            let agrees = match gets {
                No => true,
                Ur => matches!(column, Reply::Unsupported | Reply::Invalid),
                Ca => column == Reply::Abort,
                Nothing => matches!(column, Reply::Empty | Reply::Effective),
                Recorded => column == Reply::EmptyRecorded,
                ReadOnly | WriteOnly => column == Reply::Effective,
                All => column == Reply::Never,
            };
            assert!(agrees, "{}: {gets:?} but {column:?}", row.name);
        }
        check(&row, None);
        for level in 0..3 {
            check(&row, Some(level));
        }
    }
}

/// One test per condition.
macro_rules! conditions {
    ($($name:ident $code:literal)*) => {
        $(#[test]
        fn $name() {
            condition($code);
        })*

        /// Those that have a test.
        const TESTED: &[(&str, u8)] = &[$((stringify!($name), $code),)*];
    };
}

conditions! {
    lrt_2 0x01 lct_2 0x02 lct_4 0x03 lgn_1 0x04 lgn_2 0x05 lgn_3 0x06 lss_1 0x07 lrt_1 0x08 lct_1 0x09 lrt_3 0x0a
    lct_3 0x0b lss_2 0x0c lct_5 0x0d lgn_4 0x0e
    interrupt_range_29h 0x29
    rta_1 0x30 rta_2 0x31 rta_3 0x32 rta_4 0x33 rta_5 0x34
    srt_1 0x38 srt_2 0x39 srt_3 0x3a
    sct_1 0x40 sct_2 0x41 sct_3 0x42 sct_4 0x43 sct_5 0x44 sct_6 0x45 sct_7 0x46 sct_8 0x47 sct_9 0x48 sct_10 0x49
    spd_1 0x50 spd_2 0x51 spd_3 0x52
    spt_1 0x58 spt_2 0x59 spt_3 0x5a spt_4 0x5b spt_5 0x5c spt_6 0x5d
    sfs_1 0x70 sfs_2 0x71 sfs_3 0x72 sfs_4 0x73 sfs_5 0x74 sfs_6 0x75 sfs_7 0x76 sfs_8 0x77 sfs_9 0x90 sfs_10 0x91
    sss_1 0x78 sss_2 0x79 sss_3 0x7a sss_4 0x7b sss_5 0x7c sss_6 0x7d
    sgn_1 0x80 sgn_2 0x81 sgn_4 0x83 sgn_5 0x84 sgn_6 0x85 sgn_7 0x86 sgn_8 0x87 sgn_10 0x89
}

/// Every condition has its test but those of the host permission table, which is not offered, and code 0, which is
/// none.
#[test]
fn every_condition_has_a_test() {
    let not_offered = [0x00, 0x60, 0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5];
    for condition in CONDITIONS {
        let tests: Vec<_> = TESTED.iter().filter(|(_, code)| *code == condition.code).collect();
        assert_eq!(tests.len(), usize::from(!not_offered.contains(&condition.code)), "{}", condition.name);
        let name = condition.name.to_lowercase().replace('.', "_");
        assert!(tests.iter().all(|(test, _)| test.ends_with(&name)), "{}", condition.name);
    }
}
