//! Configures and compiles the kernel into the cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::fragment::Fragment;
use super::{Kernel, cloud_host, source};
use crate::cache::{self, Cache};
use crate::debian::{PrivateApt, host};
use crate::process::{output, run_logged};
use crate::ui::Progress;
use source::Source;

/// The cache's folder for kernels.
pub const KIND: &str = "kernel";
/// Changes when the steps below change what they produce.
const RECIPE: &str = "2";
/// What `tinyconfig` consists of; the fragment comes last and wins.
const TINY: &[&str] =
    &["kernel/configs/tiny-base.config", "kernel/configs/tiny.config", "arch/x86/configs/tiny.config"];

/// Names a build by all that goes into it.
///
/// # Errors
/// The compiler cannot be asked for its version.
pub fn key(fragment: &Fragment, source: &Source) -> Result<String> {
    let compiler = output(Command::new("gcc").arg("--version"))?;
    let compiler = compiler.lines().next().unwrap_or_default();
    Ok(cache::key(&[RECIPE, fragment.text(), &source.identity(), compiler]))
}

/// Fetches the source, builds, checks the configuration, and keeps the results.
///
/// # Errors
/// A package is missing and the lab may not install it, or a step fails.
pub fn build(cache: &Cache) -> Result<Kernel> {
    let _held = cache.lock("kernel")?;
    host::ensure(host::KERNEL_BUILD, cache)?;
    let fragment = Fragment::load()?;
    let (source, apt) = match source::user_tree()? {
        Some(tree) => (tree, None),
        None => {
            let apt = PrivateApt::open(cache)?;
            (source::newest(&apt)?, Some(apt))
        }
    };
    let key = key(&fragment, &source)?;
    let folder = match cache.find(KIND, &key) {
        Some(folder) => folder,
        None => cache.publish(KIND, &key, |part| {
            let log = cache.root().join("kernel-build.log");
            let _ = fs::remove_file(&log);
            cache::remove(&cache.root().join("kernel-work"))?;
            let work = cache.folder("kernel-work")?;
            let tree = source.provide(apt.as_ref(), &work, &[], &log)?;
            let objects = work.join("objects");
            fs::create_dir_all(&objects)?;
            let steps = Steps { tree, objects, log };
            steps.configure(&fragment)?;
            steps.compile("kernel: compile", &["bzImage", "vmlinux"])?;
            steps.keep(part)?;
            steps.keep_cloud_host(part, apt.is_some())?;
            cache::remove(&work)
        })?,
    };
    source::record(cache, &source)?;
    Ok(Kernel { folder })
}

/// One build in progress.
struct Steps {
    tree: PathBuf,
    objects: PathBuf,
    log: PathBuf,
}

impl Steps {
    fn make(&self, targets: &[&str]) -> Command {
        let mut make = Command::new("make");
        make.arg("-C")
            .arg(&self.tree)
            .arg(format!("O={}", self.objects.display()))
            .args(targets)
            .env("KBUILD_BUILD_USER", "lab")
            .env("KBUILD_BUILD_HOST", "svmm")
            .env_remove("MAKEFLAGS")
            .env_remove("MAKELEVEL");
        make
    }

    /// Everything off except tinyconfig's choices and the fragment's.
    fn configure(&self, fragment: &Fragment) -> Result<()> {
        let mut progress = Progress::start("kernel: configure");
        let mut wanted = String::new();
        for name in TINY {
            wanted.push_str(&fs::read_to_string(self.tree.join(name)).unwrap_or_default());
        }
        wanted.push_str(fragment.text());
        let all = self.objects.join("wanted.config");
        fs::write(&all, wanted)?;
        let mut make = self.make(&["allnoconfig"]);
        make.env("KCONFIG_ALLCONFIG", &all);
        run_logged(&mut make, &self.log, &mut progress, String::new)?;
        let config = fs::read_to_string(self.objects.join(".config"))
            .context("the kernel's configuration was not written")?;
        fragment.check(&config)?;
        progress.done("");
        Ok(())
    }

    fn compile(&self, title: &str, targets: &[&str]) -> Result<()> {
        let mut progress = Progress::start(title);
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        let jobs = format!("-j{jobs}");
        let words: Vec<&str> = std::iter::once(jobs.as_str()).chain(targets.iter().copied()).collect();
        let make = self.make(&words);
        let mut nice = Command::new("nice");
        nice.arg(make.get_program()).args(make.get_args());
        for (name, value) in make.get_envs() {
            match value {
                Some(value) => nice.env(name, value),
                None => nice.env_remove(name),
            };
        }
        run_logged(&mut nice, &self.log, &mut progress, || {
            format!("{} objects compiled", compiled(&self.log))
        })?;
        progress.done(&format!("{} objects", compiled(&self.log)));
        Ok(())
    }

    /// The kernel once more for the cloud world's host. A tree of the user's own is not edited.
    fn keep_cloud_host(&self, target: &Path, may_edit: bool) -> Result<()> {
        if may_edit && cloud_host::edit(&self.tree)? {
            self.compile("kernel: the cloud world's host", &["vmlinux"])?;
        }
        let to = target.join(cloud_host::FILE);
        fs::copy(self.objects.join("vmlinux"), to).context("the kernel build made no vmlinux")?;
        Ok(())
    }

    fn keep(&self, target: &Path) -> Result<()> {
        let products = [("arch/x86/boot/bzImage", "bzImage"), ("vmlinux", "vmlinux"), (".config", "config")];
        for (from, to) in products {
            fs::copy(self.objects.join(from), target.join(to))
                .with_context(|| format!("the kernel build made no {from}"))?;
        }
        Ok(())
    }
}

/// Objects that the build's log names so far.
fn compiled(log: &Path) -> usize {
    let text = fs::read(log).unwrap_or_default();
    text.split(|byte| *byte == b'\n')
        .filter(|line| line.starts_with(b"  CC ") || line.starts_with(b"  AS "))
        .count()
}
