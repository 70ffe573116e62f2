//! Guest tests: the test binaries of `svmm-tests`, run in the chosen world.

use std::io::Write;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::materials::{self, Materials};
use crate::process::output;
use crate::programs::{self, Program};
use crate::world::{Sink, Terminal, Word, Workload, World, cloud};

/// Where the tests find what they boot.
const ENVIRONMENT: &[(&str, &str)] = &[
    ("SVMM_BIN", materials::SVMM),
    ("SVMM_KERNEL", materials::KERNEL),
    ("SVMM_VMLINUX", materials::VMLINUX),
    ("SVMM_GUEST_INITRD", materials::INITRD),
    ("SVMM_NEXT_INITRD", materials::NEXT_INITRD),
];

/// The test program that needs a guest that is a host in turn; the others are spared its files.
const CHAIN: &str = "chain";
const CHAIN_ENVIRONMENT: &[(&str, &str)] =
    &[("SVMM_HOST_KERNEL", materials::HOST_KERNEL), ("SVMM_HOST_INITRD", materials::HOST_INITRD)];

/// The test program that runs the kernel's VFIO selftests, which only it needs.
const VFIO: &str = "vfio_selftests";

/// Builds the test programs.
///
/// # Errors
/// One does not build.
pub fn programs() -> Result<Vec<Program>> {
    let tests = programs::integration_tests("svmm-tests")?;
    if tests.is_empty() {
        bail!("the package svmm-tests has no guest tests");
    }
    Ok(tests)
}

/// Those of `tests` that have a test whose name holds one of `filters`; all when there is none. A machine need not be
/// started for the others.
///
/// # Errors
/// A test program does not run on this host, or none has such a test.
pub fn holding(tests: Vec<Program>, filters: &[String]) -> Result<Vec<Program>> {
    if filters.is_empty() {
        return Ok(tests);
    }
    let mut chosen = Vec::new();
    for test in tests {
        // Some of them take one filter only.
        let listed = output(Command::new(&test.path).arg("--list"))?;
        let mut names = listed.lines().filter_map(|line| line.strip_suffix(": test"));
        if names.any(|name| filters.iter().any(|filter| name.contains(filter))) {
            chosen.push(test);
        }
    }
    if chosen.is_empty() {
        bail!(
            "no guest test has a name that holds {}; the names are in tests/tests/*.rs",
            filters.join(" or ")
        );
    }
    Ok(chosen)
}

/// What all guest tests need, and no command.
#[must_use]
pub fn workload(materials: &Materials) -> Workload {
    let mut workload = materials.workload();
    workload.env = ENVIRONMENT.iter().map(|(name, file)| (*name, Word::file(file))).collect();
    workload
}

/// Runs `tests`, each with `words` for the test harness: filters and options. Tells whether all passed.
///
/// # Errors
/// The world does not run, or not to its end within `limit`.
pub fn run(
    materials: &Materials,
    workload: Workload,
    tests: &[Program],
    words: &[String],
    limit: Duration,
) -> Result<bool> {
    if tests.iter().any(|test| test.name == VFIO) {
        materials.build_vfio()?;
    }
    match &materials.world {
        World::Here => {
            let load = tests.iter().fold(workload, |load, test| with(materials, load, test, words));
            let mut lines = Lines::new(String::new());
            let codes = materials.world.run(&load, Terminal::Output(&mut lines), limit);
            lines.finish();
            Ok(codes?.iter().all(|code| *code == 0))
        }
        World::Cloud(_) => Ok(side_by_side(materials, &workload, tests, words, limit)),
    }
}

/// `load`, and in it a command that runs `test`.
fn with(materials: &Materials, mut load: Workload, test: &Program, words: &[String]) -> Workload {
    if test.name == CHAIN {
        load.files.extend(materials.of_host());
        load.env.extend(CHAIN_ENVIRONMENT.iter().map(|(name, file)| (*name, Word::file(file))));
    }
    if test.name == VFIO {
        load.files.extend(materials.of_vfio());
        load.env.push(("SVMM_VFIO_INITRD", Word::file(materials::VFIO_INITRD)));
    }
    let name = format!("test-{}", test.name);
    // They are marked "ignored", so that a plain `cargo test` passes where no guest can be booted.
    let mut command = vec![Word::file(&name), "--include-ignored".into()];
    command.extend(words.iter().map(|word| Word::from(word.as_str())));
    load.files.push((name, test.path.clone()));
    load.commands.push(command);
    load
}

/// A cloud machine has one CPU, so as many of them run as this host carries; each test program has one for itself.
fn side_by_side(
    materials: &Materials,
    load: &Workload,
    tests: &[Program],
    words: &[String],
    limit: Duration,
) -> bool {
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let work = || {
        while let Some(test) = tests.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut lines = Lines::new(format!("{:<10} | ", test.name));
            let load = with(materials, load.clone(), test, words);
            let outcome = materials.world.run(&load, Terminal::Output(&mut lines), limit);
            lines.finish();
            match outcome {
                Ok(codes) if codes == [0] => continue,
                Ok(codes) => eprintln!("[lab] {}: FAILED (exit code {codes:?})", test.name),
                Err(error) => eprintln!("[lab] {}: FAILED: {error:#}", test.name),
            }
            failed.store(true, Ordering::Relaxed);
        }
    };
    let machines = cloud::side_by_side().min(tests.len());
    thread::scope(|scope| (0..machines).for_each(|_| drop(scope.spawn(work))));
    !failed.load(Ordering::Relaxed)
}

/// The tests' results are this program's results, line by line, each behind a name.
struct Lines {
    name: String,
    rest: Vec<u8>,
}

impl Lines {
    fn new(name: String) -> Self {
        Self { name, rest: Vec::new() }
    }

    fn print(&self, line: &[u8]) {
        if !line.trim_ascii().is_empty() {
            let _ = writeln!(std::io::stdout(), "{}{}", self.name, String::from_utf8_lossy(line).trim_end());
        }
    }

    /// Prints what no line break follows.
    fn finish(&mut self) {
        let rest = std::mem::take(&mut self.rest);
        self.print(&rest);
    }
}

impl Sink for Lines {
    fn take(&mut self, chunk: &[u8]) {
        self.rest.extend_from_slice(chunk);
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else { return };
        let rest = self.rest.split_off(end + 1);
        let whole = std::mem::replace(&mut self.rest, rest);
        whole.split(|byte| *byte == b'\n').for_each(|line| self.print(line));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_kept_until_they_are_whole() {
        let mut lines = Lines::new("x".into());
        for (chunk, rest) in [("a", "a"), ("b\nc", "c"), ("\n\n", ""), ("d\ne\nf", "f")] {
            lines.take(chunk.as_bytes());
            assert_eq!(lines.rest, rest.as_bytes(), "after {chunk:?}");
        }
        lines.finish();
        assert!(lines.rest.is_empty());
    }
}
