//! The initial file system of a test guest.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::Archive;
use crate::cache::Cache;
use crate::debian::PrivateApt;
use crate::process::output;
use crate::programs;

const BUSYBOX: &str = "busybox-static";

/// Builds the guest's programs and packs them; returns the archive's path.
///
/// # Errors
/// A program does not build, or the cache cannot be written.
pub fn build(cache: &Cache) -> Result<PathBuf> {
    let target = cache.of_tree(&programs::workspace())?.join("guest.cpio");
    programs_of_guest()?.write(&target)?;
    Ok(target)
}

/// As [`build`], with a shell and its usual tools.
///
/// # Errors
/// As [`build`]; or Debian's busybox cannot be fetched.
pub fn build_with_shell(cache: &Cache) -> Result<PathBuf> {
    let busybox = busybox(cache)?;
    let mut archive = programs_of_guest()?;
    archive.host_file("/bin/busybox", &busybox)?;
    for tool in output(Command::new(&busybox).arg("--list"))?.lines() {
        if tool != "busybox" {
            archive.link(&format!("/bin/{tool}"), "busybox");
        }
    }
    let target = cache.of_tree(&programs::workspace())?.join("shell.cpio");
    archive.write(&target)?;
    Ok(target)
}

/// An initial file system made of `base` and the modules of a stock kernel; returns its path.
///
/// # Errors
/// A file cannot be read or written.
pub fn with_modules(cache: &Cache, base: &Path, kernel: &str, modules: &Path) -> Result<PathBuf> {
    let target = cache.of_tree(&programs::workspace())?.join(format!("{kernel}.cpio"));
    join(&[base, modules], &target)?;
    Ok(target)
}

/// An initial file system made of `base`, and in it the kernel `image` with `base` for what follows the kernel that
/// runs; returns its path.
///
/// # Errors
/// A file cannot be read or written.
pub fn with_next_kernel(cache: &Cache, base: &Path, image: &Path) -> Result<PathBuf> {
    let folder = cache.of_tree(&programs::workspace())?;
    let (boot, target) = (folder.join("next.boot.cpio"), folder.join("next.cpio"));
    let mut archive = Archive::new();
    archive.host_file("/boot/bzImage", image)?;
    archive.host_file("/boot/initrd", base)?;
    archive.write(&boot)?;
    join(&[base, &boot], &target)?;
    Ok(target)
}

/// An initial file system made of `base` and svmm, for a guest that runs guests; returns its path.
///
/// # Errors
/// A file cannot be read or written.
pub fn with_svmm(cache: &Cache, base: &Path, svmm: &Path) -> Result<PathBuf> {
    let folder = cache.of_tree(&programs::workspace())?;
    let (program, target) = (folder.join("host.svmm.cpio"), folder.join("host.cpio"));
    let mut archive = Archive::new();
    archive.host_file("/bin/svmm", svmm)?;
    archive.write(&program)?;
    join(&[base, &program], &target)?;
    Ok(target)
}

/// An initial file system made of `base` and the programs `names` of `folder`; returns its path.
///
/// # Errors
/// A file cannot be read or written.
pub fn with_programs(cache: &Cache, base: &Path, folder: &Path, names: &[&str]) -> Result<PathBuf> {
    let of_tree = cache.of_tree(&programs::workspace())?;
    let (added, target) = (of_tree.join("vfio.programs.cpio"), of_tree.join("vfio.cpio"));
    let mut archive = Archive::new();
    for name in names {
        archive.host_file(&format!("/bin/{name}"), &folder.join(name))?;
    }
    archive.write(&added)?;
    join(&[base, &added], &target)?;
    Ok(target)
}

/// Puts archives one after the other. Linux unpacks them in turn, each at a multiple of four bytes.
fn join(parts: &[&Path], target: &Path) -> Result<()> {
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend(std::fs::read(part).with_context(|| format!("cannot read {}", part.display()))?);
    }
    std::fs::write(target, bytes).with_context(|| format!("cannot write {}", target.display()))
}

fn programs_of_guest() -> Result<Archive> {
    let mut archive = Archive::new();
    for folder in ["proc", "sys", "tmp", "run"] {
        archive.folder(folder);
    }
    archive.host_file("/init", &programs::binary("guest", "guest-init")?)?;
    for name in [
        "svm-selftest",
        "iommufd-test",
        "bridge-test",
        "svm-misbehaviour",
        "disk-check",
        "dma-engine",
        "dma-test",
    ] {
        archive.host_file(&format!("/bin/{name}"), &programs::binary("guest", name)?)?;
    }
    Ok(archive)
}

/// A statically linked busybox, unpacked into the cache.
fn busybox(cache: &Cache) -> Result<PathBuf> {
    let program = |folder: &Path| {
        let candidates = ["usr/bin/busybox", "bin/busybox"].map(|name| folder.join(name));
        candidates.into_iter().find(|path| path.is_file())
    };
    let cached = cache.find("busybox", BUSYBOX);
    if let Some(program) = cached.as_deref().and_then(program) {
        return Ok(program);
    }
    let _held = cache.lock("busybox")?;
    let apt = PrivateApt::open(cache)?;
    let version = apt.versions(BUSYBOX)?.into_iter().next();
    let version = version.with_context(|| format!("the archive has no {BUSYBOX}"))?;
    let folder = cache.publish("busybox", BUSYBOX, |part| apt.unpack(BUSYBOX, &version, part))?;
    program(&folder).with_context(|| format!("{BUSYBOX} {version} holds no busybox"))
}
