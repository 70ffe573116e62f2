//! The world *cloud*: QEMU emulates a machine with nested virtualization, and commands run in it.
//!
//! One initial file system carries everything in. Console `hvc0` is the commands' terminal, a
//! port of its own brings the exit codes back, the kernel's log goes to a file.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use std::{fmt, fs};

use anyhow::{Context, Result, bail};

use super::{Terminal, Word, Workload, relay};
use crate::cache::Cache;
use crate::image::Archive;
use crate::job::{self, Job};
use crate::kernel::Kernel;
use crate::process::tail;
use crate::programs;
use crate::qemu::{self, Qemu};

/// Start of the names of folders of running machines; the process id and a number follow.
const RUN: &str = "cloud-";
/// How many machines this process has started.
static STARTED: AtomicU32 = AtomicU32::new(0);
/// Where the workload's files stand in the machine.
const FILES: &str = "/lab";
/// The machine's memory is touched lazily; guests of 6 GiB fit.
const MEMORY_MIB: u64 = 10 * 1024;
/// More than any guest test has made a machine touch of that.
const TOUCHED_MIB: u64 = 3 * 1024;
/// One, although the host may have more: with two, QEMU 10's emulation of AMD SVM loses its way now and then (the
/// hypervisor's kernel goes on at a guest's instruction), and guests die.
const CPUS: usize = 1;
/// With AMD SVM and nested page tables; without the promise that string instructions on bytes are quick: Linux would
/// zero and copy memory by them, and an emulator does each byte by itself.
const CPU: &str = "max,+svm,+npt,-erms,-fsrm,-fsrs";
/// Two hazards of an emulated machine are kept away here; each stops a guest's clock, or that of the machine itself.
///
/// - `nohz=off highres=off`, a periodic tick: the interrupt of a one-shot timer can get lost for good. QEMU 10's emulation
///   of VMRUN marks a virtual interrupt as pending without holding the lock that the thread of the timers holds, and
///   one of the two marks is overwritten. The next tick of a periodic timer brings it back.
/// - `kvm.tsc_tolerance_ppm`: on a busy host Linux's first measurement of the TSC's rate differs from its second by more
///   than KVM's usual tolerance. Without hardware that scales, KVM then refuses a guest's rate half-way and computes its
///   timers with a scale of 0.
const COMMAND_LINE: &str =
    "console=ttyS0 panic=-1 mitigations=off tsc=reliable nohz=off highres=off kvm.tsc_tolerance_ppm=50000";

/// The cloud machine, before it is started.
#[derive(Clone, Debug)]
pub struct Machine {
    qemu: Qemu,
    kernel: PathBuf,
    /// The first process: `lab-cloud-init`.
    init: PathBuf,
    cache: Cache,
}

/// Files of one run.
struct Files {
    folder: PathBuf,
    image: PathBuf,
    status: PathBuf,
    log: PathBuf,
}

impl Machine {
    /// Makes everything but the workload ready; `kernel` hosts svmm.
    ///
    /// # Errors
    /// QEMU cannot be had, or the first process does not build.
    pub fn prepare(kernel: &Kernel, cache: &Cache) -> Result<Self> {
        Ok(Self {
            qemu: qemu::ensure(cache)?,
            kernel: kernel.cloud_host(),
            init: programs::binary("lab", "lab-cloud-init")?,
            cache: cache.clone(),
        })
    }

    /// Boots, runs the commands, powers off, and returns the exit code of each command.
    ///
    /// # Errors
    /// The machine does not come to its end within `limit`, or dies.
    pub fn run(&self, workload: &Workload, mut terminal: Terminal<'_>, limit: Duration) -> Result<Vec<i32>> {
        let tree = self.cache.of_tree(&programs::workspace())?;
        remove_left_over(&tree);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let folder = tree.join(format!("{RUN}{}-{number}", std::process::id()));
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let files = Files {
            image: folder.join("image.cpio"),
            status: folder.join("status"),
            log: tree.join(format!("cloud-console-{number}.log")),
            folder,
        };
        let outcome = self.boot(workload, &files, &mut terminal, limit);
        let _ = fs::remove_dir_all(&files.folder);
        outcome
    }

    fn boot(
        &self,
        workload: &Workload,
        files: &Files,
        terminal: &mut Terminal<'_>,
        limit: Duration,
    ) -> Result<Vec<i32>> {
        self.pack(workload, &files.image)?;
        let mut command = self.command(files);
        let context =
            || format!("the cloud machine failed; the end of {}:\n{}", files.log.display(), tail(&files.log));
        let status = relay::run(&mut command, terminal, limit).with_context(context)?;
        let report = fs::read_to_string(&files.status).unwrap_or_default();
        match job::parse_outcomes(&report) {
            Some(codes) if codes.len() == workload.commands.len() => Ok(codes),
            _ => bail!("{} (QEMU: {status})", context()),
        }
    }

    fn pack(&self, workload: &Workload, image: &Path) -> Result<()> {
        let mut archive = Archive::new();
        archive.host_file("/init", &self.init)?;
        for (name, path) in &workload.files {
            archive.host_file(&format!("{FILES}/{name}"), path)?;
        }
        archive.file(job::PATH, job(workload).render()?.as_bytes());
        archive.write(image)
    }

    fn command(&self, files: &Files) -> Command {
        let mut command = self.qemu.command();
        command
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none", "-machine", "q35"])
            .args(["-cpu", CPU, "-accel", "tcg,thread=multi"])
            .args(["-smp", &CPUS.to_string()])
            .args(["-m", &format!("{}M", memory_mib())])
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&files.image)
            .args(["-append", COMMAND_LINE])
            .arg("-serial")
            .arg(option("file:", &files.log))
            .args(["-device", "virtio-serial-pci"])
            .args(["-chardev", "stdio,id=job,signal=off"])
            .args(["-device", "virtconsole,chardev=job"])
            .arg("-chardev")
            .arg(option("file,id=status,path=", &files.status))
            .arg("-device")
            .arg(format!("virtserialport,chardev=status,name={}", job::STATUS_PORT));
        command
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QEMU {}", self.qemu.version())
    }
}

/// Removes folders of runs that were interrupted.
fn remove_left_over(tree: &Path) {
    for entry in fs::read_dir(tree).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(RUN)?.split('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// An option that ends in a path; QEMU wants commas in it doubled.
fn option(start: &str, path: &Path) -> String {
    format!("{start}{}", path.display().to_string().replace(',', ",,"))
}

/// How many machines this host carries side by side: one for each CPU, if there is memory for what they touch.
#[must_use]
pub fn side_by_side() -> usize {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let carried = usize::try_from(total_mib() / TOUCHED_MIB).unwrap_or(usize::MAX);
    cpus.min(carried).max(1)
}

/// At most three quarters of the host's memory.
fn memory_mib() -> u64 {
    MEMORY_MIB.min(total_mib() / 4 * 3)
}

fn total_mib() -> u64 {
    let info = rustix::system::sysinfo();
    u64::from(info.mem_unit) * info.totalram / (1 << 20)
}

fn job(workload: &Workload) -> Job {
    let resolve = |word: &Word| match word {
        Word::Text(text) => text.clone(),
        Word::File(name) => format!("{FILES}/{name}"),
    };
    let env = &workload.env;
    Job {
        env: env.iter().map(|(name, value)| ((*name).to_owned(), resolve(value))).collect(),
        commands: workload.commands.iter().map(|words| words.iter().map(resolve).collect()).collect(),
    }
}
