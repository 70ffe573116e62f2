//! The QEMU that plays the cloud machine: the host's own when new enough, else Debian's backport
//! unpacked into the cache. Nothing is installed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache::Cache;
use crate::debian::PrivateApt;
use crate::process::{find_program, output};

/// Names a QEMU to use instead.
pub const VARIABLE: &str = "SVMM_LAB_QEMU";
/// Older ones crash guests that are a hypervisor's guests (7.2 does).
const OLDEST_MAJOR: u32 = 10;
const PROGRAM: &str = "qemu-system-x86_64";
const KIND: &str = "qemu";
const KEY: &str = "backport";

/// A usable QEMU and what it needs to run.
#[derive(Clone, Debug)]
pub struct Qemu {
    program: PathBuf,
    version: String,
    /// Root of an unpacked QEMU; `None` for one that is installed.
    unpacked: Option<PathBuf>,
}

impl Qemu {
    /// The version as QEMU prints it, for example `10.0.2`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The program's path.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// A command that starts it, without machine options.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(root) = &self.unpacked {
            command.env("LD_LIBRARY_PATH", libraries(root));
            for folder in ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"] {
                command.arg("-L").arg(root.join(folder));
            }
        }
        command
    }

    fn probe(program: PathBuf, unpacked: Option<PathBuf>) -> Result<Self> {
        let mut qemu = Self { program, version: String::new(), unpacked };
        let printed = output(qemu.command().arg("--version"))?;
        let version = parse_version(&printed);
        qemu.version =
            version.with_context(|| format!("{} printed no version: {printed}", qemu.program.display()))?;
        Ok(qemu)
    }

    fn new_enough(&self) -> bool {
        let major = self.version.split('.').next();
        major.and_then(|major| major.parse().ok()) >= Some(OLDEST_MAJOR)
    }
}

/// A QEMU that is already there, installed or in the cache.
///
/// # Errors
/// The QEMU that the user names does not run or is too old.
pub fn find(cache: &Cache) -> Result<Option<Qemu>> {
    if let Some(program) = std::env::var_os(VARIABLE) {
        let qemu = Qemu::probe(PathBuf::from(program), None).context(VARIABLE)?;
        if !qemu.new_enough() {
            bail!("{VARIABLE} is QEMU {}, too old: {OLDEST_MAJOR} or newer", qemu.version);
        }
        return Ok(Some(qemu));
    }
    let installed = find_program(PROGRAM).and_then(|path| Qemu::probe(path, None).ok());
    if let Some(qemu) = installed.filter(Qemu::new_enough) {
        return Ok(Some(qemu));
    }
    let unpacked = cache.find(KIND, KEY).and_then(|root| {
        let program = root.join("usr/bin").join(PROGRAM);
        Qemu::probe(program, Some(root)).ok()
    });
    Ok(unpacked.filter(Qemu::new_enough))
}

/// A usable QEMU; fetches Debian's backport when there is none.
///
/// # Errors
/// It cannot be fetched, or does not run here.
pub fn ensure(cache: &Cache) -> Result<Qemu> {
    if let Some(qemu) = find(cache)? {
        return Ok(qemu);
    }
    let _held = cache.lock("qemu")?;
    let apt = PrivateApt::open(cache)?;
    let root = cache
        .publish(KIND, KEY, |part| apt.unpack_with_needs("qemu-system-x86", &apt.host_backports(), part))?;
    let qemu = Qemu::probe(root.join("usr/bin").join(PROGRAM), Some(root))?;
    if !qemu.new_enough() {
        bail!(
            "Debian's QEMU is {}, too old: install QEMU {OLDEST_MAJOR} or newer, \
             or name one by {VARIABLE}",
            qemu.version
        );
    }
    Ok(qemu)
}

/// Folders with shared libraries below `root`, for the dynamic linker.
fn libraries(root: &Path) -> OsString {
    let folders = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib"];
    std::env::join_paths(folders.iter().map(|folder| root.join(folder))).unwrap_or_default()
}

/// `QEMU emulator version 10.0.2 (Debian ...)` as `10.0.2`.
fn parse_version(printed: &str) -> Option<String> {
    let rest = printed.split_once("version ")?.1;
    rest.split([' ', '\n']).next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_qemu_prints() {
        let printed = "QEMU emulator version 10.0.2 (Debian 1:10.0.2)\nCopyright";
        assert_eq!(parse_version(printed).as_deref(), Some("10.0.2"));
        assert_eq!(parse_version("usage"), None);
    }
}
