//! What every guest run needs: svmm, the kernel, the guest's first file system.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread::JoinHandle;

use anyhow::{Result, anyhow};

use crate::cache::Cache;
use crate::image;
use crate::kernel::{self, Kernel, selftests};
use crate::programs;
use crate::world::{Word, Workload, World, choice};

/// Names of the files in a workload.
pub const SVMM: &str = "svmm";
/// The guest kernel's compressed image.
pub const KERNEL: &str = "bzImage";
/// The guest kernel's ELF file.
pub const VMLINUX: &str = "vmlinux";
/// The guest's first file system.
pub const INITRD: &str = "guest.cpio";
/// The same, and in it the kernel that a guest goes on with.
pub const NEXT_INITRD: &str = "next.cpio";

/// The kernel of a guest that is a host in turn.
pub const HOST_KERNEL: &str = "vmlinux-host";
/// The first file system of such a guest: the guests', and in it svmm and what the inner guest boots.
pub const HOST_INITRD: &str = "host.cpio";

/// The guest's first file system, and in it the kernel's VFIO selftests.
pub const VFIO_INITRD: &str = "vfio.cpio";

/// A kernel being built while other work goes on.
#[derive(Debug)]
pub struct KernelInBackground(JoinHandle<Result<Kernel>>);

impl KernelInBackground {
    /// Starts the build, or finds the cached kernel.
    #[must_use]
    pub fn start(cache: &Cache) -> Self {
        let cache = cache.clone();
        Self(std::thread::spawn(move || kernel::ensure(&cache)))
    }

    /// Waits for the kernel.
    ///
    /// # Errors
    /// Those of [`kernel::ensure`].
    pub fn finish(self) -> Result<Kernel> {
        let outcome = self.0.join();
        outcome.map_err(|_| anyhow!("the kernel build panicked"))?
    }
}

/// Built and ready to be carried into a world.
#[derive(Debug)]
pub struct Materials {
    /// Where to run.
    pub world: World,
    svmm: PathBuf,
    initrd: PathBuf,
    next_initrd: PathBuf,
    host_initrd: PathBuf,
    /// Made when it is asked for.
    vfio_initrd: OnceLock<PathBuf>,
    kernel: Kernel,
    cache: Cache,
}

/// Which first file system the guest gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initrd {
    /// The test programs.
    Tests,
    /// The test programs and a shell.
    Shell,
}

impl Materials {
    /// Builds all of it; the kernel, when it must be compiled, beside the programs.
    ///
    /// # Errors
    /// A build fails, or no world can be had.
    pub fn prepare(cache: &Cache, initrd: Initrd) -> Result<Self> {
        Self::prepare_with(cache, initrd, KernelInBackground::start(cache))
    }

    /// As [`Materials::prepare`], with a kernel that was started earlier.
    ///
    /// # Errors
    /// A build fails, or no world can be had.
    pub fn prepare_with(cache: &Cache, initrd: Initrd, kernel: KernelInBackground) -> Result<Self> {
        let svmm = programs::binary("vmm", "svmm")?;
        let initrd = match initrd {
            Initrd::Tests => image::guest::build(cache)?,
            Initrd::Shell => image::guest::build_with_shell(cache)?,
        };
        let choice = choice::choose(&svmm)?;
        let kernel = kernel.finish()?;
        let world = World::prepare(choice, &kernel, cache)?;
        let next_initrd = image::guest::with_next_kernel(cache, &initrd, &kernel.bz_image())?;
        let host_initrd = image::guest::with_svmm(cache, &next_initrd, &svmm)?;
        let (vfio_initrd, cache) = (OnceLock::new(), cache.clone());
        Ok(Self { world, svmm, initrd, next_initrd, host_initrd, vfio_initrd, kernel, cache })
    }

    /// The guests' initial file system.
    #[must_use]
    pub fn initrd(&self) -> &Path {
        &self.initrd
    }

    /// A workload with the files and without commands.
    #[must_use]
    pub fn workload(&self) -> Workload {
        Workload {
            files: vec![
                (SVMM.to_owned(), self.svmm.clone()),
                (KERNEL.to_owned(), self.kernel.bz_image()),
                (VMLINUX.to_owned(), self.kernel.vmlinux()),
                (INITRD.to_owned(), self.initrd.clone()),
                (NEXT_INITRD.to_owned(), self.next_initrd.clone()),
            ],
            env: Vec::new(),
            commands: Vec::new(),
        }
    }

    /// What a guest that is a host in turn is made of.
    ///
    /// The kernel is the cloud world's host: what an emulated CPU does that hardware does not, it does to every
    /// hypervisor on it.
    #[must_use]
    pub fn of_host(&self) -> Vec<(String, PathBuf)> {
        vec![
            (HOST_KERNEL.to_owned(), self.kernel.cloud_host()),
            (HOST_INITRD.to_owned(), self.host_initrd.clone()),
        ]
    }

    /// Builds what [`Materials::of_vfio`] names.
    ///
    /// # Errors
    /// Those of [`selftests::ensure`], or a file cannot be written.
    pub fn build_vfio(&self) -> Result<()> {
        let programs = selftests::ensure(&self.cache)?;
        let made = image::guest::with_programs(&self.cache, &self.initrd, &programs, &selftests::PROGRAMS)?;
        // Whoever was first made the same file.
        let _ = self.vfio_initrd.set(made);
        Ok(())
    }

    /// The first file system of a guest that runs the kernel's VFIO selftests, if it was built.
    pub fn of_vfio(&self) -> impl Iterator<Item = (String, PathBuf)> {
        self.vfio_initrd.get().map(|path| (VFIO_INITRD.to_owned(), path.clone())).into_iter()
    }

    /// The words of `svmm run` for `guest`, with `cmdline` as the kernel's command line.
    #[must_use]
    pub fn svmm_run(guest: &crate::cli::Guest, cmdline: &str) -> Vec<Word> {
        let svm = guest.svm.as_ref();
        let svm = svm.map_or_else(|| "--svm".to_owned(), |options| format!("--svm={options}"));
        let extra = guest.cmdline.as_deref().unwrap_or_default();
        vec![
            Word::file(SVMM),
            "run".into(),
            "--kernel".into(),
            Word::file(KERNEL),
            "--initrd".into(),
            Word::file(INITRD),
            "--cpus".into(),
            guest.cpus.to_string().into(),
            "--memory-mib".into(),
            guest.memory_mib.to_string().into(),
            svm.into(),
            "--exit-port".into(),
            "--cmdline".into(),
            format!("{extra} {cmdline}").trim().into(),
        ]
    }
}
