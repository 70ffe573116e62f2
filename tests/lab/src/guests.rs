//! Guest tests: the test binaries of `svmm-tests`, run in the chosen world.

use std::io::Write;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::materials::{self, Materials};
use crate::programs::{self, Program};
use crate::world::{Sink, Terminal, Word, Workload};

/// Where the tests find what they boot.
const ENVIRONMENT: &[(&str, &str)] = &[
    ("SVMM_BIN", materials::SVMM),
    ("SVMM_KERNEL", materials::KERNEL),
    ("SVMM_VMLINUX", materials::VMLINUX),
    ("SVMM_GUEST_INITRD", materials::INITRD),
    ("SVMM_NEXT_INITRD", materials::NEXT_INITRD),
];

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
    mut workload: Workload,
    tests: &[Program],
    words: &[String],
    limit: Duration,
) -> Result<bool> {
    for test in tests {
        let name = format!("test-{}", test.name);
        // They are marked "ignored", so that a plain `cargo test` passes where no guest can be booted.
        let mut command = vec![Word::file(&name), "--include-ignored".into()];
        command.extend(words.iter().map(|word| Word::from(word.as_str())));
        workload.files.push((name, test.path.clone()));
        workload.commands.push(command);
    }
    let codes = materials.world.run(&workload, Terminal::Output(&mut Stdout), limit)?;
    Ok(codes.iter().all(|code| *code == 0))
}

/// The tests' results are this program's results.
struct Stdout;

impl Sink for Stdout {
    fn take(&mut self, chunk: &[u8]) {
        let mut out = std::io::stdout();
        let _ = out.write_all(chunk);
        let _ = out.flush();
    }
}
