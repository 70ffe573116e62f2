//! This guest as the host of another: svmm, run inside, with a kernel and an initial file system of the image.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use guest::diagnosis;

use crate::user;

/// What every inner guest's kernel is told, before the words of its own. Its page tables have four levels because
/// this machine's have, which was started as an ELF file: Linux takes no page request for an address that its own tables
/// cannot have ("Address is not canonical").
const COMMAND_LINE: &str = "console=ttyS0 panic=-1 loglevel=3 mitigations=off no5lvl";
/// Stands before each line that the inner guest and its svmm print.
const MARK: &str = "inner| ";
/// svmm's exit code for a guest program's status `n`, 1 to 63, is this plus `n`.
const STATUS_BASE: u32 = 64;
/// Added to svmm's own exit codes, so that they differ from a program's.
const SVMM_BASE: u32 = 40;
/// Status for an svmm that could not be started, or that ended before it was to be killed.
const FAILED: u32 = 39;
/// The inner guest's program is at work.
const AT_WORK: [&str; 2] = ["TAP version", "guest-init: waits "];
/// Where a driver's devices are taken away, and given back.
const DRIVER: &str = "/sys/bus/pci/drivers/vfio-pci";
/// After so long without a line, what this machine knows of the reasons is printed.
const SILENCE: Duration = Duration::from_secs(60);
/// How often to look whether something has happened.
const LOOK: Duration = Duration::from_millis(20);

/// How an inner guest ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By itself.
    Natural,
    /// Its svmm is killed so many milliseconds after its program began to work and its device to ask for pages.
    Killed(u64),
    /// By itself; its svmm is that of a user without rights, who may lock so many KiB of memory.
    User(u64),
    /// Its first device is taken away so many milliseconds after its program began to work.
    Unbound(u64),
}

/// Boots an inner guest and waits for it. Of `words`, those that begin with `--` are options of svmm, those that begin
/// with `svmm.` or `pci=` go to the inner guest's command line as they are, and the others are for its `svmm.run=`. Returns the status of its program, or one that tells what svmm says.
pub(crate) fn run(words: &[String], end: End) -> u32 {
    let started = Instant::now();
    let outcome = boot(words, end);
    let milliseconds = started.elapsed().as_millis();
    match outcome {
        Ok(code) => {
            println!("guest-init: inner svmm ended with {code:?} after {milliseconds} ms");
            status(code, end)
        }
        Err(error) => {
            println!("guest-init: inner svmm: {error:#}");
            FAILED
        }
    }
}

/// The status for an exit code; `None` is a signal. Pure.
fn status(code: Option<u32>, end: End) -> u32 {
    match (code, end) {
        (None, End::Killed(_)) | (Some(0), End::Natural | End::User(_) | End::Unbound(_)) => 0,
        (None, _) | (Some(_), End::Killed(_)) => FAILED,
        (Some(code), _) if code > STATUS_BASE => code - STATUS_BASE,
        (Some(code), _) => SVMM_BASE + code,
    }
}

fn boot(words: &[String], end: End) -> Result<Option<u32>> {
    let mut command = Command::new("/bin/svmm");
    let _passed = match end {
        End::User(kib) => user::prepare(&mut command, arguments(words), kib)?,
        _ => {
            command.args(arguments(words));
            Vec::new()
        }
    };
    let requests = diagnosis::request_queues();
    let mut child = command
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start it")?;
    let errors = child.stderr.take().context("no standard error")?;
    let errors = thread::spawn(move || relay(errors, |_| ()));
    let console = child.stdout.take().context("no standard output")?;
    let lines = AtomicU64::new(0);
    thread::scope(|scope| {
        let (tell, told) = channel();
        let (end_of_console, ended) = channel::<()>();
        let (process, lines) = (child.id(), &lines);
        scope.spawn(move || watch(process, lines, &ended));
        scope.spawn(move || {
            let _end_of_console = end_of_console;
            relay(console, |line| {
                lines.fetch_add(1, Ordering::Relaxed);
                if AT_WORK.iter().any(|start| line.starts_with(start)) {
                    let _ = tell.send(());
                }
            });
        });
        if let End::Killed(after) | End::Unbound(after) = end
            && told.recv().is_ok()
        {
            if let End::Killed(_) = end {
                wait_for_requests(&mut child, &requests);
            }
            thread::sleep(Duration::from_millis(after));
            match end {
                End::Unbound(_) => unbind(words),
                _ => kill(&mut child),
            }
        }
    });
    let status = child.wait().context("cannot wait for it")?;
    let _ = errors.join();
    Ok(status.code().and_then(|code| u32::try_from(code).ok()))
}

/// Waits until the inner guest's device has asked this machine for a page, or its svmm has ended. `before`: what the
/// queues had taken before it was started.
fn wait_for_requests(child: &mut Child, before: &[String]) {
    while diagnosis::request_queues() == before && !before.is_empty() && matches!(child.try_wait(), Ok(None))
    {
        thread::sleep(LOOK);
    }
}

/// Takes the first device away from VFIO, which waits until nobody has it open, and gives it back.
fn unbind(words: &[String]) {
    let device = words.iter().find_map(|word| word.strip_prefix("--vfio="));
    let address = device.and_then(|device| device.split(',').next()).unwrap_or_default();
    let start = Instant::now();
    let unbound = fs::write(format!("{DRIVER}/unbind"), address);
    let milliseconds = start.elapsed().as_millis();
    println!("guest-init: {address} taken away: {unbound:?} after {milliseconds} ms");
    println!("guest-init: {address} given back: {:?}", fs::write(format!("{DRIVER}/bind"), address));
}

fn kill(child: &mut Child) {
    if let Err(error) = child.kill() {
        println!("guest-init: inner svmm cannot be killed: {error}");
    }
}

/// The arguments of svmm. Pure.
fn arguments(words: &[String]) -> Vec<String> {
    let mut line = COMMAND_LINE.to_owned();
    let mut arguments: Vec<String> =
        ["run", "--kernel", "/boot/bzImage", "--initrd", "/boot/initrd"].map(str::to_owned).into();
    for word in words {
        if word.starts_with("--") {
            arguments.push(word.clone());
        } else if word.starts_with("svmm.") || word.starts_with("pci=") {
            line.push_str(&format!(" {word}"));
        } else {
            line.push_str(&format!(" svmm.run={word}"));
        }
    }
    arguments.extend(["--cmdline".to_owned(), line]);
    arguments
}

/// Until the console ends: once whenever it falls silent, prints what this machine shows of its units, and what the
/// threads of svmm wait for.
fn watch(process: u32, lines: &AtomicU64, ended: &Receiver<()>) {
    let (mut before, mut told) = (0, false);
    while ended.recv_timeout(SILENCE) == Err(RecvTimeoutError::Timeout) {
        let now = lines.load(Ordering::Relaxed);
        if now == before && !told {
            println!("guest-init: nothing from the inner guest for {} s", SILENCE.as_secs());
            let waits = diagnosis::waits(process);
            diagnosis::lines().iter().chain(&waits).for_each(|line| println!("guest-init: {line}"));
        }
        told = now == before;
        before = now;
    }
}

/// Prints every line behind the mark, and shows it to `seen`.
fn relay(stream: impl Read, seen: impl Fn(&str)) {
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    while let Ok(1..) = stream.read_until(b'\n', &mut line) {
        let text = String::from_utf8_lossy(&line);
        println!("{MARK}{}", text.trim_end());
        seen(&text);
        line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_go_to_svmm_and_the_rest_to_the_guest() {
        let words =
            ["--vfio=0000:00:01.0,mode=shadow", "svmm.x", "pci=y", "/bin/a,b", "@units", "--memory-mib=256"];
        let arguments = arguments(&words.map(str::to_owned));
        let end = ["--vfio=0000:00:01.0,mode=shadow", "--memory-mib=256", "--cmdline"];
        assert_eq!(arguments[5..8], end);
        assert!(
            arguments[8].ends_with(" svmm.x pci=y svmm.run=/bin/a,b svmm.run=@units"),
            "{}",
            arguments[8]
        );
    }

    #[test]
    fn what_svmm_says_becomes_a_status() {
        let rows = [
            ("well", Some(0), End::Natural, 0),
            ("a program failed", Some(65), End::Natural, 1),
            ("KVM failed", Some(1), End::Natural, 41),
            ("status without a number", Some(64), End::Natural, 104),
            ("went on without its device", Some(0), End::Unbound(0), 0),
            ("failed without its device", Some(65), End::Unbound(0), 1),
            ("killed from elsewhere", None, End::Natural, FAILED),
            ("killed as wanted", None, End::Killed(0), 0),
            ("too late to kill", Some(0), End::Killed(0), FAILED),
        ];
        for (name, code, end, expected) in rows {
            assert_eq!(status(code, end), expected, "{name}");
        }
    }
}
