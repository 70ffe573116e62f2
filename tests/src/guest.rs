//! One guest: how it is started, and what came of it.

use std::ffi::OsString;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::expect::{KernelLog, Tap};
use crate::footprint::Footprint;
use crate::standstill;

/// Longest time for a boot and what runs in it, unless `SVMM_TEST_TIMEOUT_S` says otherwise.
const TIMEOUT: Duration = Duration::from_secs(400);
/// Exit code of svmm for a guest program's status `n`, 1 to 63, is this plus `n`.
pub const STATUS_BASE: i32 = 64;
/// Console lines shown when a guest did not do as it should.
const SHOWN_LINES: usize = 60;

/// What the tests boot, from the environment.
#[derive(Clone, Debug)]
pub struct Materials {
    /// `SVMM_BIN`: the program under test.
    pub svmm: PathBuf,
    /// `SVMM_KERNEL`: a bzImage.
    pub kernel: PathBuf,
    /// `SVMM_VMLINUX`: the same kernel as ELF.
    pub vmlinux: PathBuf,
    /// `SVMM_GUEST_INITRD`: an initial file system with `guest-init` and `svm-selftest`.
    pub initrd: PathBuf,
    /// `SVMM_NEXT_INITRD`: the same, and in it a kernel to go on with.
    pub next_initrd: PathBuf,
}

impl Materials {
    /// Reads the environment.
    ///
    /// # Errors
    /// A variable is not set; the error says what to do.
    pub fn from_environment() -> Result<Self> {
        let path = |name: &str| {
            let value = std::env::var_os(name).map(PathBuf::from);
            value.with_context(|| format!("{name} is not set: run `cargo lab test`, which sets it"))
        };
        Ok(Self {
            svmm: path("SVMM_BIN")?,
            kernel: path("SVMM_KERNEL")?,
            vmlinux: path("SVMM_VMLINUX")?,
            initrd: path("SVMM_GUEST_INITRD")?,
            next_initrd: path("SVMM_NEXT_INITRD")?,
        })
    }
}

/// A guest to be.
#[derive(Clone, Debug)]
pub struct Guest {
    cpus: u32,
    apic_id_step: u32,
    memory_mib: u64,
    svm: Option<String>,
    elf: bool,
    kernel: Option<(PathBuf, PathBuf)>,
    next_kernel: bool,
    disks: Vec<String>,
    options: Vec<String>,
    words: Vec<String>,
    patience: Option<Duration>,
}

impl Default for Guest {
    fn default() -> Self {
        Self::new()
    }
}

impl Guest {
    /// One CPU, 512 MiB, a bzImage, the SVM endpoint as svmm makes it.
    #[must_use]
    pub fn new() -> Self {
        Self {
            cpus: 1,
            apic_id_step: 1,
            memory_mib: 512,
            svm: Some(String::new()),
            elf: false,
            kernel: None,
            next_kernel: false,
            disks: Vec::new(),
            options: Vec::new(),
            words: Vec::new(),
            patience: None,
        }
    }

    /// Number of vCPUs.
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// Distance of the vCPUs' APIC ids.
    #[must_use]
    pub fn apic_id_step(mut self, step: u32) -> Self {
        self.apic_id_step = step;
        self
    }

    /// Memory in MiB.
    #[must_use]
    pub fn memory_mib(mut self, memory_mib: u64) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// Options of the SVM endpoint, as for `--svm=`.
    #[must_use]
    pub fn svm(mut self, options: &str) -> Self {
        self.svm = Some(options.to_owned());
        self
    }

    /// Without the SVM endpoint.
    #[must_use]
    pub fn without_svm(mut self) -> Self {
        self.svm = None;
        self
    }

    /// Adds a disk, as for `--disk`.
    #[must_use]
    pub fn disk(mut self, value: &str) -> Self {
        self.disks.push(value.to_owned());
        self
    }

    /// Adds a remapping unit, as for `--iommu`.
    #[must_use]
    pub fn iommu(self, value: &str) -> Self {
        self.option(&format!("--iommu={value}"))
    }

    /// Adds an argument of `svmm run`.
    #[must_use]
    pub fn option(mut self, argument: &str) -> Self {
        self.options.push(argument.to_owned());
        self
    }

    /// Boots the ELF kernel, which is entered by PVH.
    #[must_use]
    pub fn elf(mut self) -> Self {
        self.elf = true;
        self
    }

    /// Boots another kernel, with the initial file system that goes with it.
    #[must_use]
    pub fn kernel(mut self, image: PathBuf, initrd: PathBuf) -> Self {
        self.kernel = Some((image, initrd));
        self
    }

    /// Puts a kernel into the initial file system, and `what` is the thing to do when that runs.
    #[must_use]
    pub fn then(mut self, what: &str) -> Self {
        self.next_kernel = true;
        self.word(&format!("svmm.next={what}"))
    }

    /// Adds something for the guest's init to do: `PROGRAM,ARG,...` or `@ACTION`.
    #[must_use]
    pub fn run(self, what: &str) -> Self {
        self.word(&format!("svmm.run={what}"))
    }

    /// Adds a word to the kernel command line.
    #[must_use]
    pub fn word(mut self, word: &str) -> Self {
        self.words.push(word.to_owned());
        self
    }

    /// Longest time for it, in place of what suits one guest.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = Some(patience);
        self
    }

    /// The arguments of svmm. Pure.
    #[must_use]
    pub fn arguments(&self, materials: &Materials) -> Vec<OsString> {
        // An error of the kernel in the middle of a result line would break it; the log is printed at the end.
        let mut line = String::from("console=ttyS0 panic=-1 loglevel=3 mitigations=off");
        for word in &self.words {
            line.push(' ');
            line.push_str(word);
        }
        let kernel = if self.elf { &materials.vmlinux } else { &materials.kernel };
        let initrd = if self.next_kernel { &materials.next_initrd } else { &materials.initrd };
        let (kernel, initrd) =
            self.kernel.as_ref().map_or((kernel, initrd), |(kernel, initrd)| (kernel, initrd));
        let mut arguments: Vec<OsString> = vec!["run".into()];
        let mut option = |name: &str, value: OsString| arguments.extend([name.into(), value]);
        option("--kernel", kernel.into());
        option("--initrd", initrd.into());
        option("--cmdline", line.into());
        option("--cpus", self.cpus.to_string().into());
        if self.apic_id_step != 1 {
            option("--apic-id-step", self.apic_id_step.to_string().into());
        }
        option("--memory-mib", self.memory_mib.to_string().into());
        option("--serial", "stdio".into());
        for disk in &self.disks {
            option("--disk", disk.into());
        }
        arguments.extend(self.options.iter().map(OsString::from));
        match self.svm.as_deref() {
            Some("") => arguments.push("--svm".into()),
            Some(options) => arguments.push(format!("--svm={options}").into()),
            None => {}
        }
        arguments
    }

    /// Boots the guest and waits until svmm ends.
    ///
    /// # Errors
    /// svmm cannot be started, or does not end in time; it is stopped then, and the error holds the
    /// end of the console.
    pub fn boot(&self) -> Result<Outcome> {
        let materials = Materials::from_environment()?;
        let mut command = Command::new(&materials.svmm);
        command.args(self.arguments(&materials));
        Outcome::within(command, self.patience.unwrap_or_else(timeout))
    }
}

/// What a run of svmm left.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// svmm's exit code; -1 if a signal ended it.
    pub code: i32,
    /// Standard output: the guest's console.
    pub console: String,
    /// Standard error: svmm's own words.
    pub stderr: String,
    /// How long it ran.
    pub elapsed: Duration,
    /// svmm's memory meanwhile.
    pub footprint: Footprint,
}

impl Outcome {
    /// Runs a command to its end.
    ///
    /// # Errors
    /// As [`Guest::boot`].
    pub fn of(command: Command) -> Result<Self> {
        Self::within(command, timeout())
    }

    fn within(mut command: Command, patience: Duration) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = Instant::now();
        let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let console = Collected::start(child.stdout.take().context("no standard output")?);
        let stderr = Collected::start(child.stderr.take().context("no standard error")?);
        let mut footprint = Footprint::default();
        let status = wait(&mut child, started, patience, &mut footprint);
        let mut standstill = String::new();
        if status.is_err() {
            standstill = standstill::told(child.id());
            let _ = child.kill();
            let _ = child.wait();
        }
        let (console, stderr) = (console.finish(), stderr.finish());
        let Ok(status) = status else {
            let tail = last_lines(&console);
            let seconds = started.elapsed().as_secs();
            bail!("{command:?} did not end within {seconds} s:\n{tail}\n{stderr}\n{standstill}");
        };
        let elapsed = started.elapsed();
        Ok(Self { code: status.code().unwrap_or(-1), console, stderr, elapsed, footprint })
    }

    /// What the guest's init printed of its remapping units: `unit ADDRESS has DEVICE ...`.
    #[must_use]
    pub fn units(&self) -> Vec<&str> {
        let lines = self.console.lines().filter_map(|line| line.strip_prefix("guest-init: "));
        lines.filter(|line| line.starts_with("unit ")).collect()
    }

    /// The selftest's results.
    ///
    /// # Errors
    /// The console holds none.
    pub fn tap(&self) -> Result<Tap> {
        Tap::parse(&self.console).with_context(|| self.tail())
    }

    /// The part of the kernel log that the guest's init printed.
    ///
    /// # Errors
    /// The console holds none.
    pub fn kernel_log(&self) -> Result<KernelLog> {
        KernelLog::parse(&self.console).with_context(|| self.tail())
    }

    /// How long the guest's kernel took to its first program, as it counts, in milliseconds.
    #[must_use]
    pub fn boot_ms(&self) -> Option<u64> {
        let (_, rest) = self.console.split_once("guest-init: up after ")?;
        rest.split(' ').next()?.parse().ok()
    }

    /// What failed and the end of what svmm printed, for messages.
    #[must_use]
    pub fn tail(&self) -> String {
        let Self { code, console, stderr, .. } = self;
        let end = last_lines(console);
        format!("svmm's exit code {code}\n{}the end of the console:\n{end}\n{stderr}", failures(console))
    }
}

/// The selftests' cases that failed, each with its reasons, wherever they stand. Pure.
fn failures(console: &str) -> String {
    let mut failing = false;
    let told = |line: &&str| {
        failing = line.starts_with("not ok ") || failing && line.starts_with('#');
        failing
    };
    console.lines().filter(told).map(|line| format!("{line}\n")).collect()
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
}

fn timeout() -> Duration {
    let value = std::env::var("SVMM_TEST_TIMEOUT_S").ok().and_then(|text| text.parse().ok());
    value.map_or(TIMEOUT, Duration::from_secs)
}

fn wait(
    child: &mut Child,
    started: Instant,
    limit: Duration,
    footprint: &mut Footprint,
) -> Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        footprint.look(child.id(), started.elapsed());
        anyhow::ensure!(started.elapsed() < limit, "timeout");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A stream that a thread reads to its end.
struct Collected {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: thread::JoinHandle<()>,
}

impl Collected {
    fn start(mut stream: impl Read + Send + 'static) -> Self {
        let bytes = Arc::<Mutex<Vec<u8>>>::default();
        let sink = bytes.clone();
        let reader = thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(count @ 1..) = stream.read(&mut chunk) {
                sink.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&chunk[..count]);
            }
        });
        Self { bytes, reader }
    }

    fn finish(self) -> String {
        let _ = self.reader.join();
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_with_their_reasons() {
        let console =
            "1..3\nok 1 - a # pr=0\n# fine\nnot ok 2 - b # pr=1\n# why\n# and why\nok 3 - c # pr=0\n# fine\n";
        assert_eq!(failures(console), "not ok 2 - b # pr=1\n# why\n# and why\n");
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_guest_becomes_a_command_line() {
        let materials = Materials {
            svmm: "/svmm".into(),
            kernel: "/kernel".into(),
            vmlinux: "/elf".into(),
            initrd: "/initrd".into(),
            next_initrd: "/next".into(),
        };
        let guest = Guest::new()
            .cpus(4)
            .memory_mib(6144)
            .svm("pri=off")
            .elf()
            .disk("a,readonly")
            .run("@exit:3")
            .word("debug");
        let words: Vec<String> =
            guest.arguments(&materials).iter().map(|word| word.to_string_lossy().into_owned()).collect();
        let expected = [
            "run",
            "--kernel",
            "/elf",
            "--initrd",
            "/initrd",
            "--cmdline",
            "console=ttyS0 panic=-1 loglevel=3 mitigations=off svmm.run=@exit:3 debug",
            "--cpus",
            "4",
            "--memory-mib",
            "6144",
            "--serial",
            "stdio",
            "--disk",
            "a,readonly",
            "--svm=pri=off",
        ];
        assert_eq!(words, expected);
        assert!(!Guest::new().without_svm().arguments(&materials).iter().any(|word| word == "--svm"));
    }

    #[test]
    fn what_a_command_leaves() {
        let outcome = Outcome::of(shell("echo 'guest-init: up after 70 ms'; echo no >&2; exit 5")).unwrap();
        assert_eq!((outcome.code, outcome.boot_ms()), (5, Some(70)));
        assert_eq!(outcome.stderr, "no\n");
        assert!(outcome.tap().is_err() && outcome.kernel_log().is_err());
    }
}
