//! What `svmm` says about devices that it cannot have: one line with thing, reason and remedy, and exit code 2.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::File;
use std::process::{Command, Output};

const SVMM: &str = env!("CARGO_BIN_EXE_svmm");

/// Devices come after KVM.
fn kvm_can_be_opened() -> bool {
    File::options().read(true).write(true).open("/dev/kvm").is_ok()
}

/// Runs svmm with files 5 and 6 open, neither of which is what it is taken for, and without a file 9, whatever is
/// inherited.
fn svmm(arguments: &str) -> Output {
    let script = format!("exec 5<>/dev/null 6<>/dev/null 9>&-; exec {SVMM} {arguments}");
    Command::new("sh").args(["-c", &script]).env_remove("RUST_LOG").output().unwrap()
}

/// The first bytes of a kernel: enough to come to the devices.
fn kernel() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut head = vec![0; 4096];
    head[..5].copy_from_slice(b"\x7fELF\x02");
    head[18] = 62;
    std::fs::write(file.path(), head).unwrap();
    file
}

/// (options, what is said)
#[test]
fn devices_that_cannot_be_had_are_named_with_reason_and_remedy() {
    if !kvm_can_be_opened() {
        return eprintln!("skipped: no usable /dev/kvm");
    }
    let kernel = kernel();
    for (options, expected) in [
        ("--vfio fd=9", "--vfio fd=9: Bad file descriptor (os error 9); start svmm with"),
        ("--iommufd fd=9 --vfio fd=6", "--iommufd fd=9: Bad file descriptor (os error 9); start svmm with"),
        ("--iommufd fd=5 --vfio fd=9", "--vfio fd=9: Bad file descriptor (os error 9); start svmm with"),
        ("--iommufd fd=5 --vfio fd=6", "--iommufd fd=5: make on IOAS failed: Inappropriate ioctl"),
        ("--iommufd fd=5 --vfio 0000:ff:1f.7", "--vfio 0000:ff:1f.7: there is no such PCI device; give"),
        ("--iommufd fd=5 --vfio /dev/vfio/devices/none", "bind the device to vfio-pci"),
        ("--vfio 0000:ff:1f.7,mode=container", "there is no such PCI device"),
        ("--vfio nothing", "--vfio nothing: names no device; give an address such as"),
        ("--vfio fd=6 --iommufd 5", "--iommufd 5: no file; give fd=N"),
    ] {
        let output = svmm(&format!("run --kernel {} {options}", kernel.path().display()));
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{options}: {said}");
        assert!(said.starts_with("svmm: ") && said.lines().count() == 1, "{options}: {said}");
        assert!(said.contains(expected), "{options}: {said}");
    }
}

#[test]
fn a_host_without_iommufd_is_told_what_it_lacks() {
    if std::path::Path::new("/dev/iommu").exists() || !kvm_can_be_opened() {
        return eprintln!("skipped: there is an iommufd, or no usable /dev/kvm");
    }
    let kernel = kernel();
    let output = svmm(&format!("run --kernel {} --vfio /dev/null", kernel.path().display()));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("/dev/iommu") && said.contains("CONFIG_IOMMUFD"), "{said}");
    let output = svmm("doctor --vfio fd=6");
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("vfio     /dev/iommu: ") && said.contains("CONFIG_IOMMUFD"), "{said}");
}

#[test]
fn a_question_about_no_device_is_none() {
    let output = svmm("doctor --vfio nothing");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().starts_with("svmm: --vfio nothing: names no device"));
}
