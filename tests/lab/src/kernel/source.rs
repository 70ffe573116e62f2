//! Where the kernel's source comes from: Debian's newest `linux-source-*`, or a tree of the user.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache::Cache;
use crate::debian::PrivateApt;
use crate::process::run_logged;
use crate::ui::Progress;

/// Names a source tree to build instead of Debian's package.
pub const TREE_VARIABLE: &str = "SVMM_LAB_LINUX";
/// The first release in which shared virtual memory works without a driver of ours.
const OLDEST: (u32, u32) = (7, 2);
const RECORD: &str = "kernel-source";

/// A package of kernel source, or a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Debian's package in this version.
    Package {
        /// For example `linux-source-7.2`.
        name: String,
        /// Debian's version string.
        version: String,
    },
    /// A source tree of the user.
    Tree(PathBuf),
}

impl Source {
    /// Names the source among all others; a part of the build's key.
    #[must_use]
    pub fn identity(&self) -> String {
        match self {
            Self::Package { name, version } => format!("{name} {version}"),
            Self::Tree(folder) => format!("tree {}", folder.display()),
        }
    }

    /// The source tree, unpacked below `work` when it comes from a package: what matches one of `parts`, all if there
    /// is none.
    ///
    /// # Errors
    /// The package cannot be fetched or unpacked.
    pub fn provide(
        &self,
        apt: Option<&PrivateApt>,
        work: &Path,
        parts: &[&str],
        log: &Path,
    ) -> Result<PathBuf> {
        match (self, apt) {
            (Self::Tree(folder), _) => Ok(folder.clone()),
            (Self::Package { name, version }, Some(apt)) => {
                apt.unpack(name, version, &work.join("package"))?;
                let archive = work.join(format!("package/usr/src/{name}.tar.xz"));
                unpack_archive(&archive, work, parts, log)
            }
            (Self::Package { name, .. }, None) => bail!("no archive to take {name} from"),
        }
    }
}

/// The source that the last build used, so that a second run asks no mirror.
///
/// # Errors
/// The user's tree does not exist.
pub fn recorded(cache: &Cache) -> Result<Option<Source>> {
    if let Some(tree) = user_tree()? {
        return Ok(Some(tree));
    }
    let Ok(text) = fs::read_to_string(cache.root().join(RECORD)) else {
        return Ok(None);
    };
    let pair = text.trim().split_once(' ');
    Ok(pair.map(|(name, version)| Source::Package { name: name.to_owned(), version: version.to_owned() }))
}

/// Remembers `source` for [`recorded`].
///
/// # Errors
/// The cache folder cannot be written.
pub fn record(cache: &Cache, source: &Source) -> Result<()> {
    if let Source::Package { .. } = source {
        fs::write(cache.root().join(RECORD), source.identity()).context("cannot write the cache folder")?;
    }
    Ok(())
}

/// Forgets what [`record`] wrote, so that the next build looks for a newer kernel.
pub fn forget(cache: &Cache) {
    let _ = fs::remove_file(cache.root().join(RECORD));
}

/// The user's tree, when one is named.
///
/// # Errors
/// The folder named holds no kernel source.
pub fn user_tree() -> Result<Option<Source>> {
    let Some(folder) = std::env::var_os(TREE_VARIABLE).map(PathBuf::from) else {
        return Ok(None);
    };
    if !folder.join("Kbuild").is_file() {
        bail!("{TREE_VARIABLE}={} is no Linux source tree", folder.display());
    }
    Ok(Some(Source::Tree(std::path::absolute(folder)?)))
}

/// The newest kernel source package that the archive has.
///
/// # Errors
/// None is new enough.
pub fn newest(apt: &PrivateApt) -> Result<Source> {
    let names = apt.names("^linux-source-[0-9.]+$")?;
    let newest = names
        .iter()
        .filter_map(|name| Some((release(name)?, name)))
        .filter(|(release, _)| *release >= OLDEST)
        .max();
    let Some((_, name)) = newest else {
        bail!(
            "the Debian archive has no linux-source package >= {}.{}; \
             set {TREE_VARIABLE} to a source tree",
            OLDEST.0,
            OLDEST.1
        );
    };
    let version = apt.versions(name)?.into_iter().next();
    Ok(Source::Package {
        name: name.clone(),
        version: version.with_context(|| format!("{name} has no version"))?,
    })
}

/// `linux-source-7.2` as (7, 2).
fn release(name: &str) -> Option<(u32, u32)> {
    let (major, minor) = name.rsplit('-').next()?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn unpack_archive(archive: &Path, work: &Path, parts: &[&str], log: &Path) -> Result<PathBuf> {
    let mut progress = Progress::start("unpacking the kernel's source");
    let tree = work.join("linux");
    fs::create_dir_all(&tree)?;
    let mut tar = Command::new("tar");
    tar.arg("-C")
        .arg(&tree)
        .args(["--strip-components=1"])
        .args(["--wildcards", "--no-wildcards-match-slash", "-xf"])
        .arg(archive)
        .args(parts);
    run_logged(&mut tar, log, &mut progress, String::new)?;
    progress.done("");
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_compare_as_numbers() {
        assert_eq!(release("linux-source-7.10"), Some((7, 10)));
        assert!(release("linux-source-7.10") > release("linux-source-7.9"));
        assert_eq!(release("linux-source"), None);
    }
}
