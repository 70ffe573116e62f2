//! The kernel that hosts and guests of the lab run: one source, one fragment, one build.

pub mod build;
pub mod cloud_host;
pub mod fragment;
pub mod selftests;
pub mod source;
pub mod stock;

use std::path::PathBuf;

use anyhow::Result;

use crate::cache::Cache;

/// The files of a built kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Folder that holds the others.
    pub folder: PathBuf,
}

impl Kernel {
    /// The compressed image that boot loaders take.
    #[must_use]
    pub fn bz_image(&self) -> PathBuf {
        self.folder.join("bzImage")
    }

    /// The ELF file with symbols; also bootable through its PVH entry.
    #[must_use]
    pub fn vmlinux(&self) -> PathBuf {
        self.folder.join("vmlinux")
    }

    /// The ELF file that hosts svmm in the cloud world; see [`cloud_host`].
    #[must_use]
    pub fn cloud_host(&self) -> PathBuf {
        self.folder.join(cloud_host::FILE)
    }

    /// The full configuration.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.folder.join("config")
    }
}

/// The cached kernel for the present fragment and compiler, if there is one.
///
/// # Errors
/// The fragment cannot be read or the compiler cannot be asked.
pub fn cached(cache: &Cache) -> Result<Option<Kernel>> {
    let Some(version) = source::recorded(cache)? else {
        return Ok(None);
    };
    let key = build::key(&fragment::Fragment::load()?, &version)?;
    Ok(cache.find(build::KIND, &key).map(|folder| Kernel { folder }))
}

/// The kernel, built when it is not cached.
///
/// # Errors
/// The source cannot be fetched, or the build fails.
pub fn ensure(cache: &Cache) -> Result<Kernel> {
    if let Some(kernel) = cached(cache)? {
        return Ok(kernel);
    }
    build::build(cache)
}
