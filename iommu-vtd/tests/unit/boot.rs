//! The command handshake: a driver's boot, a kernel after a kernel, and the traps of level and one-shot bits.

use iommu_core::{Access, Iova, Request, Translator};
use iommu_vtd::testkit::{PageSize, Tables, flags};

use crate::driver::{
    Driver, ENDPOINT, GCMD, GSTS, IQA, IQH, IQT, Machine, QIE, RING, RTADDR, SRTP, TE, desc,
};

/// What Linux looks at before it uses a unit for shared virtual memory.
#[test]
fn the_driver_accepts_the_unit() {
    let machine = Machine::new();
    let (cap, ecap) = (machine.read64(0x08), machine.read64(0x10));
    let bit = |register: u64, bit: u32| register >> bit & 1 == 1;
    for (name, set) in [
        ("queued invalidation", bit(ecap, 1)),
        ("scalable mode", bit(ecap, 43)),
        ("first stage", bit(ecap, 47)),
        ("coherent walks", bit(ecap, 48)),
        ("PASID", bit(ecap, 40)),
        ("device-TLB", bit(ecap, 2)),
        ("page requests", bit(ecap, 29)),
        ("page request drain", bit(ecap, 42)),
        ("48 bits", bit(cap, 10)),
        ("page-selective", bit(cap, 39)),
        ("set-root invalidates", bit(cap, 63)),
    ] {
        assert!(set, "{name}");
    }
    for (name, set) in [
        ("caching mode", bit(cap, 7)),
        ("write-buffer flush", bit(cap, 4)),
        ("enhanced commands", bit(cap, 61)),
        ("second stage", bit(ecap, 46)),
        ("interrupt remapping", bit(ecap, 3)),
    ] {
        assert!(!set, "{name}");
    }
    let fault_records = (cap >> 24 & 0x3ff) * 16 + ((cap >> 40 & 0xff) + 1) * 16;
    assert!(fault_records <= 4096, "all registers lie in one page");
}

/// All of what Linux writes at boot without interrupt remapping, in its order.
#[test]
fn linux_boots() {
    let machine = Machine::new();
    let driver = Driver::new(&machine);
    assert_eq!(machine.read32(0x34), 0, "no fault pending");
    assert_eq!(machine.read32(GSTS), 0);
    driver.enable_queue();
    let tables = Tables::new(&machine.memory, 0x10_0000..0x40_0000);
    driver.set_root(tables.root_register().raw_value());
    assert_eq!(machine.read32(GSTS), QIE | SRTP, "the queue survives a one-shot command");
    driver.submit(&[desc::CONTEXT_GLOBAL]);
    driver.submit(&[desc::PASID_GLOBAL]);
    driver.submit(&[desc::IOTLB_GLOBAL]);
    driver.enable_page_requests();
    driver.enable_fault_event();
    // Devices get their tables, and ATS and PRI, before translation is on: addresses still mean themselves.
    tables.context(ENDPOINT).without_pasid().first_stage(2).map(
        0x5000,
        0x9000,
        PageSize::Size4K,
        flags::READY,
    );
    let request = Request::untranslated(ENDPOINT, None, Iova(0x5008), Access::Write);
    let output = || machine.unit.translate(&request).map(|t| t.gpa(request.address).0);
    assert_eq!(output(), Ok(0x5008));
    driver.level(TE, true);
    assert_eq!(output(), Ok(0x9008));
    assert_eq!(machine.read32(GSTS), TE | QIE | SRTP);
    assert_eq!((machine.read32(0x34), machine.interrupts()), (0, vec![]));
}

#[test]
fn a_missing_level_switches_off() {
    let machine = Machine::new();
    let (_driver, _tables) = Driver::booted(&machine);
    machine.write32(GCMD, TE | SRTP);
    assert_eq!(machine.read32(GSTS), TE | SRTP, "QIE was missing");
    machine.write32(GCMD, 0);
    assert_eq!(machine.read32(GSTS), SRTP);
}

/// (name, offset, bytes written over TE | QIE, status)
#[test]
fn commands_written_in_parts_keep_the_other_levels() {
    let rows: [(&str, u64, &[u8], u32); 5] = [
        ("top byte", 0x1b, &[0x80], TE | SRTP),
        ("byte without QIE", 0x1a, &[0], TE | QIE | SRTP),
        ("upper half", 0x1a, &[0, 0x84], TE | QIE | SRTP),
        ("across into the status", 0x1b, &[0x84, 0xff], TE | QIE | SRTP),
        ("with the version", 0x14, &[0, 0, 0, 0, 0, 0, 0, 0x04], QIE | SRTP),
    ];
    for (name, offset, data, expected) in rows {
        let machine = Machine::new();
        let (_driver, _tables) = Driver::booted(&machine);
        machine.unit.mmio_write(offset, data);
        assert_eq!(machine.read32(GSTS), expected, "{name}");
    }
}

#[test]
fn the_root_is_latched_by_the_command_only() {
    let machine = Machine::new();
    let (driver, tables) = Driver::booted(&machine);
    tables.context(ENDPOINT).without_pasid().pass_through(1);
    let request = Request::untranslated(ENDPOINT, None, Iova(0x5000), Access::Read);
    assert!(machine.unit.translate(&request).is_ok());
    let empty = Tables::new(&machine.memory, 0x40_0000..0x50_0000);
    machine.write64(RTADDR, empty.root_register().raw_value());
    assert!(machine.unit.translate(&request).is_ok(), "not yet");
    driver.set_root(empty.root_register().raw_value());
    assert_eq!(machine.unit.translate(&request).unwrap_err().reason.code, 0x39);
}

/// kexec: translation off, queue left on. kdump: all left on, queue off and on, new root under way.
#[test]
fn a_second_kernel_takes_over() {
    for crashed in [false, true] {
        let machine = Machine::new();
        let (driver, tables) = Driver::booted(&machine);
        tables.context(ENDPOINT).without_pasid().pass_through(1);
        driver.submit(&[desc::IOTLB_GLOBAL]);
        if !crashed {
            driver.level(TE, false);
        }
        assert_eq!(machine.read32(IQH), machine.read32(IQT));
        driver.level(QIE, false);
        assert_eq!(machine.read64(IQH), 0);
        assert_eq!(machine.read32(GSTS) & TE != 0, crashed);
        driver.enable_queue();
        driver.set_root(tables.root_register().raw_value());
        assert_eq!(machine.read32(GSTS) & TE != 0, crashed, "set-root leaves translation as it is");
        driver.submit(&[desc::CONTEXT_GLOBAL, desc::PASID_GLOBAL, desc::IOTLB_GLOBAL]);
        driver.level(TE, true);
    }
}

#[test]
fn switching_translation_drops_what_ports_hold() {
    let machine = Machine::new();
    let (driver, tables) = Driver::booted(&machine);
    tables.context(ENDPOINT).without_pasid().pass_through(1);
    let mut port = machine.dma().port();
    let mut fill = || {
        assert!(port.session(None).translate(Iova(0x5000), Access::Read).is_ok());
        assert_eq!(machine.unit.ports().cached(), 1);
    };
    fill();
    driver.level(TE, false);
    assert_eq!(machine.unit.ports().cached(), 0, "off");
    fill();
    driver.level(TE, true);
    assert_eq!(machine.unit.ports().cached(), 0, "on");
    fill();
    driver.set_root(tables.root_register().raw_value());
    assert_eq!(machine.unit.ports().cached(), 0, "new root");
}

/// (name, is the queue on, IVA, register, written to it, read back)
#[test]
fn register_based_invalidation_always_completes() {
    const CCMD: u64 = 0x28;
    const IOTLB: u64 = 0xf8;
    let rows = [
        ("context global", false, 0, CCMD, 1_u64 << 63 | 1 << 61, 1 << 61 | 1 << 59),
        ("context domain", false, 0, CCMD, 1 << 63 | 2 << 61 | 5, 2 << 61 | 2 << 59 | 5),
        ("context device", false, 0, CCMD, 1 << 63 | 3 << 61 | 1 << 32 | 8 << 16, 3 << 61 | 3 << 59),
        ("context, queue on", true, 0, CCMD, 1 << 63 | 1 << 61, 1 << 61),
        ("context, no granularity", false, 0, CCMD, 1 << 63, 0),
        ("iotlb global", false, 0, IOTLB, 1 << 63 | 1 << 60, 1 << 60 | 1 << 57),
        ("iotlb domain", false, 0, IOTLB, 1 << 63 | 2 << 60 | 7 << 32, 2 << 60 | 2 << 57 | 7 << 32),
        ("iotlb pages", false, 18, IOTLB, 1 << 63 | 3 << 60, 3 << 60 | 3 << 57),
        ("iotlb, AM above MAMV", false, 19, IOTLB, 1 << 63 | 3 << 60, 3 << 60),
        ("iotlb domain, whatever AM", false, 19, IOTLB, 1 << 63 | 2 << 60, 2 << 60 | 2 << 57),
        ("iotlb, queue on", true, 0, IOTLB, 1 << 63 | 2 << 60, 2 << 60),
        ("iotlb, no granularity", false, 0, IOTLB, 1 << 63, 0),
    ];
    for (name, queue, pages, offset, value, expected) in rows {
        let machine = Machine::new();
        if queue {
            Driver::new(&machine).enable_queue();
        }
        machine.write64(0xf0, pages);
        machine.write32(offset, u32::try_from(value & 0xffff_ffff).unwrap());
        machine.write32(offset + 4, u32::try_from(value >> 32).unwrap());
        assert_eq!(machine.read64(offset), expected, "{name}");
    }
}

#[test]
fn reset_is_as_power_on() {
    let machine = Machine::new();
    let (driver, tables) = Driver::booted(&machine);
    tables.context(ENDPOINT).without_pasid().pass_through(1);
    driver.submit(&[desc::IOTLB_GLOBAL]);
    assert!(machine.dma().port().session(None).translate(Iova(0), Access::Read).is_ok());
    let fault = machine.unit.translate(&Request::untranslated(
        iommu_core::SourceId(0x99),
        None,
        Iova(0),
        Access::Read,
    ));
    machine.unit.report(&fault.unwrap_err());
    machine.unit.reset();
    let fresh = Machine::new();
    for offset in (0..4096).step_by(8) {
        assert_eq!(machine.read64(offset), fresh.read64(offset), "{offset:#x}");
    }
    assert_eq!(machine.unit.ports().cached(), 0);
    machine.write64(IQA, RING | 1 << 11);
    machine.interrupts();
    let (driver, _tables) = Driver::booted(&machine);
    driver.submit(&[desc::IOTLB_GLOBAL]);
    assert_eq!(machine.interrupts(), []);
}
