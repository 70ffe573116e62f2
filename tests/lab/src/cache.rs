//! The folder of build products, keyed by what they were built from.
//!
//! `$SVMM_LAB_CACHE`, else `$XDG_CACHE_HOME/svmm-lab`, else `~/.cache/svmm-lab`. A product is a
//! folder that is filled under a temporary name and renamed when it is whole, so an interrupted
//! build leaves nothing that looks finished.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

/// The cache folder; created on first use.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// Opens the user's cache folder.
    ///
    /// # Errors
    /// No home folder is known, or the folder cannot be made.
    pub fn open() -> Result<Self> {
        let root = Self::location()?;
        fs::create_dir_all(&root).with_context(|| {
            format!(
                "cannot create the cache folder {}; set SVMM_LAB_CACHE to a folder you may write",
                root.display()
            )
        })?;
        Ok(Self { root })
    }

    fn location() -> Result<PathBuf> {
        if let Some(folder) = std::env::var_os("SVMM_LAB_CACHE") {
            return std::path::absolute(folder).context("SVMM_LAB_CACHE is not a usable path");
        }
        let absolute =
            |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        if let Some(folder) = absolute("XDG_CACHE_HOME") {
            return Ok(folder.join("svmm-lab"));
        }
        match absolute("HOME") {
            Some(home) => Ok(home.join(".cache/svmm-lab")),
            None => bail!("no HOME and no XDG_CACHE_HOME; set SVMM_LAB_CACHE to a folder"),
        }
    }

    /// The folder itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A subfolder that exists afterwards.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn folder(&self, name: impl AsRef<Path>) -> Result<PathBuf> {
        let path = self.root.join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(path)
    }

    /// The folder for files that change with the source tree at `workspace`: images and logs.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn of_tree(&self, workspace: &Path) -> Result<PathBuf> {
        self.folder(Path::new("tree").join(key(&[&workspace.to_string_lossy()])))
    }

    /// Waits until no other lab holds `name`, then holds it until the value goes.
    ///
    /// # Errors
    /// The lock file cannot be made.
    pub fn lock(&self, name: &str) -> Result<File> {
        let path = self.root.join(format!("{name}.lock"));
        let attempt = || {
            let file = File::create(&path)?;
            if file.try_lock().is_err() {
                eprintln!("[lab] waiting for another lab that holds {}", path.display());
                file.lock()?;
            }
            Ok::<_, std::io::Error>(file)
        };
        attempt().with_context(|| format!("cannot lock {}", path.display()))
    }

    /// The product `kind/key` when it is whole.
    #[must_use]
    pub fn find(&self, kind: &str, key: &str) -> Option<PathBuf> {
        let path = self.root.join(kind).join(key);
        path.is_dir().then_some(path)
    }

    /// Fills an empty folder by `build` and publishes it as the product `kind/key`. Builders of one
    /// kind hold its [`Cache::lock`].
    ///
    /// # Errors
    /// Those of `build`; or the folder cannot be written.
    pub fn publish(&self, kind: &str, key: &str, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let parent = self.folder(kind)?;
        let part = parent.join(format!(".{key}"));
        remove(&part)?;
        fs::create_dir_all(&part).with_context(|| format!("cannot create {}", part.display()))?;
        let outcome = build(&part);
        if outcome.is_err() {
            let _ = remove(&part);
        }
        outcome?;
        let whole = parent.join(key);
        remove(&whole)?;
        fs::rename(&part, &whole).with_context(|| format!("cannot create {}", whole.display()))?;
        Ok(whole)
    }
}

/// Removes a folder and all in it; one that is absent is fine.
///
/// # Errors
/// Something in it cannot be removed.
pub fn remove(path: &Path) -> Result<()> {
    if path.exists() {
        fs::remove_dir_all(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

/// A short name for what a product is built from; parts are kept apart by their lengths.
#[must_use]
pub fn key(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.len().to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_build_leaves_no_product() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache { root: folder.path().to_path_buf() };
        let failed = cache.publish("kernel", "k", |_| bail!("no"));
        assert!(failed.is_err() && cache.find("kernel", "k").is_none());
        let whole = cache.publish("kernel", "k", |part| Ok(fs::write(part.join("f"), "x")?));
        assert!(whole.unwrap().join("f").exists());
        assert!(cache.find("kernel", "k").is_some());
    }

    #[test]
    fn keys_depend_on_where_parts_end() {
        assert_ne!(key(&["ab", "c"]), key(&["a", "bc"]));
        assert_eq!(key(&["ab"]).len(), 16);
    }
}
