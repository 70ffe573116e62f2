//! Configuration space and the common configuration, as a driver meets them.

use super::rig::{DEVICE_CONFIG, ISR, NEEDS_RESET, QUEUE, Rig, SECTORS, disk, reg};
use crate::pci::PciFunction;
use crate::virtio::spec::feature;

fn cold() -> Rig {
    Rig::cold(disk(), false)
}

#[test]
fn a_driver_finds_a_modern_device() {
    let rig = cold();
    let word = |at| u16::from_le_bytes([rig.config8(at), rig.config8(at + 1)]);
    let rows = [
        ("vendor", word(0), 0x1af4),
        ("device", word(2), 0x1042),
        ("revision", rig.config8(8).into(), 1),
        ("class", word(10), 0x0100),
        ("subsystem, not of an old device", word(0x2e), 0x40),
        ("INTA", rig.config8(0x3d).into(), 1),
    ];
    for (name, found, expected) in rows {
        assert_eq!(found, expected, "{name}");
    }
    for (kind, len, offset, length) in
        [(1, 16, 0, 0x38), (2, 20, 0x3000, 0x100), (3, 16, 0x1000, 1), (4, 16, 0x2000, 0x1000), (5, 20, 0, 0)]
    {
        let at = rig.capability(9, |at| rig.config8(at + 3) == kind);
        let dword = |at| u32::from(word(at)) | u32::from(word(at + 2)) << 16;
        let found = (rig.config8(at + 2), rig.config8(at + 4), dword(at + 8), dword(at + 12));
        assert_eq!(found, (len, 0, offset, length), "structure {kind}");
    }
    let notify = rig.capability(9, |at| rig.config8(at + 3) == 2);
    assert_eq!(rig.config8(notify + 16), 4, "multiplier");
}

#[test]
fn features_are_negotiated() {
    let all = cold().offered();
    let rows = [
        ("all", all, true),
        ("what has to be", feature::REQUIRED, true),
        ("a legacy driver", all & !feature::VERSION_1, false),
        ("physical addresses", all & !feature::ACCESS_PLATFORM, false),
        ("one that is not offered", all | 1 << 34, false),
        ("a device's that is not offered", all | 1 << 14, false),
        ("none", 0, false),
    ];
    for (name, accepted, good) in rows {
        let rig = cold();
        rig.write8(reg::STATUS, 3);
        rig.accept(accepted);
        rig.write8(reg::STATUS, 0xb);
        assert_eq!(rig.status(), if good { 0xb } else { 3 }, "{name}");
        rig.write8(reg::STATUS, 0xf);
        assert_eq!(rig.status(), if good { 0xf } else { 3 }, "{name}: DRIVER_OK");
        rig.write32(reg::DRIVER_SELECT, 0);
        rig.write32(reg::DRIVER_FEATURE, 0);
        let low = u32::try_from(accepted & 0xffff_ffff).unwrap();
        assert_eq!(rig.read32(reg::DRIVER_FEATURE), if good { low } else { 0 }, "{name}: later");
    }
    let bits = [1 << 2, 1 << 6, 1 << 9, 1 << 13, 1 << 28, 1 << 29, 1 << 32, 1 << 33];
    assert_eq!(all, bits.into_iter().sum::<u64>());
    let rig = cold();
    rig.write32(reg::DEVICE_SELECT, 2);
    assert_eq!(rig.read32(reg::DEVICE_FEATURE), 0, "beyond 64 bits");
}

#[test]
fn status_bits_can_only_be_set_or_all_be_cleared() {
    let rig = cold();
    for (written, expected) in
        [(1, 1), (2, 3), (NEEDS_RESET, 3), (0x30, 3), (4, 3), (0x80, 0x83), (0, 0), (7, 3)]
    {
        rig.write8(reg::STATUS, written);
        assert_eq!(rig.status(), expected, "{written:#x}");
    }
}

#[test]
fn queue_registers_take_what_can_be() {
    let rig = cold();
    assert_eq!((rig.read16(reg::QUEUES), rig.read16(reg::SIZE)), (1, 256));
    for (size, expected) in [(128, 128), (0, 128), (100, 128), (512, 128), (1, 1), (256, 256)] {
        rig.write16(reg::SIZE, size);
        assert_eq!(rig.read16(reg::SIZE), expected, "size {size}");
    }
    for (vector, expected) in [(0, 0), (1, 1), (2, 0xffff), (0xffff, 0xffff)] {
        rig.write16(reg::VECTOR, vector);
        rig.write16(reg::CONFIG_VECTOR, vector);
        assert_eq!((rig.read16(reg::VECTOR), rig.read16(reg::CONFIG_VECTOR)), (expected, expected));
    }
    rig.write16(reg::ENABLE, 2);
    assert_eq!(rig.read16(reg::ENABLE), 0, "only 1 enables");
    rig.queue(QUEUE);
    for register in [reg::SIZE, reg::DESC, reg::DRIVER, reg::DEVICE, reg::ENABLE] {
        let before = rig.read16(register);
        rig.write16(register, 0x40);
        assert_eq!(rig.read16(register), before, "register {register:#x} of an enabled queue");
    }
    rig.write16(reg::SELECT, 1);
    rig.write16(reg::ENABLE, 1);
    rig.write16(reg::SIZE, 8);
    let found = [reg::SIZE, reg::ENABLE, reg::VECTOR].map(|register| rig.read16(register));
    assert_eq!(found, [0, 0, 0xffff], "no such queue");
    rig.write8(reg::STATUS, 0);
    let found = [reg::SIZE, reg::ENABLE, reg::VECTOR, reg::DESC].map(|register| rig.read16(register));
    assert_eq!(found, [256, 0, 0xffff, 0], "after a reset");
}

#[test]
fn accesses_of_any_width_agree() {
    let rig = cold();
    rig.function.bar_write(0, reg::DESC, &0x1234_5678_9abc_def0_u64.to_le_bytes());
    let mut whole = [0; 8];
    for len in [1, 2, 4] {
        for at in (0..8).step_by(len) {
            rig.function.bar_read(0, reg::DESC + at as u64, &mut whole[at..at + len]);
        }
        assert_eq!(u64::from_le_bytes(whole), 0x1234_5678_9abc_def0, "reads of {len}");
    }
    rig.write32(reg::DESC + 4, 7);
    rig.write8(reg::DESC + 1, 0xaa);
    rig.function.bar_read(0, reg::DESC, &mut whole);
    assert_eq!(u64::from_le_bytes(whole), 0x0000_0007_9abc_aaf0);
    rig.function.bar_read(0, 0x34, &mut whole);
    assert_eq!(whole, [0; 8], "over the end");
    rig.function.bar_write(0, 0xffe, &[0xff; 8]);
    assert_eq!(rig.read8(ISR), 0);
    let mut capacity = [0; 8];
    rig.function.bar_read(0, DEVICE_CONFIG, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), SECTORS);
    rig.function.bar_write(0, DEVICE_CONFIG, &[0xff; 8]);
    assert_eq!((rig.read32(DEVICE_CONFIG), rig.read32(DEVICE_CONFIG + 0xffc)), (4096, 0));
}

#[test]
fn bars_are_reached_through_configuration_space() {
    let rig = cold();
    let at = rig.capability(9, |at| rig.config8(at + 3) == 5);
    let aim = |bar: u8, offset: u32, length: u32| {
        rig.function.config_write(at + 4, &[bar]);
        rig.function.config_write(at + 8, &offset.to_le_bytes());
        rig.function.config_write(at + 12, &length.to_le_bytes());
    };
    let data = || {
        let mut data = [0; 4];
        rig.function.config_read(at + 16, &mut data);
        u32::from_le_bytes(data)
    };
    aim(0, 0x14, 1);
    rig.function.config_write(at + 16, &[3, 0xff, 0xff, 0xff]);
    assert_eq!((rig.status(), data()), (3, 3));
    aim(0, 0x2000, 4);
    assert_eq!(data(), 4096);
    aim(0, 0x12, 2);
    assert_eq!(data(), 1);
    for (name, bar, offset, length) in [
        ("no such BAR", 2, 0, 4),
        ("behind the BAR", 0, 0x4000, 4),
        ("odd length", 0, 0x2000, 3),
        ("nothing", 0, 0x2000, 0),
        ("odd offset", 0, 0x2001, 4),
        ("far away", 0, u32::MAX, 1),
    ] {
        aim(bar, offset, length);
        rig.function.config_write(at + 16, &[0; 4]);
        assert_eq!((data(), rig.status()), (0, 3), "{name}");
    }
}
