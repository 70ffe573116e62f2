//! The register pages.

use super::rig::{Rig, control_page, copy, portal_page};
use crate::pci::PciFunction;
use crate::svm::SvmConfig;
use crate::svm::spec::Descriptor;
use zerocopy::IntoBytes;

fn read(rig: &Rig, offset: u64, length: usize) -> Vec<u8> {
    let mut data = vec![0xee; length];
    rig.function.bar_read(0, offset, &mut data);
    data
}

#[test]
fn identity_and_capabilities_table() {
    let config = SvmConfig { queues: 3, depth_log2: 4, engines: 5, ..SvmConfig::default() };
    let rows = [
        ("all", config, 0x3_0403),
        ("no pri", SvmConfig { pri: false, ..config }, 0x2_0403),
        ("no ats, hence no pri", SvmConfig { ats: false, ..config }, 0x0403),
    ];
    for (name, config, caps) in rows {
        let rig = Rig::cold(config);
        assert_eq!(read(&rig, 0, 4), b"SVM1", "{name}");
        assert_eq!(rig.read32(4), 2, "{name}");
        assert_eq!(rig.read32(8), caps, "{name}");
        assert_eq!(rig.read32(0x14), 1024, "{name}");
        assert_eq!(rig.extended(0xf).is_some(), config.ats, "{name}");
        assert_eq!(rig.extended(0x13).is_some(), config.ats && config.pri, "{name}");
        assert!(rig.extended(0x1b).is_some(), "{name}");
        assert_eq!([rig.config_read16(0), rig.config_read16(2)], [0x1af4, 0x10f0], "{name}");
        assert_eq!([rig.config_read16(8), rig.config_read16(10)], [0x0001, 0x1200], "{name}");
    }
}

#[test]
fn configurations_out_of_limits_are_refused() {
    let build = |config: SvmConfig| {
        let memory = super::rig::Memory::from_ranges(&[(vm_memory::GuestAddress(0), 0x1000)]).unwrap();
        let iommu = iommu_core::testkit::ListTranslator::new();
        let dma = iommu_core::Dma::new(super::rig::SOURCE, memory, iommu, std::sync::Arc::default());
        let msi = std::sync::Arc::new(iommu_core::testkit::RecordingMsi::default());
        crate::svm::SvmFunction::new(config, &dma, msi).map(|_| ()).map_err(|error| error.to_string())
    };
    let config = SvmConfig::default();
    assert_eq!(build(config), Ok(()));
    assert_eq!(build(SvmConfig { queues: 16, depth_log2: 10, ..config }), Ok(()));
    for (queues, depth_log2, said) in
        [(0, 6, "0 queues"), (17, 6, "17 queues"), (8, 0, "2^0"), (8, 11, "2^11")]
    {
        let error = build(SvmConfig { queues, depth_log2, ..config }).unwrap_err();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn any_width_reads_the_same_bytes() {
    let rig = Rig::new();
    let whole: Vec<u8> = (0..0x28).step_by(8).flat_map(|at| read(&rig, at, 8)).collect();
    for at in 0..0x20_usize {
        for length in 1..=8 {
            assert_eq!(read(&rig, at as u64, length), whole[at..at + length], "{length} bytes at {at:#x}");
        }
    }
}

#[test]
fn pages_that_do_not_exist_are_empty() {
    let rig = Rig::new();
    for at in [
        0x1000,
        0xf000,
        control_page(2),
        control_page(15),
        portal_page(2),
        portal_page(15),
        0x3_0000,
        0x3_fff8,
    ] {
        rig.function.bar_write(0, at, &[0xff; 8]);
        assert_eq!(read(&rig, at, 8), [0; 8], "{at:#x}");
    }
}

#[test]
fn pasid_is_writable_only_while_disabled_and_narrow_writes_merge() {
    let rig = Rig::cold(SvmConfig { queues: 1, ..SvmConfig::default() });
    let at = control_page(0);
    rig.write32(at + 8, u32::MAX);
    assert_eq!(rig.read32(at + 8), 0x800f_ffff);
    rig.function.bar_write(0, at + 9, &[0]);
    assert_eq!(rig.read32(at + 8), 0x800f_00ff);
    rig.write32(at + 0xc, u32::MAX);
    assert_eq!(rig.read32(at + 0xc), 0x8000_07ff);
    rig.function.bar_write(0, at + 8, &[1, 0, 0, 0, 2, 0, 0, 0]);
    assert_eq!([rig.read32(at + 8), rig.read32(at + 0xc)], [1, 2], "64 bits are two registers");
    rig.write32(at, 1);
    assert_eq!([rig.read32(at), rig.read32(at + 4)], [1, 1]);
    rig.write32(at + 8, 7);
    assert_eq!(rig.read32(at + 8), 1);
    rig.write32(at, 0);
    rig.write32(at + 8, 7);
    assert_eq!(rig.read32(at + 8), 7);
}

#[test]
fn status_follows_configuration_space() {
    let rig = Rig::cold(SvmConfig::default());
    assert_eq!(rig.read32(0x10), 0);
    rig.bring_up();
    assert_eq!(rig.read32(0x10), 0xf);
    rig.set_extended(0x13, 4, 0);
    rig.set_extended(0xf, 6, 0);
    rig.set_extended(0x1b, 6, 0);
    assert_eq!(rig.read32(0x10), 1);
    rig.config16(4, 0);
    assert_eq!(rig.read32(0x10), 0);
}

#[test]
fn the_store_that_touches_the_last_byte_submits() {
    let rig = Rig::new();
    let record = rig.record();
    let descriptor =
        Descriptor { flags: 1, record: record.into(), tag: 0x1234_5678.into(), ..Default::default() };
    let bytes = descriptor.as_bytes();
    for width in [1, 2, 4, 8] {
        rig.memory_clear(record);
        for (index, part) in bytes.chunks(width).enumerate() {
            assert_eq!(rig.read_record(record).status, 0, "nothing yet");
            rig.function.bar_write(0, portal_page(0) + (index * width) as u64, part);
        }
        assert_eq!(rig.wait(record).tag.get(), 0x1234_5678, "width {width}");
    }
    // The staging is clear now: a lone last byte submits a NO-OP without a record.
    rig.until_idle(0);
    let before = rig.read64(0x40);
    rig.function.bar_write(0, portal_page(0) + 0x3f, &[0]);
    super::rig::until("no-op", || rig.read64(0x40) == before + 1);
    // Descending order: the last byte comes first, and submits without the rest.
    rig.function.bar_write(0, portal_page(0) + 0x3c, &[0; 8]);
    super::rig::until("straddling store", || rig.read64(0x40) == before + 2);
    assert_eq!(read(&rig, portal_page(0), 8), [0; 8], "staging reads 0");
}

#[test]
fn a_full_or_disabled_queue_drops_and_counts() {
    let rig = Rig::new();
    rig.hold_page_requests();
    assert_eq!(rig.free(0), 8);
    let first = rig.start(0, copy(0x5000, 0x6000, 8));
    rig.until_page_requests(1);
    assert_eq!(rig.free(0), 7, "the one at work holds its place");
    for _ in 0..9 {
        rig.submit(0, &Descriptor::default());
    }
    assert_eq!(
        [rig.free(0), rig.read32(portal_page(0) + 0x44), rig.read32(control_page(0) + 0x10)],
        [0, 2, 8]
    );
    assert_eq!(rig.read64(0x80), 2);
    rig.respond(iommu_core::ResponseCode::Invalid);
    assert_eq!(rig.wait(first).status, 2);
    rig.until_idle(0);
    assert_eq!(rig.free(0), 8);
    rig.write32(control_page(0), 0);
    rig.submit(0, &Descriptor::default());
    assert_eq!([rig.free(0), rig.read32(portal_page(0) + 0x44)], [0, 3]);
}
