//! The first process of the cloud machine: runs the lab's job and powers the machine off.
//!
//! The job's input and output are the console `/dev/hvc0`; outcomes go over a port of their own,
//! so nothing a command prints can be taken for an outcome.
#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab::job::{self, Job};
use lab::process::exit_code;
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, reboot};
use rustix::termios::{OptionalActions, tcdrain, tcgetattr, tcsetattr};

const CONSOLE: &str = "/dev/hvc0";
/// Exit code of a command that could not be started, as in a shell.
const NOT_STARTED: i32 = 127;
/// How long the kernel may take to find its virtio devices.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() {
    if let Err(error) = run() {
        println!("lab-cloud-init: {error:#}");
    }
    rustix::fs::sync();
    let _ = reboot(RebootCommand::PowerOff);
    let _ = reboot(RebootCommand::Restart);
    loop {
        std::thread::park();
    }
}

fn run() -> Result<()> {
    mount_all();
    // A guest's memory is far quicker had in huge pages where a page fault of its is emulated.
    let _ = fs::write("/sys/kernel/mm/transparent_hugepage/shmem_enabled", "advise");
    let console = wait_for("the job's console", || {
        let file = OpenOptions::new().read(true).write(true).open(CONSOLE);
        file.ok()
    })?;
    let mut status =
        wait_for("the status port", || OpenOptions::new().write(true).open(status_port()?).ok())?;
    make_raw(&console)?;
    let text = fs::read_to_string(job::PATH).context("cannot read the job")?;
    let job = Job::parse(&text)?;
    for (index, command) in job.commands.iter().enumerate() {
        let code = execute(&job, command, &console);
        status.write_all(job::outcome(index, code).as_bytes())?;
    }
    let _ = tcdrain(&console);
    status.write_all(b"done\n")?;
    Ok(())
}

/// Runs one command on the console and returns its exit code.
fn execute(job: &Job, words: &[String], console: &File) -> i32 {
    let outcome = prepare(job, words, console).and_then(|mut command| {
        let program = command.get_program().to_string_lossy().into_owned();
        let status = command.status();
        status.with_context(|| format!("cannot start {program}"))
    });
    match outcome {
        Ok(status) => exit_code(status),
        Err(error) => {
            let _ = writeln!(&mut &*console, "lab-cloud-init: {error:#}\r");
            NOT_STARTED
        }
    }
}

fn prepare(job: &Job, words: &[String], console: &File) -> Result<Command> {
    let (program, arguments) = words.split_first().context("a command without words")?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", "/bin")
        .env("HOME", "/tmp")
        .envs(job.env.iter().map(|(name, value)| (name, value)))
        .current_dir("/tmp")
        .stdin(console.try_clone()?)
        .stdout(console.try_clone()?)
        .stderr(console.try_clone()?);
    Ok(command)
}

/// Mounts what programs expect; a mount that fails shows later, where it is needed.
fn mount_all() {
    let mounts = [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("devpts", "/dev/pts"),
        ("tmpfs", "/dev/shm"),
        ("tmpfs", "/tmp"),
        ("debugfs", "/sys/kernel/debug"),
    ];
    for (kind, folder) in mounts {
        let _ = fs::create_dir_all(folder);
        if let Err(error) = mount(kind, folder, kind, MountFlags::empty(), None) {
            println!("lab-cloud-init: cannot mount {folder}: {error}");
        }
    }
}

/// The device node of the port that the lab listens to.
fn status_port() -> Option<PathBuf> {
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?;
    ports.flatten().find_map(|port| {
        let name = fs::read_to_string(port.path().join("name")).ok()?;
        (name.trim() == job::STATUS_PORT).then(|| PathBuf::from("/dev").join(port.file_name()))
    })
}

/// Bytes pass the console unchanged in both directions.
fn make_raw(console: &File) -> Result<()> {
    let mut settings = tcgetattr(console).context("the console is no terminal")?;
    settings.make_raw();
    tcsetattr(console, OptionalActions::Now, &settings).context("cannot set the console")
}

fn wait_for<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(value) = attempt() {
            return Ok(value);
        }
        anyhow::ensure!(started.elapsed() < PATIENCE, "{what} did not appear");
        std::thread::sleep(Duration::from_millis(10));
    }
}
