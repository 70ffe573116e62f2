use super::*;
use crate::pci::{
    AtsSpec, BarSpec, ConfigRegister, ExpressSpec, Identity, MsixSpec, PasidSpec, PriSpec, VendorSpec,
};
use iommu_core::testkit::RecordingMsi;
use proptest::prelude::*;

const CAPACITY: u32 = 64;

fn spec() -> FunctionSpec {
    let mut bars = [None; 6];
    bars[0] = Some(BarSpec { len: 0x4000 });
    bars[2] = Some(BarSpec { len: 0x1000 });
    FunctionSpec {
        identity: Identity { vendor: 0x1af4, device: 0x10f0, class: 0x12_0000, ..Identity::default() },
        bars,
        power_management: true,
        express: Some(ExpressSpec { function_reset: true, end_end_prefix: true }),
        msix: Some(MsixSpec { vectors: 4, bar: 2, table_offset: 0, pba_offset: 0x800 }),
        vendor: &[],
        pasid: Some(PasidSpec { width: 20 }),
        ats: Some(AtsSpec { queue_depth: 0, global_invalidate: false }),
        pri: Some(PriSpec { capacity: CAPACITY }),
        registers: &[],
    }
}

struct Fixture {
    base: FunctionBase,
    sink: Arc<RecordingMsi>,
}

impl Fixture {
    fn new() -> Self {
        let sink = Arc::new(RecordingMsi::default());
        Self { base: FunctionBase::new(spec(), SourceId(8), sink.clone()).unwrap(), sink }
    }

    fn write(&self, offset: u16, data: &[u8]) -> Vec<FunctionEvent> {
        let mut events = Vec::new();
        self.base.config_write(offset, data, |event| events.push(event));
        events
    }

    fn write16(&self, offset: u16, value: u16) -> Vec<FunctionEvent> {
        self.write(offset, &value.to_le_bytes())
    }

    fn read32(&self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.base.config_read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn read16(&self, offset: u16) -> u16 {
        let mut data = [0; 2];
        self.base.config_read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    /// Walks both lists as a guest does.
    fn capability(&self, id: u8) -> u16 {
        let mut at = self.read16(0x34) & 0xff;
        while at != 0 {
            let head = self.read16(at);
            if head & 0xff == u16::from(id) {
                return at;
            }
            at = head >> 8;
        }
        panic!("no capability {id:#x}");
    }

    fn extended(&self, id: u16) -> u16 {
        let mut at = 0x100;
        while at != 0 {
            let head = self.read32(at);
            if head & 0xffff == u32::from(id) {
                assert_eq!(head >> 16 & 0xf, 1, "version");
                return at;
            }
            at = u16::try_from(head >> 20).unwrap();
        }
        panic!("no extended capability {id:#x}");
    }

    fn ats(&self) -> u16 {
        self.extended(0x0f) + 6
    }
    fn pri_control(&self) -> u16 {
        self.extended(0x13) + 4
    }
    fn pri_status(&self) -> u16 {
        self.read16(self.extended(0x13) + 6)
    }
    fn pasid(&self) -> u16 {
        self.extended(0x1b) + 6
    }
}

const STOPPED: u16 = 0x8100;
const RUNNING: u16 = 0x8000;

#[test]
fn a_guest_finds_what_was_declared() {
    let f = Fixture::new();
    let express = f.capability(0x10);
    let msix = f.capability(0x11);
    let rows = [
        ("ids", f.read32(0), 0x10f0_1af4),
        ("class", f.read32(8), 0x1200_0000),
        ("capability list", u32::from(f.read16(6) & 0x10), 0x10),
        ("no interrupt pin", f.read32(0x3c), 0),
        ("express version 2, integrated endpoint", u32::from(f.read16(express + 2)), 0x92),
        ("function-level reset", f.read32(express + 4) & 1 << 28, 1 << 28),
        ("one end-end prefix", f.read32(express + 0x24), 1 << 21 | 1 << 22),
        ("4 vectors, off", u32::from(f.read16(msix + 2)), 3),
        ("table in BAR 2", f.read32(msix + 4), 2),
        ("pending bits in BAR 2", f.read32(msix + 8), 0x802),
        ("PASID: 20 bits", u32::from(f.read16(f.extended(0x1b) + 4)), 20 << 8),
        ("ATS: page aligned", u32::from(f.read16(f.extended(0x0f) + 4)), 1 << 5),
        ("PRI: stopped, PASID in responses", u32::from(f.pri_status()), u32::from(STOPPED)),
        ("PRI: capacity", f.read32(f.extended(0x13) + 8), CAPACITY),
    ];
    for (name, found, expected) in rows {
        assert_eq!(found, expected, "{name}: {found:#x}");
    }
    assert_eq!(f.read16(f.capability(1) + 2), 3, "power management version");
}

#[test]
fn bars_size_and_decode() {
    let f = Fixture::new();
    let rows = [(0x10, 0xffff_c000), (0x14, 0), (0x18, 0xffff_f000), (0x1c, 0), (0x24, 0), (0x30, 0)];
    for (register, mask) in rows {
        f.write(register, &[0xff; 4]);
        assert_eq!(f.read32(register), mask, "register {register:#x}");
    }
    f.write(0x10, &0xe000_4abc_u32.to_le_bytes());
    f.write(0x18, &0xe001_0000_u32.to_le_bytes());
    assert_eq!(f.base.bars(), [None; 6], "memory space is off");
    f.write16(4, 2);
    let bars = f.base.bars();
    let range = |start, len| Some(crate::pci::BarRange { start, len });
    assert_eq!((bars[0], bars[2]), (range(0xe000_4000, 0x4000), range(0xe001_0000, 0x1000)));
    assert_eq!([bars[1], bars[3], bars[4], bars[5]], [None; 4]);
}

#[test]
fn the_order_that_linux_enables_in_gives_these_events() {
    use FunctionEvent::{Ats, BusMaster, FlushDeviceTlb, Pasid, PriEnabled, PriReset};
    let f = Fixture::new();
    let allocation = f.extended(0x13) + 12;
    assert_eq!(f.write16(4, 6), [BusMaster(true)]);
    assert_eq!(f.write16(f.ats(), 0), [], "STU 0");
    assert_eq!(f.write16(f.pasid(), 7), [Pasid(PasidState { enabled: true }), FlushDeviceTlb]);
    assert_eq!(f.read16(f.pasid()), 1, "execute and privileged are not offered");
    let ats = AtsState { enabled: true, stu: 0 };
    assert_eq!(f.write16(f.ats(), 0x8000), [Ats(ats), FlushDeviceTlb]);
    assert_eq!(f.write16(f.pri_control(), 2), [PriReset]);
    assert_eq!((f.read16(f.pri_control()), f.pri_status()), (0, STOPPED));
    assert_eq!(f.write(allocation, &32u32.to_le_bytes()), []);
    let pri = PriState { enabled: true, allocation: 32 };
    assert_eq!(f.write16(f.pri_control(), 1), [PriEnabled(pri)]);
    assert_eq!(f.pri_status(), RUNNING);
    assert_eq!((f.base.ats(), f.base.pri(), f.base.pasid().enabled), (ats, pri, true));
    assert!(f.base.bus_master());
}

#[test]
fn stu_holds_still_while_ats_is_enabled() {
    let f = Fixture::new();
    let at = f.ats();
    f.write16(at, 0x8003);
    assert_eq!(f.write16(at, 0x8005), []);
    assert_eq!(f.base.ats(), AtsState { enabled: true, stu: 3 });
    assert_eq!(
        f.write16(at, 0x0005),
        [FunctionEvent::Ats(AtsState { enabled: false, stu: 5 }), FunctionEvent::FlushDeviceTlb]
    );
    assert_eq!(
        f.write16(at, 0x8005),
        [FunctionEvent::Ats(AtsState { enabled: true, stu: 5 }), FunctionEvent::FlushDeviceTlb]
    );
}

/// Name, control before, errors before, control written, control after, status after, events.
type PriRow = (&'static str, u16, bool, u16, u16, u16, &'static [FunctionEvent]);

#[test]
fn pri_control_and_status_follow_each_other() {
    use FunctionEvent::{PriDisabled, PriEnabled, PriReset};
    const ENABLED: FunctionEvent = PriEnabled(PriState { enabled: true, allocation: 0 });
    let rows: [PriRow; 7] = [
        ("reset at rest clears errors", 0, true, 2, 0, STOPPED, &[PriReset]),
        ("enable clears status", 0, true, 1, 1, RUNNING, &[ENABLED]),
        ("reset while enabled is ignored", 1, true, 3, 1, RUNNING | 3, &[]),
        ("disable does not stop by itself", 1, false, 0, 0, RUNNING, &[PriDisabled]),
        ("disable with reset stops at once", 1, true, 2, 0, STOPPED, &[PriDisabled, PriReset]),
        ("enable with reset only enables", 0, false, 3, 1, RUNNING, &[ENABLED]),
        ("nothing changes", 0, false, 0, 0, STOPPED, &[]),
    ];
    for (name, before, errors, written, control, status, events) in rows {
        let f = Fixture::new();
        let at = f.pri_control();
        f.write16(at, before);
        if errors {
            f.base.pri_response_failure();
            f.base.pri_unexpected_group();
        }
        assert_eq!(f.write16(at, written), events, "{name}");
        assert_eq!((f.read16(at), f.pri_status()), (control, status), "{name}");
    }
}

#[test]
fn stopped_shows_once_the_function_says_so_and_only_while_disabled() {
    let f = Fixture::new();
    f.write16(f.pri_control(), 1);
    f.base.pri_stopped();
    assert_eq!(f.pri_status(), RUNNING);
    f.write16(f.pri_control(), 0);
    f.base.pri_stopped();
    assert_eq!(f.pri_status(), STOPPED);
}

#[test]
fn pri_errors_are_cleared_one_by_one() {
    let f = Fixture::new();
    f.base.pri_response_failure();
    f.base.pri_unexpected_group();
    assert_eq!(f.pri_status(), STOPPED | 3);
    f.write16(f.pri_control() + 2, 0xfffe);
    assert_eq!(f.pri_status(), STOPPED | 1);
    f.write16(f.pri_control() + 2, 0);
    assert_eq!(f.pri_status(), STOPPED | 1);
}

#[test]
fn allocation_above_the_capacity_is_not_granted() {
    let f = Fixture::new();
    f.write(f.extended(0x13) + 12, &[0xff; 4]);
    assert_eq!(f.base.pri().allocation, CAPACITY);
    assert_eq!(f.read32(f.extended(0x13) + 12), u32::MAX);
}

#[test]
fn function_level_reset_takes_all_back() {
    let f = Fixture::new();
    let express = f.capability(0x10);
    f.write16(4, 6);
    f.write(0x10, &0xe000_0000_u32.to_le_bytes());
    f.write16(f.pasid(), 1);
    f.write16(f.ats(), 0x8000);
    f.write16(f.pri_control(), 1);
    let control = f.read16(express + 8);
    assert_eq!(f.write16(express + 8, control | 0x8000), [FunctionEvent::FunctionReset]);
    assert_eq!((f.read16(4), f.read32(0x10), f.read16(express + 8)), (0, 0, control));
    assert_eq!((f.base.ats(), f.base.pri()), (AtsState::default(), PriState::default()));
    assert!(!f.base.pasid().enabled && !f.base.bus_master());
    assert_eq!(f.pri_status(), STOPPED);
}

#[test]
fn vendor_specific_capabilities_follow_the_fixed_ones() {
    const VENDOR: &[VendorSpec] =
        &[VendorSpec { body: &[5, 7, 8], writable: &[0, 0xf0] }, VendorSpec { body: &[4, 9], writable: &[] }];
    let sink = Arc::new(RecordingMsi::default());
    let base =
        FunctionBase::new(FunctionSpec { vendor: VENDOR, ..spec() }, SourceId(8), sink.clone()).unwrap();
    let f = Fixture { base, sink };
    let first = f.capability(9);
    assert_eq!(f.read32(first) & 0xffff_00ff, 0x0705_0009);
    f.write(first + 2, &[0xff; 3]);
    assert_eq!(f.read32(first + 2) & 0xff_ffff, 0x08_f705, "writable bits only");
    let second = f.read16(first) >> 8;
    assert_eq!(f.read32(second), 0x0904_0009, "the last one");
}

#[test]
fn msix_is_reached_through_capability_and_bar() {
    let f = Fixture::new();
    let control = f.capability(0x11) + 2;
    f.write16(4, 4);
    f.write16(control, 0x8000);
    assert_eq!(f.read16(control), 0x8003);
    assert!(f.base.bar_write(2, 0x10, &0xfee0_0000u64.to_le_bytes()));
    assert!(f.base.bar_write(2, 0x18, &[0x51, 0, 0, 0, 0, 0, 0, 0]));
    assert!(!f.base.bar_write(0, 0x10, &[0]), "another BAR");
    assert!(!f.base.bar_read(2, 0x40, &mut [0]), "behind the table");
    f.base.trigger(1);
    f.write16(control, 0);
    f.base.trigger(1);
    let sent = f.sink.sent.lock();
    assert_eq!(sent.iter().map(|(s, m)| (s.0, m.data)).collect::<Vec<_>>(), [(8, 0x51)]);
}

#[test]
fn registers_of_a_function_keep_what_they_declare() {
    const REGISTERS: &[ConfigRegister] = &[
        ConfigRegister { offset: 0x400, writable: 0, w1c: 0x00ff_ffff },
        ConfigRegister { offset: 0xffc, writable: 0xffff_0000, w1c: 0 },
    ];
    let sink = Arc::new(RecordingMsi::default());
    let base = FunctionBase::new(FunctionSpec { registers: REGISTERS, ..spec() }, SourceId(8), sink.clone())
        .unwrap();
    let f = Fixture { base, sink };
    f.base.set_register_bits(0x400, 0x0100_1001);
    f.base.set_register_bits(0x400, 0x10);
    assert_eq!(f.read32(0x400), 0x0100_1011);
    assert_eq!(f.write(0x400, &0xff00_0001_u32.to_le_bytes()), []);
    assert_eq!(f.read32(0x400), 0x0100_1010);
    f.write(0xffc, &[0xff; 4]);
    assert_eq!((f.read32(0xffc), f.read32(0xff8)), (0xffff_0000, 0));
    f.base.reset(|_| ());
    assert_eq!((f.read32(0x400), f.read32(0xffc)), (0, 0));
}

#[test]
fn contradictory_specifications_are_refused() {
    type Spoil = fn(&mut FunctionSpec);
    const SHORT: &[VendorSpec] = &[VendorSpec { body: &[5, 0], writable: &[] }];
    const LONG: &[VendorSpec] = &[VendorSpec { body: &[0x78; 0x76], writable: &[] }];
    const MASK: &[VendorSpec] = &[VendorSpec { body: &[4, 0], writable: &[0; 3] }];
    const fn register(offset: u16) -> [ConfigRegister; 1] {
        [ConfigRegister { offset, writable: 0, w1c: 0 }]
    }
    let rows: [(&str, Spoil); 16] = [
        ("register in a capability", |s| s.registers = const { &register(0x100) }),
        ("register across", |s| s.registers = const { &register(0x402) }),
        ("register beyond the space", |s| s.registers = const { &register(0x1000) }),
        ("vendor's length", |s| s.vendor = SHORT),
        ("vendor's place", |s| s.vendor = LONG),
        ("vendor's mask", |s| s.vendor = MASK),
        ("odd BAR", |s| s.bars[0] = Some(BarSpec { len: 0x3000 })),
        ("small BAR", |s| s.bars[0] = Some(BarSpec { len: 16 })),
        ("no BAR for MSI-X", |s| s.bars[2] = None),
        ("wide PASID", |s| s.pasid = Some(PasidSpec { width: 21 })),
        ("no PASID bits", |s| s.pasid = Some(PasidSpec { width: 0 })),
        ("no capacity", |s| s.pri = Some(PriSpec { capacity: 0 })),
        ("deep queue", |s| s.ats = Some(AtsSpec { queue_depth: 32, global_invalidate: false })),
        ("no express", |s| s.express = None),
        ("PRI alone", |s| s.ats = None),
        ("BAR 6", |s| s.msix.iter_mut().for_each(|m| m.bar = 6)),
    ];
    for (name, spoil) in rows {
        let mut spec = spec();
        spoil(&mut spec);
        assert!(FunctionBase::new(spec, SourceId(8), Arc::new(RecordingMsi::default())).is_err(), "{name}");
    }
    type SpoilMsix = fn(&mut MsixSpec);
    let rows: [(&str, SpoilMsix); 5] = [
        ("no vectors", |m| m.vectors = 0),
        ("too many", |m| m.vectors = 2049),
        ("overlap", |m| m.pba_offset = 0x38),
        ("unaligned", |m| m.table_offset = 4),
        ("beyond the BAR", |m| m.pba_offset = 0x1000),
    ];
    for (name, change) in rows {
        let mut spec = spec();
        spec.msix.iter_mut().for_each(change);
        assert!(FunctionBase::new(spec, SourceId(8), Arc::new(RecordingMsi::default())).is_err(), "{name}");
    }
}

/// An interrupt waits for no access to configuration space, whatever the function interrupts by; and the status
/// register's bit goes to reads of its byte alone.
#[test]
fn interrupts_do_not_wait_for_configuration_space() {
    let sink = Arc::new(RecordingMsi::default());
    let base = FunctionBase::new(spec(), SourceId(8), sink).unwrap().with_line(Arc::new(crate::irq::NoIrq));
    std::thread::scope(|scope| {
        let _held = (base.writes.lock(), base.config.lock());
        let (done, is_done) = std::sync::mpsc::channel();
        let base = &base;
        scope.spawn(move || {
            base.set_interrupt(false);
            base.set_interrupt(true);
            base.trigger(0);
            done.send(())
        });
        assert_eq!(is_done.recv_timeout(std::time::Duration::from_secs(60)), Ok(()));
    });
    let read = |offset, len: usize| {
        let mut data = [0; 8];
        base.config_read(offset, &mut data[..len]);
        u64::from_le_bytes(data)
    };
    let rows = [(4, 4, 0x0018_0000), (0, 8, 0x0018_0000_10f0_1af4), (5, 2, 0x1800), (6, 1, 0x18), (7, 1, 0)];
    for (offset, len, expected) in rows {
        assert_eq!(read(offset, len), expected, "{len} at {offset}");
    }
    base.set_interrupt(false);
    assert_eq!(read(4, 4), 0x0010_0000);
}

proptest! {
    /// Whatever is written: constants stay, and the lock-free state agrees with the registers.
    #[test]
    fn any_writes_keep_constants_and_state(writes in prop::collection::vec(
        (prop_oneof![0u16..0x140, any::<u16>()], prop::collection::vec(any::<u8>(), 1..9)), 0..40)) {
        let f = Fixture::new();
        for (offset, data) in &writes {
            f.write(*offset, data);
            prop_assert_eq!(f.read32(0), 0x10f0_1af4);
            prop_assert_eq!(f.pri_status() & 0x8000, 0x8000);
            prop_assert_eq!(f.read16(f.pri_control()) & !1, 0);
            prop_assert_eq!(f.base.ats().enabled, f.read16(f.ats()) & 0x8000 != 0);
            prop_assert_eq!(f.base.pri().enabled, f.read16(f.pri_control()) & 1 != 0);
            prop_assert_eq!(f.base.pasid().enabled, f.read16(f.pasid()) & 1 != 0);
            prop_assert_eq!(f.base.bus_master(), f.read16(4) & 4 != 0);
        }
    }
}
