//! The first process of a test guest.
//!
//! It mounts the usual file systems, loads the modules that `/lib/modules/order` lists, gives the
//! SVM endpoint to `uio_pci_generic_sva`, does what `svmm.run=` on the kernel command line says,
//! passes the outcome to svmm's exit port and powers the machine off.
//!
//! | `svmm.run=` | does |
//! | --- | --- |
//! | `PROGRAM,ARG,ARG` | runs the program; may be given several times, the first status that is not 0 counts |
//! | `@dmesg` | prints the whole kernel log between the markers |
//! | `@units` | prints which remapping unit has which device |
//! | `@poweroff`, `@reboot`, `@panic`, `@triple-fault` | ends the machine that way |
//! | `@exit:N` | passes N to the exit port |
//! | `@sleep` | waits to be stopped |
//! | `@kexec` | starts `/boot/bzImage` with `/boot/initrd` in place of the running kernel; `svmm.next=` becomes its `svmm.run=` |
//! | `@hibernate:MODE` | suspends and resumes as `/sys/power/pm_test` has it: `devices`, `platform`, `processors`, `core` |
//! | `@hibernate:disk` | hibernates to the first disk and powers off; a kernel with `resume=/dev/vda` goes on after it |
//! | `@host:WORD;WORD` | runs `/bin/svmm` with `/boot/bzImage` and `/boot/initrd`; a WORD is an option of svmm, a word that begins with `svmm.` or `pci=`, or a `svmm.run=` of the inner guest. Its lines come behind `inner\| ` |
//! | `@kill-host:MS;WORD` | the same, and kills svmm MS milliseconds after the inner guest's program began and asked for its first page |
//! | `@unbind-host:MS;WORD` | the same, and takes the device of the first `--vfio=ADDRESS` away from `vfio-pci`, then gives it back |
//! | `@user-host:KIB;WORD` | the same, by a user without rights who may lock KIB KiB of memory. In options of svmm, a path behind `fd=` becomes the number of that file, opened before |
//! | `@until-gone` | waits until the SVM endpoint reads as ones |
//!
//! Without `svmm.run=`: a shell if the image holds one, else the selftest. With the word
//! `svmm.verbose` kernel messages keep reaching the console while programs run; with `svmm.unbound` the endpoint is left
//! without a driver, with `svmm.polling` its driver gets no interrupts, with `svmm.vfio` it, the DMA engine and disks are given
//! to `vfio-pci`. With `svmm.huge` all memory, shared memory too, is of huge pages where it can be; it has been written to once
//! before programs run, and four explicit huge pages of 2 MiB are set aside.
//! After programs have run, the relevant part of the kernel log stands between
//! `guest-init: klog begin` and `guest-init: klog end`.
#![deny(unsafe_code)]

mod action;
mod endpoint;
mod host;
mod kexec;
mod klog;
mod memory;
mod modules;
mod power;
mod sys;
mod units;
mod user;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use guest::uio::give_to_uio;
use guest::vfio::give_to_vfio;

use action::Action;
use endpoint::{DISK, ENDPOINT, ENGINE};
use sys::Ending;

/// I/O port that carries a guest's status, 32 bits, to svmm.
const EXIT_PORT: u16 = 0xf4;
/// Exit status of a program that could not be started, as in a shell.
const NOT_STARTED: u32 = 127;
/// Status for a command line that this program does not understand.
const NOT_UNDERSTOOD: u32 = 125;
const SELFTEST: &str = "/bin/svm-selftest";

fn main() {
    mount_all();
    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    println!("guest-init: up after {} ms", uptime_ms());
    if !command_line.split_ascii_whitespace().any(|word| word == "svmm.verbose") {
        sys::console_level(1);
    }
    memory::prepare(command_line.split_ascii_whitespace().any(|word| word == "svmm.huge"));
    // Every line that a test program puts into the log must stay there.
    let _ = fs::write("/proc/sys/kernel/printk_devkmsg", "on");
    for line in modules::load_all() {
        println!("guest-init: module {line}");
    }
    let has = |wanted: &str| command_line.split_ascii_whitespace().any(|word| word == wanted);
    if has("svmm.polling") {
        endpoint::forbid_interrupts(&ENDPOINT);
    }
    let bound = match (has("svmm.unbound"), has("svmm.vfio")) {
        (true, _) => Vec::new(),
        (false, true) => endpoint::bind_all(&[ENDPOINT, ENGINE, DISK], give_to_vfio),
        (false, false) => endpoint::bind_all(&[ENDPOINT], give_to_uio),
    };
    for line in bound {
        println!("guest-init: endpoint {line}");
    }
    let mut actions = action::parse(&command_line);
    if actions.is_empty() {
        actions.push(default_action());
    }
    let status = perform(&actions);
    sys::drain_console();
    if let Some(status) = status
        && let Err(error) = sys::write_port(EXIT_PORT, status)
    {
        println!("guest-init: cannot write the exit port: {error}");
    }
    finish(Ending::PowerOff)
}

/// Does all actions; returns the status for the exit port, if they made one.
fn perform(actions: &[Action]) -> Option<u32> {
    let mut status = None;
    let mut note = |new: u32| status = status.filter(|&old| old != 0).or(Some(new));
    for action in actions {
        match action {
            Action::Run(words) => note(run(words)),
            Action::Exit(value) => note(*value),
            Action::KernelLog => print_log(str::to_owned),
            Action::Units => units::list().iter().for_each(|line| println!("guest-init: {line}")),
            Action::PowerOff => finish(Ending::PowerOff),
            Action::Restart => finish(Ending::Restart),
            Action::TripleFault => {
                let _ = fs::write("/sys/kernel/reboot/type", "triple");
                finish(Ending::Restart)
            }
            Action::Panic => {
                let _ = fs::write("/proc/sysrq-trigger", "c");
                println!("guest-init: the kernel did not panic: it needs CONFIG_MAGIC_SYSRQ");
            }
            Action::Sleep => sleep(),
            Action::Kexec => println!("guest-init: kexec: {:#}", power::take_over()),
            Action::Hibernate(mode) => note(power::hibernate(mode)),
            Action::Host(words) => note(host::run(words, host::End::Natural)),
            Action::KillHost(after, words) => note(host::run(words, host::End::Killed(*after))),
            Action::UnbindHost(after, words) => note(host::run(words, host::End::Unbound(*after))),
            Action::UserHost(kib, words) => note(host::run(words, host::End::User(*kib))),
            Action::UntilGone => note(endpoint::wait_until_gone()),
            Action::Unknown(word) => {
                println!("guest-init: svmm.run={word} is not understood");
                note(NOT_UNDERSTOOD);
            }
        }
    }
    if actions.iter().any(|action| matches!(action, Action::Run(_) | Action::Host(_))) {
        print_log(klog::relevant);
    }
    status
}

fn default_action() -> Action {
    let words: &[&str] = if Path::new("/bin/sh").exists() {
        &["/bin/sh"]
    } else if Path::new("/bin/busybox").exists() {
        &["/bin/busybox", "sh"]
    } else {
        &[SELFTEST]
    };
    Action::Run(words.iter().map(|&word| word.to_owned()).collect())
}

fn run(words: &[String]) -> u32 {
    match try_run(words) {
        Ok(status) => {
            let signal = || status.signal().map_or(128, |signal| 128 + signal);
            u32::try_from(status.code().unwrap_or_else(signal)).unwrap_or(NOT_STARTED)
        }
        Err(error) => {
            println!("guest-init: {error:#}");
            NOT_STARTED
        }
    }
}

fn try_run(words: &[String]) -> Result<ExitStatus> {
    let (program, arguments) = words.split_first().context("no program")?;
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs([("PATH", "/bin:/sbin"), ("HOME", "/tmp"), ("TERM", "vt100")]);
    command.current_dir("/tmp");
    // Programs tell results with their last lines; only shells want job control.
    let shell = matches!(program.rsplit('/').next(), Some("sh" | "busybox"));
    sys::with_session(&mut command, shell);
    let child = command.spawn().with_context(|| format!("cannot start {program}"))?;
    let status = sys::reap_until(child.id()).with_context(|| format!("cannot wait for {program}"))?;
    Ok(ExitStatus::from_raw(status))
}

fn print_log(select: impl FnOnce(&str) -> String) {
    println!("guest-init: klog begin");
    match sys::kernel_log() {
        Ok(bytes) => print!("{}", select(&String::from_utf8_lossy(&bytes))),
        Err(error) => println!("guest-init: cannot read the kernel log: {error}"),
    }
    println!("guest-init: klog end");
}

/// Mounts what programs expect; a mount that fails shows later, where it is needed.
fn mount_all() {
    let mounts = [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("devpts", "/dev/pts"),
        ("tmpfs", "/tmp"),
        ("tmpfs", "/run"),
        ("debugfs", "/sys/kernel/debug"),
    ];
    for (kind, folder) in mounts {
        let _ = fs::create_dir_all(folder);
        if let Err(error) = sys::mount(kind, folder) {
            println!("guest-init: cannot mount {folder}: {error}");
        }
    }
}

/// Milliseconds since the kernel started, as the kernel counts.
fn uptime_ms() -> u64 {
    let text = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let (seconds, hundredths) =
        text.split(' ').next().and_then(|first| first.split_once('.')).unwrap_or(("0", "0"));
    let number = |digits: &str| digits.parse::<u64>().unwrap_or(0);
    number(seconds) * 1000 + number(hundredths) * 10
}

fn finish(ending: Ending) -> ! {
    let error = sys::end(ending);
    println!("guest-init: the kernel does not end the machine: {error}");
    sleep()
}

fn sleep() -> ! {
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}
