//! Packages the host itself must have: installed when the lab may, else named.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::cache::Cache;
use crate::process::{find_program, run_logged};
use crate::ui::Progress;

/// A package and a file that shows it is there.
#[derive(Clone, Copy, Debug)]
pub struct Need {
    /// Debian's package.
    pub package: &'static str,
    /// What the lab wants of it.
    pub provides: Provides,
}

/// What a package is wanted for.
#[derive(Clone, Copy, Debug)]
pub enum Provides {
    /// A program in PATH.
    Program(&'static str),
    /// A file, one of these paths.
    File(&'static [&'static str]),
}

/// What building a kernel takes.
pub const KERNEL_BUILD: &[Need] = &[
    program("make", "make"),
    program("gcc", "gcc"),
    program("flex", "flex"),
    program("bison", "bison"),
    program("bc", "bc"),
    program("xz-utils", "xz"),
    Need {
        package: "libc6-dev",
        provides: Provides::File(&[
            "/usr/include/x86_64-linux-gnu/bits/libc-header-start.h",
            "/usr/include/bits/libc-header-start.h",
        ]),
    },
    Need { package: "libelf-dev", provides: Provides::File(&["/usr/include/gelf.h"]) },
];

/// What the kernel's VFIO selftests take beyond that.
pub const VFIO_SELFTESTS_BUILD: &[Need] = &[Need {
    package: "uuid-dev",
    provides: Provides::File(&["/usr/lib/x86_64-linux-gnu/libuuid.a", "/usr/lib64/libuuid.a"]),
}];

const fn program(package: &'static str, name: &'static str) -> Need {
    Need { package, provides: Provides::Program(name) }
}

impl Need {
    /// Whether the host has it.
    #[must_use]
    pub fn met(&self) -> bool {
        match self.provides {
            Provides::Program(name) => find_program(name).is_some(),
            Provides::File(paths) => paths.iter().any(|path| Path::new(path).exists()),
        }
    }
}

/// The packages of `needs` that the host lacks.
#[must_use]
pub fn missing(needs: &[Need]) -> Vec<&'static str> {
    let unmet = needs.iter().filter(|need| !need.met());
    unmet.map(|need| need.package).collect()
}

/// The command that installs `packages`.
#[must_use]
pub fn install_command(packages: &[&str]) -> String {
    format!("apt-get install --no-install-recommends {}", packages.join(" "))
}

/// Installs what is missing of `needs` when run as root.
///
/// # Errors
/// Not root: the error holds the one command to run. Or the installation fails.
pub fn ensure(needs: &[Need], cache: &Cache) -> Result<()> {
    let packages = missing(needs);
    if packages.is_empty() {
        return Ok(());
    }
    let command = install_command(&packages);
    if !rustix::process::geteuid().is_root() {
        bail!("this host lacks Debian packages; run: sudo {command}");
    }
    let mut progress = Progress::start(format!("installing {}", packages.join(" ")));
    let log = cache.root().join("install.log");
    run_logged(&mut apt(&["update"]), &log, &mut progress, String::new)?;
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(&packages);
    run_logged(&mut apt(&arguments), &log, &mut progress, String::new)?;
    progress.done("");
    Ok(())
}

fn apt(arguments: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command
        .args(["-q", "-o", "DPkg::Lock::Timeout=300"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive");
    command
}
