//! Child processes: with a log, with a deadline, and never left behind.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::ui::Progress;

/// How often a running child is looked at.
const POLL: Duration = Duration::from_millis(50);
/// Lines of a log that are shown when its command fails.
const TAIL_LINES: usize = 25;

/// Children to end when the lab itself is told to end.
static RUNNING: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// Ends the children on Ctrl-C, SIGTERM and SIGHUP, restores the terminal, then exits with 130.
///
/// # Errors
/// The signal handler cannot be installed.
pub fn end_children_on_signal() -> Result<()> {
    let terminal = rustix::termios::tcgetattr(rustix::stdio::stdin()).ok();
    ctrlc::set_handler(move || {
        let pids = RUNNING.lock().map(|list| list.clone()).unwrap_or_default();
        for pid in pids {
            let _ = kill_process(pid, Signal::TERM);
        }
        if let Some(terminal) = &terminal {
            let when = rustix::termios::OptionalActions::Now;
            let _ = rustix::termios::tcsetattr(rustix::stdio::stdin(), when, terminal);
        }
        eprintln!("\n[lab] interrupted");
        std::process::exit(130);
    })
    .context("cannot install the signal handler")
}

/// A child that is ended when this value goes.
#[derive(Debug)]
pub struct Guarded {
    child: Child,
    name: String,
    pid: Option<Pid>,
}

impl Guarded {
    /// Starts `command`.
    ///
    /// # Errors
    /// The program is missing or cannot be started.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        if let (Some(pid), Ok(mut list)) = (pid, RUNNING.lock()) {
            list.push(pid);
        }
        Ok(Self { child, name, pid })
    }

    /// The child's standard output, when it was piped and not yet taken.
    pub fn take_stdout(&mut self) -> Option<std::process::ChildStdout> {
        self.child.stdout.take()
    }

    /// Waits for the end; calls `tick` meanwhile; after `limit` ends the child and fails.
    ///
    /// # Errors
    /// The limit passed, or waiting failed.
    pub fn wait(&mut self, limit: Duration, mut tick: impl FnMut()) -> Result<ExitStatus> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().context("cannot wait for a child")? {
                self.forget();
                return Ok(status);
            }
            if started.elapsed() > limit {
                let limit = crate::ui::progress::human(limit);
                bail!("{} did not end within {limit} and was ended", self.name);
            }
            tick();
            std::thread::sleep(POLL);
        }
    }

    fn forget(&mut self) {
        if let (Some(pid), Ok(mut list)) = (self.pid.take(), RUNNING.lock()) {
            list.retain(|other| *other != pid);
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if let Some(pid) = self.pid {
            let _ = kill_process(pid, Signal::TERM);
            let patience = Instant::now();
            while matches!(self.child.try_wait(), Ok(None)) {
                if patience.elapsed() > Duration::from_secs(2) {
                    let _ = self.child.kill();
                }
                std::thread::sleep(POLL);
            }
            self.forget();
        }
    }
}

/// The exit code a shell would report for `status`.
#[must_use]
pub fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// Runs `command` with its output appended to `log`; on failure the error shows the log's end.
///
/// # Errors
/// The command cannot be started or fails.
pub fn run_logged(
    command: &mut Command,
    log: &Path,
    progress: &mut Progress,
    mut detail: impl FnMut() -> String,
) -> Result<()> {
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("cannot write {}", log.display()))?;
    let line = describe(command);
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let mut child = Guarded::spawn(command)?;
    let status = child.wait(Duration::MAX, || progress.tick(&mut detail))?;
    if !status.success() {
        bail!("`{line}` failed ({status}); the end of {}:\n{}", log.display(), tail(log));
    }
    Ok(())
}

/// Runs `command` and returns what it printed, trimmed.
///
/// # Errors
/// The command cannot be started or fails; the error holds what it printed to stderr.
pub fn output(command: &mut Command) -> Result<String> {
    let name = describe(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{name}`"))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("`{name}` failed: {}", complaint.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The last lines of a text file, indented; empty when it cannot be read.
#[must_use]
pub fn tail(path: &Path) -> String {
    let Ok(file) = File::open(path) else {
        return String::new();
    };
    let mut last = std::collections::VecDeque::new();
    for line in BufReader::new(file).split(b'\n').map_while(Result::ok) {
        if last.len() == TAIL_LINES {
            last.pop_front();
        }
        last.push_back(String::from_utf8_lossy(&line).trim_end().to_owned());
    }
    last.iter().map(|line| format!("    {line}\n")).collect()
}

/// A command as a person would type it.
#[must_use]
pub fn describe(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

/// The first program called `name` in PATH.
#[must_use]
pub fn find_program(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|candidate| candidate.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_past_its_limit_is_ended() {
        let mut child = Guarded::spawn(Command::new("sleep").arg("60")).unwrap();
        let late = child.wait(Duration::from_millis(80), || ());
        assert!(late.unwrap_err().to_string().contains("did not end within"));
        let started = Instant::now();
        drop(child);
        assert!(started.elapsed() < Duration::from_secs(30), "it was let go on to its end");
    }

    #[test]
    fn failure_shows_the_end_of_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let mut command = Command::new("sh");
        command.args(["-c", "echo the reason; exit 3"]);
        let mut progress = Progress::start("test");
        let error = run_logged(&mut command, &log, &mut progress, String::new).unwrap_err();
        progress.done("");
        assert!(error.to_string().contains("the reason"), "{error}");
    }
}
