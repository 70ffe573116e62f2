//! What drivers stumble over when a unit gets it wrong, profile by profile: each test is one way in which a boot or a
//! running system fails. What is not here is in its chapter's tests.

use iommu_core::Msi;
use iommu_vtd::testkit::Tables;
use iommu_vtd::{Platform, Profile};

use crate::driver::{
    Driver, FSTS, GCMD, GSTS, IQA, IQE, IQERCD, IQH, IQT, Machine, PAGE_EVENT, PQA, PQH, PQT, PRS, QIE, RING,
    RTADDR, SRTP, STATUS, TE, desc,
};

const IRE: u32 = 1 << 25;
const SIRTP: u32 = 1 << 24;
const CFI: u32 = 1 << 23;
const IRTA: u64 = 0xb8;
const INTERRUPT_TABLE: u64 = 0x8_0000;
const ROOT: u64 = 0x10_0000;

fn profile(text: &str) -> Profile {
    Profile::parse(text, Platform { host_address_width: 46, five_level: false }).unwrap()
}

/// Linux, by what it reads in the capability registers and writes because of it.
struct Linux<'m> {
    machine: &'m Machine,
    cap: u64,
    ecap: u64,
    levels: u32,
    tail: u64,
}

impl<'m> Linux<'m> {
    fn new(machine: &'m Machine) -> Self {
        let (cap, ecap) = (machine.read64(0x08), machine.read64(0x10));
        let levels = machine.read32(GSTS) & (TE | QIE | IRE);
        Self { machine, cap, ecap, levels, tail: 0 }
    }

    fn offers(&self, bit: u32) -> bool {
        self.ecap >> bit & 1 == 1
    }

    fn scalable(&self) -> bool {
        self.offers(43)
    }

    /// Writes the remembered levels and one more bit, and polls.
    fn command(&self, bit: u32, status: u32) {
        self.machine.write32(GCMD, self.levels | bit);
        assert_eq!(self.machine.read32(GSTS) & (bit | status), bit | status, "command {bit:#x}");
    }

    fn switch(&mut self, bit: u32, on: bool) {
        self.levels = if on { self.levels | bit } else { self.levels & !bit };
        self.machine.write32(GCMD, self.levels);
        assert_eq!(self.machine.read32(GSTS) & bit != 0, on, "level {bit:#x}");
    }

    /// Descriptors of 256 bits wherever scalable mode is offered, of 128 bits elsewhere.
    fn enable_queue(&mut self) {
        assert_eq!(self.machine.read32(FSTS), 0);
        if self.machine.read32(GSTS) & QIE != 0 {
            assert_eq!(self.machine.read64(IQH), self.machine.read64(IQT));
            self.switch(QIE, false);
        }
        self.machine.write32(IQT, 0);
        self.machine.write64(IQA, RING | if self.scalable() { 1 << 11 | 1 } else { 0 });
        self.tail = 0;
        self.switch(QIE, true);
        assert_eq!(self.machine.read64(IQH), 0);
    }

    /// One descriptor and its wait.
    fn submit(&mut self, descriptor: (u64, u64)) {
        let bytes = if self.scalable() { 32 } else { 16 };
        self.machine.set_word(STATUS, 0);
        for (low, high) in [descriptor, (2 << 32 | 0x25, STATUS)] {
            for (offset, word) in [(0, low), (8, high)] {
                self.machine.set_word(RING + self.tail + offset, word);
            }
            self.tail += bytes;
        }
        self.machine.write32(IQT, u32::try_from(self.tail).unwrap());
        assert_eq!(self.machine.status(), 2, "{descriptor:x?}");
    }

    fn remap_interrupts(&mut self) {
        if self.machine.read32(GSTS) & IRE != 0 {
            self.switch(IRE, false);
        }
        let table = INTERRUPT_TABLE | if self.offers(4) { 1 << 11 } else { 0 } | 7;
        self.machine.write64(IRTA, table);
        self.command(SIRTP, 0);
        assert_eq!(self.machine.read64(IRTA), table);
        if self.cap >> 62 & 1 == 0 {
            self.submit((0x04, 0));
        }
        self.switch(IRE, true);
        assert_eq!(self.machine.read32(GSTS) & CFI, 0);
    }

    fn remap_dma(&mut self) {
        let root = ROOT | if self.scalable() { 1 << 10 } else { 0 };
        self.machine.write64(RTADDR, root);
        self.command(SRTP, 0);
        if self.cap >> 63 & 1 == 0 {
            self.submit(desc::CONTEXT_GLOBAL);
            if self.scalable() {
                self.submit(desc::PASID_GLOBAL);
            }
            self.submit(desc::IOTLB_GLOBAL);
        }
        let driver = Driver::new(self.machine);
        if self.offers(29) {
            driver.program_event(0xe0, PAGE_EVENT);
            for (register, value) in [(PQH, 0), (PQT, 0), (PQA, 0x2_0004)] {
                self.machine.write64(register, value);
                assert_eq!(self.machine.read64(register), value);
            }
        }
        driver.enable_fault_event();
        self.switch(TE, true);
    }

    fn boot(&mut self) {
        self.enable_queue();
        if self.offers(3) {
            self.remap_interrupts();
        }
        self.remap_dma();
    }
}

const PROFILES: [&str; 12] = [
    "full",
    "full,aw-bits=57",
    "svm",
    "svm,intremap=off",
    "scalable",
    "scalable,aw-bits=39",
    "legacy",
    "legacy,aw-bits=57,eim=off",
    "legacy,intremap=off,device-iotlb=off",
    "full,esrtps=off,esirtps=off",
    "legacy,esrtps=off,esirtps=off,caching-mode=on",
    "full,caching-mode=on,pass-through=off,snoop-control=off,psi=off",
];

/// A boot, and a second kernel that finds all switched on, as after a crash.
#[test]
fn linux_boots_on_every_profile_and_again_after_a_crash() {
    for text in PROFILES {
        let machine = Machine::with(&profile(text));
        for _ in 0..2 {
            let mut linux = Linux::new(&machine);
            linux.boot();
            let remaps = if linux.offers(3) { IRE | SIRTP } else { 0 };
            assert_eq!(machine.read32(GSTS), TE | QIE | SRTP | remaps, "{text}");
            assert_eq!((machine.read32(FSTS), machine.interrupts()), (0, vec![]), "{text}");
        }
    }
}

/// Linux ignores a unit without a table width for both stages: 48 bits, or 57.
#[test]
fn linux_finds_a_table_width_in_every_profile() {
    for text in PROFILES {
        let machine = Machine::with(&profile(text));
        let linux = Linux::new(&machine);
        let (first, second, five) = (linux.offers(47), linux.offers(46), linux.cap >> 60 & 1);
        let of_first = 0b0100 | five << 3;
        let offered = linux.cap >> 8 & 0x1f;
        let usable = match (first, second) {
            (true, false) => of_first,
            (true, true) => offered & of_first,
            (false, _) => offered,
        };
        assert_ne!(usable, 0, "{text}");
        let width = linux.cap >> 16 & 0x3f;
        assert!(width + 1 >= 46 && (offered & 0b1000 == 0 || width == 56), "{text}: MGAW and SAGAW");
        assert!(linux.cap >> 48 & 0x3f < 52, "{text}: a larger MAMV overflows the range of a flush");
        assert!(!(linux.scalable() && linux.cap >> 4 & 1 == 1), "{text}: RWBF");
        let records = (linux.cap >> 24 & 0x3ff) * 16 + ((linux.cap >> 40 & 0xff) + 1) * 16;
        assert!(records <= 4096, "{text}: the driver maps one page");
    }
}

/// What Linux looks for before it offers shared virtual memory, page requests, nesting and dirty tracking.
#[test]
fn full_has_all_that_linux_looks_for() {
    let machine = Machine::with(&profile("full"));
    let linux = Linux::new(&machine);
    let names = [
        ("C", 0),
        ("QI", 1),
        ("DT", 2),
        ("IR", 3),
        ("EIM", 4),
        ("PT", 6),
        ("SC", 7),
        ("NEST", 26),
        ("PRS", 29),
        ("SRS", 31),
        ("NWFS", 33),
        ("EAFS", 34),
        ("PASID", 40),
        ("DIT", 41),
        ("PDS", 42),
        ("SMTS", 43),
        ("SSADS", 45),
        ("SSTS", 46),
        ("FSTS", 47),
        ("SMPWCS", 48),
        ("RPS", 49),
        ("ADMS", 52),
        ("RPRIVS", 53),
        ("SMS", 58),
    ];
    let missing: Vec<_> = names.iter().filter(|(_, bit)| !linux.offers(*bit)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    let all = names.iter().fold(0, |all, (_, bit)| all | 1_u64 << bit);
    let (iro, pss, mhmv) = (0x3ff_u64 << 8, 0x1f_u64 << 35, 0xf_u64 << 20);
    assert_eq!(linux.ecap & !(all | iro | pss | mhmv), 0, "nothing else");
    assert_eq!((linux.ecap >> 35 & 0x1f, linux.ecap >> 20 & 0xf), (19, 15));
    assert_eq!(
        machine.read32(0) >> 4,
        5,
        "from version 2 on drains are implied, from 6 on registers invalidate no more"
    );
    assert_eq!((linux.cap >> 7 & 1, linux.cap >> 61 & 1), (0, 0), "CM and enhanced commands");
}

/// (name, descriptors before the queue is switched off)
#[test]
fn the_queue_can_always_be_switched_off() {
    let rows: [(&str, &[(u64, u64)]); 3] = [
        ("after an invalidation without a wait", &[desc::IOTLB_GLOBAL]),
        ("stopped by an error", &[(0x0f, 0), desc::IOTLB_GLOBAL]),
        ("after a fence", &[desc::FENCE]),
    ];
    for (name, descriptors) in rows {
        let machine = Machine::new();
        let (driver, _tables) = Driver::booted(&machine);
        for (low, high) in descriptors {
            driver.put(*low, *high);
        }
        driver.kick();
        driver.level(QIE, false);
        assert_eq!(machine.read64(IQH), 0, "{name}");
    }
}

/// (name, descriptor): Linux submits all of these.
#[test]
fn descriptors_that_linux_submits_are_taken() {
    let machine = Machine::with(&profile("full"));
    let tables = Tables::new(&machine.memory, 0x10_0000..0x40_0000);
    let driver = Driver::new(&machine);
    driver.enable_queue();
    driver.set_root(tables.root_register().raw_value());
    driver.level(TE, true);
    let rows: [(&str, (u64, u64)); 14] = [
        ("interrupt entries, all", (0x04, 0)),
        ("interrupt entries, 2^15", (15 << 27 | 0x14, 0)),
        ("context of a function", (0x18 << 32 | 7 << 16 | 0x31, 0)),
        ("domain, with drains", (7 << 16 | 0xe2, 0)),
        ("pages up to MAMV", (7 << 16 | 0xf2, 18)),
        ("pages of a process, mask above MAMV", (5 << 32 | 1 << 16 | 0x36, 0x7fff_0000_0000_0000 | 40)),
        ("upper half of the space", (5 << 32 | 1 << 16 | 0x36, 0xffff_8000_0000_0000)),
        ("upper half, five levels", (5 << 32 | 1 << 16 | 0x36, 0xff00_0000_0000_0000)),
        ("odd pair of domain and PASID", (0xf_ffff_u64 << 32 | 0xffff << 16 | 0x26, 0)),
        ("device-TLB, all", (0x18 << 32 | 31 << 16 | 0x03, 0x7fff_ffff_ffff_f001)),
        ("device-TLB of a virtual function", (0xfff_u64 << 52 | 0x18 << 32 | 0xf000 | 0x03, 1)),
        ("device-TLB of a process", (5 << 32 | 0x18 << 16 | 0x108, 0xffff_8000_0000_0800)),
        ("response of reserved code", (5 << 32 | 0x18 << 16 | 0x2000 | 0x19, 0)),
        ("response, last page marked", (5 << 32 | 0x18 << 16 | 0x19, 1 << 2 | 9 << 3)),
    ];
    for (name, descriptor) in rows {
        driver.put(descriptor.0, descriptor.1);
        driver.kick();
        assert_eq!(machine.read32(FSTS) & IQE, 0, "{name}: {:#x}", machine.read64(IQERCD));
    }
    driver.submit_with(&[desc::FENCE], desc::DRAIN);
}

/// (registers of an event): Linux writes 32-bit logical destinations there from APIC id 8 on.
#[test]
fn events_have_wide_destinations_and_start_masked() {
    for control in [0x38, 0xa0, 0xe0] {
        let machine = Machine::with(&profile("full"));
        assert_eq!(machine.read32(control), 1 << 31, "masked after reset");
        let driver = Driver::new(&machine);
        let event = Msi { address: 0x0001_0100_fee0_000c, data: 0x41 };
        driver.program_event(control, event);
        assert_eq!(machine.read64(control + 8), event.address);
        machine.unit.reset();
        assert_eq!(machine.read32(control), 1 << 31);
    }
}

/// Linux clears all of the fault status by writing back what it reads, reserved bits and all.
#[test]
fn writing_the_fault_status_back_harms_nothing() {
    let machine = Machine::with(&profile("full"));
    let (driver, _tables) = Driver::booted(&machine);
    for value in [0x83, 0, u32::MAX] {
        machine.write32(FSTS, value);
        machine.write32(PRS, value & 3);
        assert_eq!((machine.read32(FSTS), machine.read32(PRS)), (0, 0));
        driver.submit(&[desc::IOTLB_GLOBAL]);
    }
    assert_eq!(machine.interrupts(), []);
}

/// `iommu_regset` of debugfs reads every register there could be.
#[test]
fn registers_that_are_not_there_read_as_zero() {
    let machine = Machine::with(&profile("legacy,intremap=off"));
    for offset in (0x48..0x80).chain(0xb8..0xf0).chain(0x100..0x220).chain(0x300..0x1000) {
        let mut byte = [0xff];
        machine.unit.mmio_write(offset, &[0xff]);
        machine.unit.mmio_read(offset, &mut byte);
        assert_eq!(byte, [0], "{offset:#x}");
    }
    assert_eq!(machine.read32(GCMD), 0, "write-only");
}
