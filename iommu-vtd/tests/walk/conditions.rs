//! The manual's table of conditions: code, result for each request type, and whether it is recorded, with
//! "fault processing disable" in each structure on the path.

use iommu_core::{Access, Completion, Permissions, Request, SourceId};
use iommu_vtd::spec::fault::CONDITIONS;
use iommu_vtd::spec::paging::{self, FirstStageEntry};
use iommu_vtd::spec::pasid::{PasidWord1, PasidWord2};
use iommu_vtd::tables::RootLatch;
use iommu_vtd::testkit::flags;

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
    /// Success with read permission only, and no fault.
    ReadOnly,
    /// Success with both permissions.
    All,
}

use Gets::{All, Ca, No, Nothing, ReadOnly, Ur};

struct Row {
    name: &'static str,
    code: u16,
    spoil: fn(&World<'_>),
    request: fn(Request) -> Request,
    /// Untranslated, translation, translated, page request.
    gets: [Gets; 4],
    /// How many of context entry, directory entry and PASID entry are read before the condition is found.
    read: usize,
}

fn same(request: Request) -> Request {
    request
}

fn nothing(_: &World<'_>) {}

fn entry_word(world: &World<'_>, word: u64, change: impl FnOnce(u64) -> u64) {
    world.pasid(PROCESS).edit(word, change);
}

fn leaf(world: &World<'_>, level: u32, change: impl FnOnce(u64) -> u64) {
    let root = world.tables.word(iommu_core::Gpa(world.pasid(PROCESS).at().0 + 16)) & !0xfff;
    let mut table = iommu_core::Gpa(root);
    for above in (level + 1..=4).rev() {
        let at = paging::locate(table, PAGE, above);
        table = iommu_core::Gpa(world.tables.word(at) & FirstStageEntry::address_mask());
    }
    let at = paging::locate(table, PAGE, level);
    world.tables.set_word(at, change(world.tables.word(at)));
}

fn root_half(world: &World<'_>, change: impl FnOnce(u64) -> u64) {
    let at = world.tables.root();
    world.tables.set_word(at, change(world.tables.word(at)));
}

fn row(name: &'static str, code: u16) -> Row {
    Row { name, code, spoil: nothing, request: same, gets: [No; 4], read: 0 }
}

impl Row {
    fn spoil(mut self, spoil: fn(&World<'_>)) -> Self {
        self.spoil = spoil;
        self
    }
    fn request(mut self, request: fn(Request) -> Request) -> Self {
        self.request = request;
        self
    }
    fn gets(mut self, gets: [Gets; 4], read: usize) -> Self {
        self.gets = gets;
        self.read = read;
        self
    }
}

fn source_rows() -> Vec<Row> {
    vec![
        row("29h: an interrupt address that is read", 0x29)
            .request(|r| at(without_pasid(Request { access: Access::Read, ..r }), 0xfee0_1000))
            .gets([Ur, No, No, No], 0),
        row("29h: ... or written, which is no way to interrupt", 0x29)
            .request(|r| at(without_pasid(r), 0xfeef_fffc))
            .gets([Ur, No, No, No], 0),
        row("29h: ... with translation off, PASID or not", 0x29)
            .spoil(|w| w.root.set(RootLatch::default()))
            .request(|r| at(r, 0xfee0_1000))
            .gets([Ur, No, No, No], 0),
        row("RTA.1: reserved table mode", 0x30).spoil(|w| w.mode(2)).gets([Ur, Ca, Ur, Ur], 0),
        row("RTA.1: scalable mode not offered", 0x30)
            .spoil(|w| w.registers(CAP, ECAP & !(1 << 43)))
            .gets([Ur, Ca, Ur, Ur], 0),
        row("RTA.1: abort-DMA mode not offered", 0x30).spoil(|w| w.mode(3)).gets([Ur, Ca, Ur, Ur], 0),
        row("RTA.2: PASID in legacy mode", 0x31).spoil(|w| w.mode(0)).gets([Ur, Ur, No, No], 0),
        row("RTA.3: page request in legacy mode", 0x32).spoil(|w| w.mode(0)).gets([No, No, No, Ur], 0),
        row("RTA.4: abort-DMA mode", 0x33)
            .spoil(|w| {
                w.registers(CAP, ECAP | 1 << 52);
                w.mode(3);
            })
            .gets([Ur, Ur, Ur, Ur], 0),
    ]
}

fn root_rows() -> Vec<Row> {
    vec![
        row("SRT.1: no memory at the root", 0x38)
            .spoil(|w| w.root.set(RootLatch::new(NOWHERE | 1 << 10, true)))
            .gets([Ur, Ca, Ur, Ur], 0),
        row("SRT.2: lower half not present", 0x39)
            .spoil(|w| root_half(w, |word| word & !1))
            .gets([Ur, Ur, Ur, Ur], 0),
        row("SRT.2: upper half not present", 0x39)
            .request(|r| Request { source: SourceId(0x80), ..r })
            .gets([Ur, Ur, Ur, Ur], 0),
        row("SRT.2: other bus", 0x39)
            .request(|r| Request { source: SourceId(0x118), ..r })
            .gets([Ur, Ur, Ur, Ur], 0),
        row("SRT.3: reserved bit", 0x3a)
            .spoil(|w| root_half(w, |word| word | 1 << 11))
            .gets([Ur, Ca, Ur, Ur], 0),
        row("SCT.1: no memory at the context table", 0x40)
            .spoil(|w| root_half(w, |_| NOWHERE | 1))
            .gets([Ur, Ca, Ur, Ur], 0),
    ]
}

fn context_rows() -> Vec<Row> {
    vec![
        row("SCT.2: not present", 0x41)
            .spoil(|w| {
                w.context().edit(|low| low.with_present(false));
            })
            .gets([Ur, Ur, Ur, Ur], 1),
        row("SCT.3: reserved bit", 0x42)
            .spoil(|w| w.tables.set_word(iommu_core::Gpa(w.context().at().0 + 24), 1 << 63))
            .gets([Ur, Ca, Ur, Ur], 1),
        row("SCT.4: PRE without DTE", 0x43)
            .spoil(|w| {
                w.context().edit(|low| low.with_dte(false));
            })
            .gets([Ur, Ca, Ur, Ur], 1),
        row("SCT.4: RID_PASID beyond the directory", 0x43)
            .spoil(|w| {
                w.context().rid_pasid(0x8000);
            })
            .gets([Ur, Ca, Ur, Ur], 1),
        row("SCT.5: DTE=0", 0x44)
            .spoil(|w| {
                w.context().edit(|low| low.with_dte(false).with_pre(false));
            })
            .gets([All, Ur, Ur, No], 1),
        row("SCT.6: PASIDE=0", 0x45)
            .spoil(|w| {
                w.context().edit(|low| low.with_paside(false));
            })
            .gets([Ur, Ur, No, Ur], 1),
        row("SCT.7: PASID beyond the directory", 0x46)
            .request(|r| with_pasid(r, 0x8000))
            .gets([Ur, Ur, No, Ur], 1),
        row("SCT.8: PRE=0", 0x47)
            .spoil(|w| {
                w.context().edit(|low| low.with_pre(false));
            })
            .gets([All, All, No, Ur], 1),
        row("SCT.9: the PASID that stands for none", 0x48)
            .request(|r| with_pasid(r, 0))
            .gets([Ur, Ur, No, Ur], 1),
        row("SGN.10: PASID wider than offered", 0x89)
            .spoil(|w| w.registers(CAP, ECAP & !(31 << 35) | 4 << 35))
            .request(|r| with_pasid(r, 32))
            .gets([Ur, Ur, No, No], 1),
    ]
}

fn pasid_rows() -> Vec<Row> {
    vec![
        row("SPD.1: no memory at the directory", 0x50)
            .spoil(|w| {
                let nowhere = arbitrary_int::u52::new(NOWHERE >> 12);
                w.context().edit(|low| low.with_directory(nowhere));
            })
            .gets([Ur, Ca, No, Ur], 1),
        row("SPD.2: not present", 0x51)
            .spoil(|w| {
                let at = w.pasid(PROCESS).directory_at();
                w.tables.set_word(at, w.tables.word(at) & !1);
            })
            .gets([Ur, Nothing, No, Ur], 2),
        row("SPD.3: reserved bit", 0x52)
            .spoil(|w| {
                let at = w.pasid(PROCESS).directory_at();
                w.tables.set_word(at, w.tables.word(at) | 1 << 2);
            })
            .gets([Ur, Ca, No, Ur], 2),
        row("SPT.1: no memory at the PASID table", 0x58)
            .spoil(|w| {
                let at = w.pasid(PROCESS).directory_at();
                w.tables.set_word(at, NOWHERE | w.tables.word(at) & 3);
            })
            .gets([Ur, Ca, No, Ur], 2),
        row("SPT.2: not present", 0x59)
            .spoil(|w| {
                w.pasid(PROCESS).clear();
            })
            .gets([Ur, Nothing, No, Ur], 3),
        row("SPT.3: reserved bit", 0x5a).spoil(|w| entry_word(w, 7, |_| 1 << 63)).gets([Ur, Ca, No, Ur], 3),
    ]
}

fn entry_rows() -> Vec<Row> {
    vec![
        row("SPT.4: second stage", 0x5b)
            .spoil(|w| entry_word(w, 0, |word| word & !(7 << 6) | 2 << 6))
            .gets([Ur, Ca, No, Ur], 3),
        row("SPT.4: nested", 0x5b)
            .spoil(|w| entry_word(w, 0, |word| word & !(7 << 6) | 3 << 6))
            .gets([Ur, Ca, No, Ur], 3),
        row("SPT.4: reserved translation type", 0x5b)
            .spoil(|w| entry_word(w, 0, |word| word & !(7 << 6) | 7 << 6))
            .gets([Ur, Ca, No, Ur], 3),
        row("SPT.4: five levels not offered", 0x5b)
            .spoil(|w| {
                w.registers(CAP & !(1 << 60), ECAP);
                entry_word(w, 2, |word| word | 1 << 2);
            })
            .gets([Ur, Ca, No, Ur], 3),
        row("SPT.4: reserved paging mode", 0x5b)
            .spoil(|w| entry_word(w, 2, |word| word | 2 << 2))
            .gets([Ur, Ca, No, Ur], 3),
        row("SPT.4: pass-through not offered", 0x5b)
            .spoil(|w| w.registers(CAP, ECAP & !(1 << 6)))
            .request(|r| with_pasid(r, IDENTITY))
            .gets([Ur, Ca, No, Ur], 3),
        row("SPT.5: execute", 0x5c)
            .request(|r| Request { execute: true, access: Access::Read, ..r })
            .gets([Ur, Nothing, No, No], 3),
        row("SPT.6: privileged, SRE=0", 0x5d)
            .request(|r| Request { privileged: true, ..r })
            .gets([Ur, Nothing, No, No], 3),
        row("SPT.6: ... of pass-through too", 0x5d)
            .request(|r| with_pasid(Request { privileged: true, ..r }, IDENTITY))
            .gets([Ur, Nothing, No, No], 3),
        row("SPT.6: RID_PRIV makes requests without PASID privileged", 0x5d)
            .spoil(|w| {
                let at = iommu_core::Gpa(w.context().at().0 + 8);
                w.tables.set_word(at, 1 << 20);
            })
            .request(without_pasid)
            .gets([Ur, Nothing, No, No], 3),
    ]
}

fn table_rows() -> Vec<Row> {
    vec![
        row("SFS.1: no memory at a later table", 0x70)
            .spoil(|w| leaf(w, 3, |word| NOWHERE | word & 0xfff))
            .gets([Ur, Nothing, No, No], 3),
        row("SFS.2: leaf not present", 0x71).spoil(|w| leaf(w, 1, |_| 0)).gets([Ur, Nothing, No, No], 3),
        row("SFS.2: root entry not present", 0x71)
            .spoil(|w| leaf(w, 4, |word| word & !1))
            .gets([Ur, Nothing, No, No], 3),
        row("SFS.3: reserved bit", 0x72)
            .spoil(|w| leaf(w, 4, |word| word | 1 << 7))
            .gets([Ur, Nothing, No, No], 3),
        row("SFS.4: no memory at the root table", 0x73)
            .spoil(|w| entry_word(w, 2, |_| NOWHERE))
            .gets([Ur, Nothing, No, No], 3),
        row("SFS.4: ... of five levels", 0x73)
            .spoil(|w| entry_word(w, 2, |_| NOWHERE | 1 << 2))
            .gets([Ur, Nothing, No, No], 3),
        row("SFS.1: ... below a five-level root", 0x70)
            .spoil(|w| {
                let space = w.tables.address_space(5);
                w.tables.set_word(space.entry_at(PAGE, 5), NOWHERE | flags::USER | 1);
                w.pasid(PROCESS).edit(2, |_| space.root().0 | 1 << 2);
            })
            .gets([Ur, Nothing, No, No], 3),
        row("SGN.1: not canonical", 0x80).request(|r| at(r, 1 << 47)).gets([Ur, Nothing, No, No], 3),
        row("SGN.2: supervisor table entry", 0x81)
            .spoil(|w| leaf(w, 3, |word| word & !flags::USER))
            .gets([Ur, Nothing, No, No], 3),
        row("SGN.2: supervisor page", 0x81)
            .spoil(|w| leaf(w, 1, |word| word & !flags::USER))
            .gets([Ur, Nothing, No, No], 3),
        row("SGN.4: beyond the physical width", 0x83)
            .request(|r| at(with_pasid(r, IDENTITY), 1 << HAW))
            .gets([Ur, Nothing, No, No], 3),
        row("SGN.4.1: translated, beyond the physical width", 0x83)
            .request(|r| at(r, 1 << HAW))
            .gets([No, No, Ur, No], 1),
    ]
}

fn page_rows() -> Vec<Row> {
    vec![
        row("SGN.6: read-only page", 0x85)
            .spoil(|w| leaf(w, 1, |word| word & !flags::WRITE))
            .gets([Ur, ReadOnly, No, No], 3),
        row("SGN.6: read-only table entry", 0x85)
            .spoil(|w| leaf(w, 2, |word| word & !flags::WRITE))
            .gets([Ur, ReadOnly, No, No], 3),
        row("SGN.6: atomic", 0x85)
            .spoil(|w| leaf(w, 1, |word| word & !flags::WRITE))
            .request(|r| Request { access: Access::Atomic, ..r })
            .gets([Ur, ReadOnly, No, No], 3),
        row("SGN.6: supervisor with WPE", 0x85)
            .spoil(|w| {
                entry_word(w, 2, |word| word | PasidWord2::wpe_mask() | PasidWord2::sre_mask());
                leaf(w, 1, |word| word & !flags::WRITE);
            })
            .request(|r| Request { privileged: true, ..r })
            .gets([Ur, ReadOnly, No, No], 3),
        row("SGN.8: page in the interrupt range", 0x87)
            .spoil(|w| leaf(w, 1, |word| word & 0xfff | 0xfee0_5000))
            .gets([Ur, Ca, No, No], 3),
        row("SGN.8: pass-through with PASID", 0x87)
            .request(|r| at(with_pasid(r, IDENTITY), 0xfee0_1000))
            .gets([Ur, Ca, No, No], 3),
        row("SGN.8.3: translated", 0x87).request(|r| at(r, 0xfee0_1000)).gets([No, No, Ur, No], 1),
        row("SFS.9: accessed bit missing, walk not snooped", 0x90)
            .spoil(|w| {
                entry_word(w, 1, |word| word & !PasidWord1::pwsnp_mask());
                leaf(w, 3, |word| word & !flags::ACCESSED);
            })
            .gets([Ur, Nothing, No, No], 3),
        row("SFS.9: dirty bit missing, walk not snooped", 0x90)
            .spoil(|w| {
                entry_word(w, 1, |word| word & !PasidWord1::pwsnp_mask());
                leaf(w, 1, |word| word & !flags::DIRTY);
            })
            .gets([Ur, Nothing, No, No], 3),
    ]
}

fn rows() -> Vec<Row> {
    let parts = [source_rows, root_rows, context_rows, pasid_rows, entry_rows, table_rows, page_rows];
    parts.into_iter().flat_map(|rows| rows()).collect()
}

/// What `world` answers to the request, in the words of a row; code and record apart.
fn found(world: &World<'_>, request: &Request) -> (Gets, u16, bool) {
    match world.ask(request) {
        Ok(translation) => {
            let gets = match translation.permissions {
                Permissions { read: true, write: true } => All,
                Permissions { read: true, write: false } => ReadOnly,
                Permissions { .. } => Nothing,
            };
            (gets, 0, false)
        }
        Err(fault) => {
            assert_eq!(fault.request, *request, "a fault carries its request");
            let gets = match fault.completion {
                Completion::UnsupportedRequest => Ur,
                Completion::CompleterAbort => Ca,
                Completion::Empty => Nothing,
            };
            (gets, fault.reason.code, fault.log)
        }
    }
}

/// `silence`: the structure whose FPD is set.
fn check(row: &Row, silence: Option<usize>) {
    let memory = memory();
    let world = World::new(&memory);
    let request = (row.request)(write());
    match silence {
        Some(0) => {
            world.context().edit(|low| low.with_fpd(true));
        }
        Some(level) if request.pasid.is_none_or(|pasid| pasid.get() < 0x8000) => {
            let entry = world.pasid(request.pasid.map_or(0, |pasid| pasid.get()));
            let at = if level == 1 { entry.directory_at() } else { entry.at() };
            world.tables.set_word(at, world.tables.word(at) | 2);
        }
        Some(_) | None => {}
    }
    (row.spoil)(&world);
    let condition = CONDITIONS.iter().find(|condition| u16::from(condition.code) == row.code).unwrap();
    let heard = silence.is_some_and(|level| level < row.read);
    let recorded = !(heard && condition.qualified);
    let context = format!("{} with FPD in {silence:?}", row.name);
    let kinds = [request, translation(request, false), translated(without_pasid(request))];
    for (kind, (request, gets)) in kinds.iter().zip(row.gets).enumerate() {
        let expected = match gets {
            No => continue,
            Ur | Ca => (gets, row.code, recorded),
            Nothing | ReadOnly | All => (gets, 0, false),
        };
        assert_eq!(found(&world, request), expected, "{context}, request type {kind}");
    }
    if row.gets[3] == Ur {
        let fault = world.page_request(&request).unwrap_err();
        assert_eq!((fault.reason.code, fault.log), (row.code, recorded), "{context}, page request");
    }
}

#[test]
fn every_condition_answers_and_records_as_the_table_says() {
    for row in rows() {
        check(&row, None);
    }
}

#[test]
fn fault_processing_disable_of_what_was_read_silences_qualified_conditions() {
    for row in rows() {
        for level in 0..3 {
            check(&row, Some(level));
        }
    }
}

/// The rows above against the crate's own table: every condition that this slice can meet has a row, and the
/// results agree.
#[test]
fn rows_cover_the_table() {
    use iommu_vtd::spec::fault::Reply;
    let rows = rows();
    // Legacy mode, version 8, PTRS, second stage, nesting and the host permission table are not offered; code 0
    // is none; SFS.10 needs another CPU and has a test of its own.
    let unreachable = [
        0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x34, 0x49,
        0x60, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7a, 0x7b, 0x7c, 0x7d, 0x84, 0x86, 0x91, 0xa0, 0xa1, 0xa2,
        0xa3, 0xa4, 0xa5,
    ];
    for condition in CONDITIONS {
        let here: Vec<_> = rows.iter().filter(|row| row.code == u16::from(condition.code)).collect();
        assert_eq!(here.is_empty(), unreachable.contains(&condition.code), "{}", condition.name);
        for row in here {
            let columns = [condition.translation, condition.translated, condition.page_request];
            for (column, gets) in columns.into_iter().zip(&row.gets[1..]) {
                let agrees = match gets {
                    No => true,
                    Ur => matches!(column, Reply::Unsupported | Reply::Invalid),
                    Ca => column == Reply::Abort,
                    Nothing => column == Reply::Empty,
                    ReadOnly => column == Reply::Effective,
                    All => column == Reply::Never,
                };
                assert!(agrees, "{}: {gets:?} but {column:?}", row.name);
            }
        }
    }
}
