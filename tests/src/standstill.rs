//! What a program and its virtual machine are about when it does not end in time.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// Between two looks: whatever moves at all has moved.
const BETWEEN: Duration = Duration::from_secs(1);

/// Each thread of the process with the kernel's view of it, and what its virtual machines counted meanwhile: figures of
/// KVM's debugfs that are not zero, as `before + meanwhile`. What cannot be read is left out.
pub(crate) fn told(process: u32) -> String {
    let mut text = String::new();
    for thread in entries(Path::new(&format!("/proc/{process}/task"))) {
        let of = |name: &str| fs::read_to_string(thread.join(name)).unwrap_or_default();
        let state = of("stat").rsplit(')').next().unwrap_or_default().trim().chars().next().unwrap_or('?');
        let _ = writeln!(text, "thread {}: {state}", of("comm").trim());
        of("stack").lines().take(6).for_each(|line| {
            let _ = writeln!(text, "    {line}");
        });
    }
    let before = figures(process);
    thread::sleep(BETWEEN);
    for ((name, before), (_, after)) in before.iter().zip(figures(process)) {
        if after != 0 {
            let _ = writeln!(text, "{name}: {before} + {}", after.wrapping_sub(*before));
        }
    }
    text
}

/// What KVM counts of this process's virtual machines and their CPUs, by name.
fn figures(process: u32) -> Vec<(String, u64)> {
    let all = Path::new("/sys/kernel/debug/kvm");
    let mine = format!("{process}-");
    let machines = entries(all).into_iter().filter(|path| name(path).starts_with(&mine));
    let folders = machines.flat_map(|machine| {
        let inner = entries(&machine).into_iter().filter(|path| path.is_dir());
        std::iter::once(machine).chain(inner.collect::<Vec<_>>()).collect::<Vec<_>>()
    });
    let files = folders.flat_map(|folder| entries(&folder)).filter(|path| path.is_file());
    files
        .filter_map(|path| Some((short(&path), fs::read_to_string(&path).ok()?.trim().parse().ok()?)))
        .collect()
}

/// The last two names of a path.
fn short(path: &Path) -> String {
    format!("{}/{}", path.parent().map(name).unwrap_or_default(), name(path))
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// What a folder holds, sorted.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let found = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = found.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}
