//! A program for a user who may open neither devices nor lock memory as he likes: what he needs is opened before.

use std::fs::{self, File, Permissions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Resource, Rlimit, setrlimit};

/// Somebody whom nothing here belongs to.
const USER: u32 = 1000;
/// Begins the name of a file that is passed.
const PASSED: &str = "fd=/";

/// Makes `command` that user's, with a limit of `kib` KiB of locked memory, and adds `arguments`, in which files to be
/// passed become numbers. The files stay open in this process until the answer is dropped.
pub(crate) fn prepare(command: &mut Command, arguments: Vec<String>, kib: u64) -> Result<Vec<OwnedFd>> {
    let mut passed = Vec::new();
    for argument in arguments {
        let argument = with_numbers(&argument, |path| {
            let opened = File::options().read(true).write(true).open(path);
            let file = OwnedFd::from(opened.with_context(|| format!("cannot open {path}"))?);
            fcntl_setfd(&file, FdFlags::empty()).context("cannot pass a file")?;
            let number = file.as_raw_fd();
            passed.push(file);
            Ok(number)
        })?;
        command.arg(argument);
    }
    // Everybody may run guests where this is a desktop's or a cloud's.
    fs::set_permissions("/dev/kvm", Permissions::from_mode(0o666)).context("no KVM")?;
    // This process may lock what it likes, whatever its limit.
    let limit = Some(kib << 10);
    setrlimit(Resource::Memlock, Rlimit { current: limit, maximum: limit }).context("cannot set a limit")?;
    command.uid(USER).gid(USER);
    Ok(passed)
}

/// Replaces the path behind `fd=` by what `open` says. Pure but for `open`.
fn with_numbers(argument: &str, mut open: impl FnMut(&str) -> Result<i32>) -> Result<String> {
    let Some((before, rest)) = argument.split_once(PASSED) else { return Ok(argument.to_owned()) };
    let (path, after) = rest.split_at(rest.find(',').unwrap_or(rest.len()));
    let number = open(&format!("/{path}"))?;
    Ok(format!("{before}fd={number}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_numbers() {
        let rows = [
            ("--memory-mib=256", "--memory-mib=256", None),
            ("--iommufd=fd=/dev/iommu", "--iommufd=fd=9", Some("/dev/iommu")),
            ("--vfio=fd=/dev/vfio/x,id=a", "--vfio=fd=9,id=a", Some("/dev/vfio/x")),
            ("--vfio=fd=3", "--vfio=fd=3", None),
        ];
        for (argument, expected, path) in rows {
            let mut opened = None;
            let made = with_numbers(argument, |path| {
                opened = Some(path.to_owned());
                Ok(9)
            });
            assert_eq!((made.unwrap().as_str(), opened.as_deref()), (expected, path));
        }
    }
}
