use super::*;
use iommu_core::testkit::RecordingMsi;
use proptest::prelude::*;

const SOURCE: SourceId = SourceId::from_bdf(0xff, 0, 0);
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const REMOTE_IRR: u64 = 1 << 14;

#[derive(Default)]
struct Routes(Mutex<Vec<(u8, PinRoute)>>);
impl RouteObserver for Routes {
    fn route_changed(&self, pin: u8, route: &PinRoute) {
        self.0.lock().push((pin, *route));
    }
}

struct Fixture {
    ioapic: Arc<IoApic>,
    sink: Arc<RecordingMsi>,
    routes: Arc<Routes>,
}

impl Fixture {
    fn new() -> Self {
        let (sink, routes) = (Arc::new(RecordingMsi::default()), Arc::new(Routes::default()));
        Self { ioapic: IoApic::new(SOURCE, sink.clone(), Some(routes.clone())), sink, routes }
    }

    /// Pin 4 programmed with `entry`.
    fn with(entry: u64) -> (Self, Arc<dyn IrqLine>) {
        let f = Self::new();
        f.program(4, entry);
        f.routes.0.lock().clear();
        let line = f.ioapic.line(4).unwrap();
        (f, line)
    }

    fn write(&self, index: u8, value: u32) {
        self.ioapic.write(spec::INDEX, &[index]);
        self.ioapic.write(spec::DATA, &value.to_le_bytes());
    }

    fn read(&self, index: u8) -> u32 {
        self.ioapic.write(spec::INDEX, &[index, 0, 0, 0]);
        let mut data = [0; 4];
        self.ioapic.read(spec::DATA, &mut data);
        u32::from_le_bytes(data)
    }

    fn program(&self, pin: u8, entry: u64) {
        self.write(0x11 + pin * 2, u32::try_from(entry >> 32).unwrap());
        self.write(0x10 + pin * 2, u32::try_from(entry & 0xffff_ffff).unwrap());
    }

    fn entry(&self, pin: u8) -> u64 {
        u64::from(self.read(0x11 + pin * 2)) << 32 | u64::from(self.read(0x10 + pin * 2))
    }

    fn sent(&self) -> Vec<Msi> {
        std::mem::take(&mut *self.sink.sent.lock())
            .into_iter()
            .map(|(source, msi)| {
                assert_eq!(source, SOURCE);
                msi
            })
            .collect()
    }
}

#[test]
fn entries_make_these_messages() {
    // (name, entry, address, data)
    let rows = [
        ("physical 3, fixed, edge", 0x0300_0000_0000_0031, 0xfee0_3000, 0x4031),
        ("logical", 0x0300_0000_0000_0831, 0xfee0_3004, 0x4031),
        ("lowest priority, level", 0x0100_0000_0000_8131, 0xfee0_1000, 0xc131),
        ("extended destination 0x102", 0x0202_0000_0000_0031, 0xfee0_2020, 0x4031),
        ("NMI", 0x0000_0000_0000_0402, 0xfee0_0000, 0x4402),
        ("remappable, index 5", 0x000b_0000_0000_0004, 0xfee0_00b0, 0x4004),
        ("remappable, index 0xffff, level", 0xffff_0000_0000_8804, 0xfeef_fff4, 0xc004),
        ("polarity does not show", 0x0300_0000_0000_2031, 0xfee0_3000, 0x4031),
    ];
    for (name, entry, address, data) in rows {
        let (f, line) = Fixture::with(entry);
        line.set(true);
        assert_eq!(f.sent(), [Msi { address, data }], "{name}");
    }
}

#[test]
fn identification_and_version() {
    let f = Fixture::new();
    assert_eq!(f.read(1), 0x0017_0020);
    f.write(1, 0);
    f.write(0, 0xffff_ffff);
    assert_eq!((f.read(0), f.read(1), f.read(2)), (0x0f00_0000, 0x0017_0020, 0x0f00_0000));
    assert_eq!((f.read(3), f.read(0x40), f.read(0xff)), (0, 0, 0));
    assert_eq!((f.entry(0), f.entry(23)), (MASKED, MASKED));
}

#[test]
fn status_and_reserved_bits_cannot_be_written() {
    let f = Fixture::new();
    f.program(0, u64::MAX);
    assert_eq!(f.entry(0), 0xffff_0000_0001_afff);
    f.program(23, u64::MAX);
    assert_eq!(f.entry(23), 0xffff_0000_0001_afff);
}

#[test]
fn an_edge_is_sent_once_and_lost_while_masked() {
    let (f, line) = Fixture::with(0x31);
    line.set(true);
    line.set(true);
    f.ioapic.eoi(0x31);
    assert_eq!(f.sent().len(), 1);
    line.set(false);
    f.program(4, 0x31 | MASKED);
    line.set(true);
    f.program(4, 0x31);
    assert_eq!(f.sent(), []);
    line.set(false);
    line.set(true);
    assert_eq!(f.sent().len(), 1);
}

type End = fn(&Fixture);

#[test]
fn a_level_that_stays_is_sent_again_after_each_end() {
    let rows: [(&str, End); 4] = [
        ("EOI register", |f| f.ioapic.write(spec::EOI, &[0x31, 0, 0, 0])),
        ("EOI broadcast", |f| f.ioapic.eoi(0x31)),
        ("EOI by pin", |f| f.ioapic.eoi_pin(4)),
        ("mask as edge and back", |f| {
            f.program(4, 0x31 | MASKED);
            f.program(4, 0x31 | LEVEL);
        }),
    ];
    for (name, end) in rows {
        let (f, line) = Fixture::with(0x31 | LEVEL);
        line.set(true);
        assert_eq!((f.sent().len(), f.entry(4)), (1, 0x31 | LEVEL | REMOTE_IRR), "{name}");
        end(&f);
        assert_eq!((f.sent().len(), f.entry(4)), (1, 0x31 | LEVEL | REMOTE_IRR), "{name}: again");
        line.set(false);
        end(&f);
        assert_eq!((f.sent().len(), f.entry(4)), (0, 0x31 | LEVEL), "{name}: ended");
    }
}

#[test]
fn a_level_is_not_sent_twice_before_its_end() {
    let (f, line) = Fixture::with(0x31 | LEVEL);
    line.set(true);
    line.set(false);
    line.set(true);
    f.ioapic.eoi(0x32);
    f.ioapic.eoi_pin(5);
    f.program(4, 0x31 | LEVEL | MASKED);
    f.program(4, 0x31 | LEVEL);
    assert_eq!(f.sent().len(), 1);
}

#[test]
fn a_masked_level_is_sent_when_unmasked() {
    let (f, line) = Fixture::with(0x31 | LEVEL | MASKED);
    line.set(true);
    assert_eq!((f.sent(), f.entry(4)), (vec![], 0x31 | LEVEL | MASKED));
    f.program(4, 0x31 | LEVEL);
    assert_eq!(f.sent().len(), 1);
}

#[test]
fn lines_into_one_pin_are_ored() {
    let (f, one) = Fixture::with(0x31 | LEVEL);
    let two = f.ioapic.line(4).unwrap();
    one.set(true);
    two.set(true);
    one.set(false);
    f.ioapic.eoi(0x31);
    assert_eq!(f.sent().len(), 2, "the second line still holds");
    two.set(false);
    f.ioapic.eoi(0x31);
    assert_eq!(f.sent(), []);
    assert!(f.ioapic.line(24).is_none());
}

#[test]
fn the_second_line_into_an_edge_pin_is_no_edge() {
    let (f, one) = Fixture::with(0x31);
    let two = f.ioapic.line(4).unwrap();
    one.set(true);
    two.set(true);
    one.set(false);
    one.set(true);
    assert_eq!(f.sent().len(), 1, "the pin stayed high");
    one.set(false);
    two.set(false);
    two.set(true);
    assert_eq!(f.sent().len(), 1, "a new edge");
}

#[test]
fn observer_hears_of_changes_and_only_of_them() {
    let (f, line) = Fixture::with(0x31 | LEVEL);
    line.set(true);
    f.ioapic.eoi(0x31);
    f.program(4, 0x31 | LEVEL);
    assert_eq!(*f.routes.0.lock(), [], "nothing changed");
    f.program(4, 0x0200_0000_0001_0031);
    let routes = std::mem::take(&mut *f.routes.0.lock());
    assert_eq!(routes.len(), 2, "high half, then low half");
    let expected = PinRoute { msi: Msi { address: 0xfee0_2000, data: 0x4031 }, level: false, masked: true };
    assert_eq!((routes[1], f.ioapic.routes()[4]), ((4, expected), expected));
}

#[test]
fn reset_masks_all_and_keeps_lines() {
    let (f, line) = Fixture::with(0x31 | LEVEL);
    line.set(true);
    f.ioapic.reset();
    assert_eq!((f.sent().len(), f.entry(4)), (1, MASKED));
    f.program(4, 0x31 | LEVEL);
    assert_eq!(f.sent().len(), 1, "the line is still asserted");
}

#[test]
fn narrow_and_misplaced_accesses() {
    let (f, _) = Fixture::with(0x31);
    f.ioapic.write(spec::INDEX, &[0x18]);
    f.ioapic.write(spec::DATA, &[0xff]);
    f.ioapic.write(spec::DATA + 1, &[0xff; 4]);
    assert_eq!(f.entry(4), 0x31);
    f.ioapic.write(spec::INDEX, &[0x18]);
    let mut data = [0xaa; 8];
    f.ioapic.read(spec::DATA, &mut data);
    assert_eq!(data, [0x31, 0, 0, 0, 0, 0, 0, 0]);
    f.ioapic.read(spec::EOI, &mut data);
    assert_eq!(data, [0; 8]);
}

/// One step of a random history.
#[derive(Clone, Debug)]
enum Step {
    Write(u64, Vec<u8>),
    Read(u64, usize),
    Line(u8, bool),
    Eoi(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let offset = prop_oneof![Just(0u64), Just(0x10), Just(0x40), 0u64..0x50, any::<u64>()];
    prop_oneof![
        (offset.clone(), prop::collection::vec(any::<u8>(), 1..9)).prop_map(|(o, d)| Step::Write(o, d)),
        (0x10u8..0x40).prop_map(|index| Step::Write(0, vec![index])),
        any::<u32>().prop_map(|value| Step::Write(0x10, value.to_le_bytes().to_vec())),
        (offset, 1usize..9).prop_map(|(o, n)| Step::Read(o, n)),
        (0u8..24, any::<bool>()).prop_map(|(pin, on)| Step::Line(pin, on)),
        any::<u8>().prop_map(Step::Eoi),
    ]
}

proptest! {
    /// No panic; and a level pin that is open and asserted always waits for an end: nothing gets stuck.
    #[test]
    fn hostile_histories_leave_no_interrupt_behind(steps in prop::collection::vec(step(), 0..80)) {
        let f = Fixture::new();
        let lines: Vec<_> = (0..24).map(|pin| f.ioapic.line(pin).unwrap()).collect();
        for step in steps {
            match step {
                Step::Write(offset, data) => f.ioapic.write(offset, &data),
                Step::Read(offset, len) => f.ioapic.read(offset, &mut vec![0; len]),
                Step::Line(pin, on) => lines[usize::from(pin)].set(on),
                Step::Eoi(vector) => f.ioapic.eoi(vector),
            }
            for pin in &f.ioapic.state.lock().pins {
                let entry = pin.entry;
                let due = entry.level() && !entry.masked() && pin.asserted != 0;
                prop_assert!(!due || entry.remote_irr());
                prop_assert!(entry.level() || !entry.remote_irr());
            }
        }
    }
}

/// Lowers its line when the interrupt ends, and raises it again as often as there is reason to.
struct Resampled {
    line: Arc<dyn IrqLine>,
    again: Mutex<usize>,
    told: Mutex<usize>,
}

impl crate::irq::EndOfInterrupt for Resampled {
    fn ended(&self) {
        *self.told.lock() += 1;
        self.line.set(false);
        let mut again = self.again.lock();
        if let Some(left) = again.checked_sub(1) {
            *again = left;
            self.line.set(true);
        }
    }
}

/// (name, how the guest ends it)
#[test]
fn who_listens_lowers_the_line_before_it_is_sent_again() {
    type End = fn(&Fixture);
    let ends: [(&str, End); 3] = [
        ("by vector", |f| f.ioapic.eoi(0x31)),
        ("by pin", |f| f.ioapic.eoi_pin(4)),
        ("by the entry, edge and back", |f| {
            f.program(4, 0x31 | MASKED);
            f.program(4, 0x31 | LEVEL);
        }),
    ];
    for (name, end) in ends {
        let (f, line) = Fixture::with(0x31 | LEVEL);
        let listener = Arc::new(Resampled { line, again: Mutex::new(1), told: Mutex::new(0) });
        let weak: Weak<Resampled> = Arc::downgrade(&listener);
        f.ioapic.on_end(4, weak);
        f.ioapic.eoi_pin(4);
        assert_eq!(*listener.told.lock(), 0, "{name}: there was none");
        listener.line.set(true);
        assert_eq!(f.sent().len(), 1, "{name}");
        end(&f);
        assert_eq!((f.sent().len(), *listener.told.lock()), (1, 1), "{name}: there still is a reason");
        end(&f);
        assert_eq!((f.sent().len(), *listener.told.lock()), (0, 2), "{name}: there is none");
        assert_eq!(f.entry(4) & REMOTE_IRR, 0, "{name}");
    }
}

#[test]
fn another_line_of_the_pin_is_sent_again() {
    let (f, line) = Fixture::with(0x31 | LEVEL);
    let other = f.ioapic.line(4).unwrap();
    let listener = Arc::new(Resampled { line, again: Mutex::new(0), told: Mutex::new(0) });
    let weak: Weak<Resampled> = Arc::downgrade(&listener);
    f.ioapic.on_end(4, weak);
    other.set(true);
    listener.line.set(true);
    assert_eq!(f.sent().len(), 1);
    f.ioapic.eoi(0x31);
    assert_eq!((f.sent().len(), *listener.told.lock()), (1, 1));
    other.set(false);
    f.ioapic.eoi(0x31);
    assert_eq!((f.sent().len(), *listener.told.lock()), (0, 2));
}
