//! `svmm run` from outside, with kernels of a few instructions: every way a run ends, and what becomes of the
//! terminal. Skipped, with a message, where KVM cannot be used.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's helpers fail by panicking")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

const LOAD_ADDRESS: u64 = 0x10_0000;
const PATIENCE: Duration = Duration::from_secs(30);

/// An ELF kernel for x86-64 without PVH entry: one segment with `code`, entered at its start in 64-bit mode.
fn elf(code: &[u8]) -> Vec<u8> {
    let size = code.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    for half in [2u16, 62] {
        file.extend(half.to_le_bytes()); // executable, x86-64
    }
    file.extend(1u32.to_le_bytes());
    for word in [LOAD_ADDRESS, 64, 0] {
        file.extend(word.to_le_bytes()); // entry, program headers, no sections
    }
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    for word in [1u32, 5] {
        file.extend(word.to_le_bytes()); // PT_LOAD, readable and executable
    }
    for word in [120, LOAD_ADDRESS, LOAD_ADDRESS, size, size, 1] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}

/// `mov dx, port; mov eax, value; out dx, al` or `eax`.
fn out(port: u16, value: u32, wide: bool) -> Vec<u8> {
    let mut code = vec![0x66, 0xba];
    code.extend(port.to_le_bytes());
    code.push(0xb8);
    code.extend(value.to_le_bytes());
    code.push(if wide { 0xef } else { 0xee });
    code
}

/// `jmp` to itself.
const FOREVER: [u8; 2] = [0xeb, 0xfe];

struct Folder(tempfile::TempDir);

impl Folder {
    /// `None`, with a message, where KVM cannot be used.
    fn new() -> Option<Self> {
        if File::options().read(true).write(true).open("/dev/kvm").is_err() {
            eprintln!("skipped: no usable /dev/kvm");
            return None;
        }
        Some(Self(tempfile::tempdir().unwrap()))
    }

    fn kernel(&self, code: &[u8]) -> PathBuf {
        let path = self.0.path().join("kernel");
        std::fs::write(&path, elf(code)).unwrap();
        path
    }
}

fn svmm(kernel: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_svmm"));
    command.arg("run").arg("--memory-mib").arg("16").arg("--svm").arg("--kernel").arg(kernel);
    command
}

fn exit_code(mut child: Child) -> Option<i32> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    panic!("svmm does not end");
}

#[test]
fn every_end_has_its_exit_code() {
    let Some(folder) = Folder::new() else { return };
    let rows: [(&str, Vec<u8>, i32); 9] = [
        ("status 0", out(0xf4, 0, true), 0),
        ("status 1", out(0xf4, 1, true), 65),
        ("status 63", out(0xf4, 63, true), 127),
        ("status 256 is no success", out(0xf4, 256, true), 127),
        ("power-off", out(0x600, 0x34, false), 0),
        ("reset register", out(0x604, 1, false), 3),
        ("reset control", out(0xcf9, 6, false), 3),
        ("panic", out(0x505, 1, false), 4),
        ("triple fault", vec![0x0f, 0x01, 0x1e, 0x0f, 0x0b], 5), // lidt [rsi]: no table; ud2
    ];
    for (name, mut code, expected) in rows {
        code.extend(FOREVER);
        let mut command = svmm(&folder.kernel(&code));
        let output = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        assert_eq!(exit_code(output.spawn().unwrap()), Some(expected), "{name}");
    }
}

#[test]
fn serial_output_arrives() {
    let Some(folder) = Folder::new() else { return };
    let mut code = Vec::new();
    for byte in b"hello\r\n" {
        code.extend(out(0x3f8, (*byte).into(), false));
    }
    code.extend(out(0xf4, 0, true));
    code.extend(FOREVER);
    let output = svmm(&folder.kernel(&code)).stdin(Stdio::null()).output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"hello\r\n"[..]));
    let file = folder.0.path().join("console");
    let target = format!("file:{}", file.display());
    let output =
        svmm(&folder.kernel(&code)).args(["--serial", &target]).stdin(Stdio::null()).output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b""[..]));
    assert_eq!(std::fs::read(file).unwrap(), b"hello\r\n");
}

/// A terminal: the side of the user, and the side of svmm.
fn terminal() -> (File, OwnedFd) {
    let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&user).unwrap();
    unlockpt(&user).unwrap();
    let name = ptsname(&user, Vec::new()).unwrap();
    let program = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    (user.into(), program.into())
}

#[test]
fn the_terminal_is_raw_for_the_guest_and_restored_however_it_ends() {
    let Some(folder) = Folder::new() else { return };
    // Writes one byte, then waits.
    let mut code = out(0x3f8, b'!'.into(), false);
    code.extend(FOREVER);
    let kernel = folder.kernel(&code);
    let kill = |signal: rustix::process::Signal| {
        move |_: &mut File, child: &Child| {
            rustix::process::kill_process(rustix::process::Pid::from_child(child), signal).unwrap();
        }
    };
    type End = Box<dyn Fn(&mut File, &Child)>;
    let ends: [(&str, End); 4] = [
        ("Ctrl-A x", Box::new(|user, _| user.write_all(b"\x03\x01x").unwrap())),
        ("SIGTERM", Box::new(kill(rustix::process::Signal::TERM))),
        ("SIGINT", Box::new(kill(rustix::process::Signal::INT))),
        ("SIGHUP", Box::new(kill(rustix::process::Signal::HUP))),
    ];
    for (name, end) in ends {
        let (mut user, program) = terminal();
        let before = tcgetattr(&program).unwrap();
        let clone = || Stdio::from(program.try_clone().unwrap());
        let child = svmm(&kernel).stdin(clone()).stdout(clone()).stderr(Stdio::null()).spawn().unwrap();
        user.read_exact(&mut [0]).unwrap();
        let raw = tcgetattr(&program).unwrap().local_modes;
        assert!(!raw.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG), "{name}");
        end(&mut user, &child);
        assert_eq!(exit_code(child), Some(6), "{name}");
        let after = tcgetattr(&program).unwrap();
        assert_eq!(format!("{after:?}"), format!("{before:?}"), "{name}");
    }
}

#[test]
fn a_console_that_nobody_reads_does_not_keep_svmm_from_ending() {
    let Some(folder) = Folder::new() else { return };
    let mut code = out(0x3f8, b'x'.into(), false);
    code.extend([0xee, 0xeb, 0xfd]); // out dx, al; jmp there
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    // Before there is anything in it.
    let room = rustix::pipe::fcntl_setpipe_size(&writer, 4096).unwrap() as u64;
    let child = svmm(&folder.kernel(&code)).stdin(Stdio::null()).stdout(writer).spawn().unwrap();
    let start = Instant::now();
    while rustix::io::ioctl_fionread(&reader).unwrap() < room {
        assert!(start.elapsed() < PATIENCE, "the pipe is never full");
        std::thread::sleep(Duration::from_millis(2));
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(exit_code(child), Some(6));
}
