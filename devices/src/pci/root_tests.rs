use super::*;
use crate::pci::{BarSpec, DecodedBars, FunctionBase, FunctionSpec, HostBridge, Identity};
use iommu_core::SourceId;
use iommu_core::testkit::RecordingMsi;
use parking_lot::Mutex;
use proptest::prelude::*;

/// A function with one BAR that takes notes of accesses: (BAR, offset, length).
struct Noting {
    base: FunctionBase,
    notes: Mutex<Vec<(u8, u64, usize)>>,
}

impl Noting {
    fn new(device: u16) -> Arc<Self> {
        let mut bars = [None; 6];
        bars[0] = Some(BarSpec { len: 0x2000 });
        let identity = Identity { vendor: 0x1af4, device, ..Identity::default() };
        let spec = FunctionSpec { identity, bars, ..FunctionSpec::default() };
        let sink = Arc::new(RecordingMsi::default());
        let base = FunctionBase::new(spec, SourceId(0), sink).unwrap();
        Arc::new(Self { base, notes: Mutex::default() })
    }

    fn notes(&self) -> Vec<(u8, u64, usize)> {
        std::mem::take(&mut *self.notes.lock())
    }
}

impl PciFunction for Noting {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        assert!(usize::from(offset) + data.len() <= CONFIG_SIZE);
        self.base.config_read(offset, data);
    }
    fn config_write(&self, offset: u16, data: &[u8]) {
        assert!(usize::from(offset) + data.len() <= CONFIG_SIZE);
        self.base.config_write(offset, data, |_| ());
    }
    fn bars(&self) -> DecodedBars {
        self.base.bars()
    }
    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        assert!(offset + data.len() as u64 <= 0x2000);
        data.fill(0x11);
        self.notes.lock().push((bar, offset, data.len()));
    }
    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        assert!(offset + data.len() as u64 <= 0x2000);
        self.notes.lock().push((bar, offset, data.len()));
    }
    fn reset(&self) {
        self.base.reset(|_| ());
    }
}

const WINDOW: BusRange = BusRange { start: 0xe000_0000, len: 0x1000_0000 };

struct Fixture {
    ecam: Ecam,
    ports: ConfigPorts,
    window: MmioWindow,
    root: Arc<PciRoot>,
    one: Arc<Noting>,
    two: Arc<Noting>,
}

/// Host bridge at 0.0, functions at 3.0 and 3.5.
fn fixture() -> Fixture {
    let (one, two) = (Noting::new(0x10f1), Noting::new(0x10f2));
    let mut root = PciRoot::default();
    root.insert(0, 0, Arc::new(HostBridge::new().unwrap())).unwrap();
    root.insert(3, 0, one.clone()).unwrap();
    root.insert(3, 5, two.clone()).unwrap();
    let root = Arc::new(root);
    Fixture {
        ecam: Ecam(root.clone()),
        ports: ConfigPorts::new(root.clone(), None),
        window: MmioWindow::new(root.clone(), WINDOW),
        root,
        one,
        two,
    }
}

fn read(device: &dyn BusDevice, offset: u64, len: usize) -> u64 {
    let mut data = [0; 8];
    device.read(offset, &mut data[..len]);
    u64::from_le_bytes(data)
}

const AT_3_0: u64 = 3 << 15;
const AT_3_5: u64 = 3 << 15 | 5 << 12;

#[test]
fn ecam_reads() {
    let f = fixture();
    let rows = [
        ("host bridge", 0, 4, 0x0d57_8086),
        ("host bridge class", 8, 4, 0x0600_0000),
        ("function 0", AT_3_0, 4, 0x10f1_1af4),
        ("device id alone", AT_3_0 + 2, 2, 0x10f1),
        ("function 5", AT_3_5, 4, 0x10f2_1af4),
        ("absent function", AT_3_0 + 0x1000, 4, 0xffff_ffff),
        ("absent device", 31 << 15, 2, 0xffff),
        ("multi-function", AT_3_0 + 0xe, 1, 0x80),
        ("multi-function in a wide read", AT_3_0 + 0xc, 4, 0x0080_0000),
        ("function 5 does not say so", AT_3_5 + 0xe, 1, 0),
        ("single function", 0xe, 1, 0),
        ("last bytes", AT_3_0 + 0xffc, 4, 0),
        ("across the end", AT_3_0 + 0xffe, 4, 0xffff_ffff),
        ("bus 1", ECAM_BUS_LEN, 4, 0xffff_ffff),
        ("bus 255", 255 << 20, 4, 0xffff_ffff),
    ];
    for (name, offset, len, expected) in rows {
        assert_eq!(read(&f.ecam, offset, len), expected, "{name}");
    }
}

#[test]
fn places_are_filled_once_and_only_if_they_exist() {
    let mut root = PciRoot::default();
    for (device, function, fits) in
        [(1, 0, true), (1, 0, false), (31, 7, true), (32, 0, false), (1, 8, false)]
    {
        let result = root.insert(device, function, Noting::new(0));
        assert_eq!(result.is_ok(), fits, "{device}.{function}");
    }
}

#[test]
fn configuration_ports_reach_the_same_registers() {
    let f = fixture();
    let select = |address: u32| f.ports.write(0, &address.to_le_bytes());
    // (name, CONFIG_ADDRESS, offset in the ports, bytes, expected)
    let rows = [
        ("ids", 0x8000_1800, 4, 4, 0x10f1_1af4),
        ("device id", 0x8000_1800, 6, 2, 0x10f1),
        ("function 5", 0x8000_1d00, 4, 4, 0x10f2_1af4),
        ("disabled", 0x0000_1800, 4, 4, 0xffff_ffff),
        ("bus 1", 0x8001_1800, 4, 4, 0xffff_ffff),
        ("address reads back", 0x8000_1803, 0, 4, 0x8000_1800),
        ("byte of the address", 0x8000_1800, 0, 1, 0xff),
    ];
    for (name, address, offset, len, expected) in rows {
        select(address);
        assert_eq!(read(&f.ports, offset, len), expected, "{name}");
    }
    select(0x8000_1804);
    f.ports.write(4, &[2]);
    assert_eq!(read(&f.ecam, AT_3_0 + 4, 2), 2);
    f.ports.write(0, &[0xff]);
    assert_eq!(read(&f.ports, 0, 4), 0x8000_1804, "byte writes do not reach the address");
}

#[test]
fn a_byte_at_cf9_is_reset_control() {
    let control: Arc<Recorder> = Arc::default();
    let ports = ConfigPorts::new(Arc::default(), Some(control.clone()));
    ports.write(1, &[6]);
    ports.write(1, &[1, 2]);
    ports.write(0, &[1, 2, 3, 4]);
    ports.write(2, &[7]);
    assert_eq!(*control.0.lock(), [(0, 6)]);
}

#[derive(Default)]
struct Recorder(Mutex<Vec<(u64, u8)>>);
impl BusDevice for Recorder {
    fn read(&self, _: u64, _: &mut [u8]) {}
    fn write(&self, offset: u64, data: &[u8]) {
        self.0.lock().push((offset, data[0]));
    }
}

#[test]
fn window_follows_what_bars_decode() {
    let f = fixture();
    assert_eq!(read(&f.window, 0, 4), 0xffff_ffff, "nothing decodes");
    f.ecam.write(AT_3_0 + 0x10, &0xe000_4000_u32.to_le_bytes());
    f.ecam.write(AT_3_5 + 0x10, &0xe000_6000_u32.to_le_bytes());
    f.ecam.write(AT_3_0 + 4, &[2, 0]);
    f.ecam.write(AT_3_5 + 4, &[2, 0]);
    // (offset into the window, bytes, who)
    let rows = [
        (0x3fff, 1, None),
        (0x4000, 4, Some((0, 0, 4))),
        (0x5ff8, 8, Some((0, 0x1ff8, 8))),
        (0x5ffc, 8, None),
        (0x6000, 1, Some((1, 0, 1))),
        (0x8000, 1, None),
    ];
    for (offset, len, who) in rows {
        let value = read(&f.window, offset, len) & 0xff;
        assert_eq!(value, if who.is_some() { 0x11 } else { 0xff }, "{offset:#x}");
        f.window.write(offset, &[0; 8][..len]);
        let expected = |which| match who {
            Some((w, at, len)) if w == which => vec![(0, at, len); 2],
            _ => vec![],
        };
        assert_eq!((f.one.notes(), f.two.notes()), (expected(0), expected(1)), "{offset:#x}");
    }
    f.ecam.write(AT_3_0 + 0x10, &0xe010_0000_u32.to_le_bytes());
    assert_eq!((read(&f.window, 0x4000, 1), read(&f.window, 0x10_0000, 1)), (0xff, 0x11), "moved");
    f.ecam.write(AT_3_0 + 4, &[0, 0]);
    assert_eq!((read(&f.window, 0x10_0000, 1), read(&f.window, 0x6000, 1)), (0xff, 0x11), "disabled");
    f.root.reset();
    assert_eq!(read(&f.window, 0x6000, 1), 0xff, "reset");
}

proptest! {
    /// Any access to any face, mixed: nothing panics, and the asserts in `Noting` hold.
    #[test]
    fn hostile_accesses(accesses in prop::collection::vec(
        (0u8..3, prop_oneof![0u64..0x20, 0x3ff0u64..0x6010, AT_3_0..AT_3_0 + 0x6000, any::<u64>()],
         prop::collection::vec(any::<u8>(), 1..9), any::<bool>()), 0..60)) {
        let f = fixture();
        f.ecam.write(AT_3_0 + 0x10, &0xe000_4000_u32.to_le_bytes());
        f.ecam.write(AT_3_0 + 4, &[2, 0]);
        for (face, offset, mut data, write) in accesses {
            let device: &dyn BusDevice = match face {
                0 => &f.ecam,
                1 => &f.ports,
                _ => &f.window,
            };
            if write {
                device.write(offset, &data);
            } else {
                device.read(offset, &mut data);
            }
        }
        prop_assert_eq!(read(&f.ecam, 0, 4), 0x0d57_8086);
    }
}
