//! The step that boots guests: the test binaries of `svmm-tests`, run in the chosen world.

use std::io::Write;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::cache::Cache;
use crate::materials::{self, Initrd, KernelInBackground, Materials};
use crate::programs::{self, Program};
use crate::world::{Sink, Terminal, Word, Workload};

/// All guest tests together.
const LIMIT: Duration = Duration::from_secs(20 * 60);
/// Where the tests find what they boot.
const ENVIRONMENT: &[(&str, &str)] = &[
    ("SVMM_BIN", materials::SVMM),
    ("SVMM_KERNEL", materials::KERNEL),
    ("SVMM_VMLINUX", materials::VMLINUX),
    ("SVMM_GUEST_INITRD", materials::INITRD),
];

/// Runs the tests whose names hold one of `filters` (all when there is none).
///
/// # Errors
/// Something does not build, or the world does not run.
pub(super) fn run(cache: &Cache, kernel: KernelInBackground, filters: &[String]) -> Result<bool> {
    let tests = programs::integration_tests("svmm-tests")?;
    if tests.is_empty() {
        bail!("the package svmm-tests has no guest tests");
    }
    let materials = Materials::prepare_with(cache, Initrd::Tests, kernel)?;
    eprintln!("[lab] world: {}", materials.world);
    let mut workload = materials.workload();
    workload.env = ENVIRONMENT.iter().map(|(name, file)| (*name, Word::file(file))).collect();
    for test in tests {
        let mut command = carry(&mut workload, &test);
        command.extend(filters.iter().map(|filter| Word::from(filter.as_str())));
        workload.commands.push(command);
    }
    let codes = materials.world.run(&workload, Terminal::Output(&mut Stdout), LIMIT)?;
    Ok(codes.iter().all(|code| *code == 0))
}

/// The words that run `program`, carried into the world under its own name.
fn carry(workload: &mut Workload, program: &Program) -> Vec<Word> {
    let name = format!("test-{}", program.name);
    let word = Word::file(&name);
    workload.files.push((name, program.path.clone()));
    // They are marked "ignored", so that a plain `cargo test` passes where no guest can be booted.
    vec![word, Word::from("--include-ignored")]
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
