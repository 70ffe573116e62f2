//! Debian's own kernels, unmodified: the image, and an archive of the modules a guest needs to reach its disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache::{self, Cache};
use crate::debian::PrivateApt;
use crate::image::Archive;

/// What a guest needs; what these need is found in the package.
const MODULES: [&str; 2] = ["virtio_pci", "virtio_blk"];
/// Where guest-init finds the modules' names, one per line in the order of loading.
const ORDER: &str = "/lib/modules/order";
const KIND: &str = "stock-kernel";
const IMAGE: &str = "vmlinuz";
const ARCHIVE: &str = "modules.cpio";

/// A series of kernels of which the newest is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Series {
    /// Releases that start with these two numbers.
    Release(u64, u64),
    /// Whatever is newest.
    Newest,
}

/// A stock kernel to be had.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    /// The name it goes under.
    pub name: &'static str,
    series: Series,
    /// Environment variable that tells tests where its image is.
    pub image_variable: &'static str,
    /// ... and the initial file system with its modules.
    pub initrd_variable: &'static str,
}

/// The kernels that are tried.
pub const ALL: [Choice; 3] = [
    Choice {
        name: "debian-6.1",
        series: Series::Release(6, 1),
        image_variable: "SVMM_DEBIAN_6_1",
        initrd_variable: "SVMM_DEBIAN_6_1_INITRD",
    },
    Choice {
        name: "debian-6.12",
        series: Series::Release(6, 12),
        image_variable: "SVMM_DEBIAN_6_12",
        initrd_variable: "SVMM_DEBIAN_6_12_INITRD",
    },
    Choice {
        name: "debian-newest",
        series: Series::Newest,
        image_variable: "SVMM_DEBIAN_NEWEST",
        initrd_variable: "SVMM_DEBIAN_NEWEST_INITRD",
    },
];

/// A kernel as Debian ships it.
#[derive(Clone, Debug)]
pub struct Stock {
    /// Name of its package.
    pub package: String,
    folder: PathBuf,
}

impl Stock {
    /// The boot image.
    #[must_use]
    pub fn image(&self) -> PathBuf {
        self.folder.join(IMAGE)
    }

    /// A `newc` archive to append to an initial file system.
    #[must_use]
    pub fn modules(&self) -> PathBuf {
        self.folder.join(ARCHIVE)
    }
}

/// A stock kernel, fetched when it is not cached.
///
/// # Errors
/// The archive has no such kernel, or cannot be reached.
pub fn ensure(cache: &Cache, choice: &Choice) -> Result<Stock> {
    let _held = cache.lock(KIND)?;
    match recorded(cache, choice.name) {
        Some(kernel) => Ok(kernel),
        None => fetch(cache, &PrivateApt::open(cache)?, choice),
    }
}

fn recorded(cache: &Cache, name: &str) -> Option<Stock> {
    let folder = cache.find(KIND, name)?;
    let package = fs::read_to_string(folder.join("package")).ok()?;
    Some(Stock { package, folder })
}

fn fetch(cache: &Cache, apt: &PrivateApt, choice: &Choice) -> Result<Stock> {
    let Choice { name, series, .. } = *choice;
    let known = apt.names("^linux-image-[0-9.]+(-[0-9]+)?([+]deb[0-9.]+)?-amd64$")?;
    let package = newest(&known, series).with_context(|| {
        format!(
            "the Debian archive that this host uses has no kernel for {name}; another release may have it"
        )
    })?;
    let work = cache.folder("stock-work")?;
    let folder = cache.publish(KIND, name, |part| {
        for package in parts(package) {
            if let Some(version) = apt.versions(&package)?.first() {
                apt.unpack(&package, version, &work)?;
            }
        }
        keep(&work, part)?;
        fs::write(part.join("package"), package).context("cannot write the cache folder")
    });
    cache::remove(&work)?;
    Ok(Stock { package: package.to_owned(), folder: folder? })
}

/// The packages in which a kernel may be: where image and modules have their own, its package only needs them.
fn parts(package: &str) -> impl Iterator<Item = String> {
    ["linux-image-", "linux-binary-", "linux-modules-"]
        .into_iter()
        .map(move |start| package.replacen("linux-image-", start, 1))
}

/// The package with the highest version of a series.
fn newest(packages: &[String], series: Series) -> Option<&str> {
    let fits = |numbers: &[u64]| match series {
        Series::Release(major, minor) => numbers.starts_with(&[major, minor]),
        Series::Newest => true,
    };
    let versions = packages.iter().map(|name| (numbers(name), name));
    // A package that only depends on the newest has no third number.
    let real = versions.filter(|(numbers, _)| numbers.len() > 2 && fits(numbers));
    real.max().map(|(_, name)| name.as_str())
}

/// The numbers of `linux-image-6.1.0-50-amd64`, up to Debian's revision.
fn numbers(package: &str) -> Vec<u64> {
    let version = package.trim_start_matches("linux-image-").trim_end_matches("-amd64");
    let version = version.split('+').next().unwrap_or_default();
    version.split(['.', '-']).filter_map(|digits| digits.parse().ok()).collect()
}

/// Takes what is needed out of an unpacked package.
fn keep(package: &Path, target: &Path) -> Result<()> {
    let modules = ["usr/lib/modules", "lib/modules"].map(|name| package.join(name));
    let modules = modules.iter().find(|folder| folder.is_dir()).context("the package holds no modules")?;
    let tree = entry(modules, "")?;
    let beside = tree.join(IMAGE);
    let boot = if beside.is_file() { beside } else { entry(&package.join("boot"), "vmlinuz-")? };
    fs::copy(&boot, target.join(IMAGE)).with_context(|| format!("cannot copy {}", boot.display()))?;
    let mut archive = Archive::new();
    let mut order = String::new();
    for path in with_dependencies(&tree)? {
        let name = path.file_name().and_then(|name| name.to_str()).context("a module without a name")?;
        let name = name.trim_end_matches(".xz");
        archive.file(&format!("/lib/modules/{name}"), &content(&path)?);
        order.push_str(&format!("{name}\n"));
    }
    archive.file(ORDER, order.as_bytes());
    archive.write(&target.join(ARCHIVE))
}

/// The first entry of a folder whose name starts so.
fn entry(folder: &Path, start: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut names = entries.flatten().map(|entry| entry.path());
    let found = names.find(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(start)));
    found.with_context(|| format!("no {start}* in {}", folder.display()))
}

/// The modules of [`MODULES`] and what they need, in the order of loading. Packages carry no `modules.dep`, so the
/// modules' own `depends=` is read.
fn with_dependencies(tree: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    collect(&tree.join("kernel"), &mut files)?;
    let mut order = Vec::new();
    for name in MODULES {
        add(name, &files, &mut order)?;
    }
    Ok(order)
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?.flatten()
    {
        let path = entry.path();
        if path.is_dir() { collect(&path, files)? } else { files.push(path) }
    }
    Ok(())
}

fn add(name: &str, files: &[PathBuf], order: &mut Vec<PathBuf>) -> Result<()> {
    // A name may stand with hyphens in the file's name. One that is in no file is built in.
    let is_it = |path: &&PathBuf| {
        let file = path.file_name().map(|file| file.to_string_lossy().replace('-', "_")).unwrap_or_default();
        file.split('.').next() == Some(name)
    };
    let Some(path) = files.iter().find(is_it) else { return Ok(()) };
    if order.contains(path) {
        return Ok(());
    }
    for needed in depends(&content(path)?) {
        add(&needed.replace('-', "_"), files, order)?;
    }
    order.push(path.clone());
    Ok(())
}

/// The names in a module's `depends=` of its section `.modinfo`.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let at = module.windows(KEY.len()).position(|window| window == KEY);
    let Some(rest) = at.map(|at| &module[at + KEY.len()..]) else { return Vec::new() };
    let end = rest.iter().position(|byte| *byte == 0).unwrap_or(0);
    let names = String::from_utf8_lossy(&rest[..end]).into_owned();
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// The module itself, also of a compressed file.
fn content(path: &Path) -> Result<Vec<u8>> {
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("ko") => fs::read(path).with_context(|| format!("cannot read {}", path.display())),
        Some("xz") => {
            let run = Command::new("xz").args(["--decompress", "--stdout"]).arg(path).output();
            let run = run.context("cannot run xz (package xz-utils)")?;
            if !run.status.success() {
                bail!("xz cannot unpack {}: {}", path.display(), String::from_utf8_lossy(&run.stderr));
            }
            Ok(run.stdout)
        }
        _ => bail!("{} is of no kind of module that is known", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_a_series() {
        let names = [
            "linux-image-6.1.0-9-amd64",
            "linux-image-6.1.0-47-amd64",
            "linux-image-6.12-amd64",
            "linux-image-6.12.9+deb12-amd64",
            "linux-image-6.12.43+deb12-amd64",
            "linux-image-7.3.4+deb13-amd64",
        ]
        .map(str::to_owned);
        let rows = [
            (Series::Release(6, 1), Some("linux-image-6.1.0-47-amd64")),
            (Series::Release(6, 12), Some("linux-image-6.12.43+deb12-amd64")),
            (Series::Newest, Some("linux-image-7.3.4+deb13-amd64")),
            (Series::Release(5, 10), None),
        ];
        for (series, expected) in rows {
            assert_eq!(newest(&names, series), expected, "{series:?}");
        }
    }

    #[test]
    fn what_a_module_needs() {
        assert_eq!(depends(b"x\0depends=virtio,virtio-ring\0y=\0"), ["virtio", "virtio-ring"]);
        assert!(depends(b"x\0depends=\0y").is_empty() && depends(b"none").is_empty());
    }
}
