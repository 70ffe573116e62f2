//! The step that boots guests: the test binaries of `svmm-tests`, run in the chosen world.

use std::io::Write;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::cache::Cache;
use crate::materials::{self, Initrd, KernelInBackground, Materials};
use crate::process::output;
use crate::programs::{self, Program};
use crate::world::{Sink, Terminal, Word, Workload, World};

/// All guest tests together on this host.
const LIMIT: Duration = Duration::from_secs(20 * 60);
/// One guest test in the cloud world. A machine that goes astray has no clock of its own left to end the test.
const CLOUD_LIMIT: Duration = Duration::from_secs(150);
/// How often a test may be tried in the cloud world. Guests hang there now and then; QEMU's part in it is proven for some
/// hangs only, so a retry can also hide a defect of svmm. Every attempt that fails is told. To go when it is found.
const CLOUD_ATTEMPTS: u32 = 3;
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
    match &materials.world {
        World::Here => all_at_once(&materials.world, workload, tests, filters),
        World::Cloud(_) => one_by_one(&materials.world, &workload, &tests, filters),
    }
}

/// The words that run `program`, carried into the world under its own name.
fn carry(workload: &mut Workload, program: &Program) -> Vec<Word> {
    let name = format!("test-{}", program.name);
    let word = Word::file(&name);
    workload.files.push((name, program.path.clone()));
    // They are marked "ignored", so that a plain `cargo test` passes where no guest can be booted.
    vec![word, Word::from("--include-ignored")]
}

fn all_at_once(world: &World, mut load: Workload, tests: Vec<Program>, filters: &[String]) -> Result<bool> {
    for test in tests {
        let mut command = carry(&mut load, &test);
        command.extend(filters.iter().map(|filter| Word::from(filter.as_str())));
        load.commands.push(command);
    }
    let codes = world.run(&load, Terminal::Output(&mut Stdout), LIMIT)?;
    Ok(codes.iter().all(|code| *code == 0))
}

/// The cloud machine is small: one test at a time, and a fresh machine for each.
fn one_by_one(world: &World, load: &Workload, tests: &[Program], filters: &[String]) -> Result<bool> {
    let (mut passed, mut failed, mut again) = (0, Vec::new(), Vec::new());
    for test in tests {
        for name in names(test, filters)? {
            let mut load = load.clone();
            let mut command = carry(&mut load, test);
            command.extend(["--exact", &name].map(Word::from));
            load.commands.push(command);
            match attempts(world, &load, &name) {
                0 => failed.push(name),
                attempt => {
                    passed += 1;
                    if attempt > 1 {
                        again.push(name);
                    }
                }
            }
        }
    }
    println!("\n{passed} passed, {} failed", failed.len());
    for (what, names) in [("failed", failed.as_slice()), ("passed, but not at the first attempt", &again)] {
        if !names.is_empty() {
            println!("  {what}: {}", names.join(", "));
        }
    }
    Ok(failed.is_empty())
}

/// Which attempt passed; 0: none.
fn attempts(world: &World, load: &Workload, name: &str) -> u32 {
    for attempt in 1..=CLOUD_ATTEMPTS {
        match world.run(load, Terminal::Output(&mut Stdout), CLOUD_LIMIT) {
            Ok(codes) if codes == [0] => return attempt,
            Ok(codes) => eprintln!("[lab] {name}: attempt {attempt} of {CLOUD_ATTEMPTS} failed ({codes:?})"),
            Err(error) => eprintln!("[lab] {name}: attempt {attempt} of {CLOUD_ATTEMPTS}: {error:#}"),
        }
    }
    0
}

/// The names of a program's tests that hold one of `filters`; all when there is none.
fn names(test: &Program, filters: &[String]) -> Result<Vec<String>> {
    let listed = output(Command::new(&test.path).args(["--list", "--format", "terse", "--include-ignored"]))?;
    let names = listed.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned);
    let wanted = |name: &String| filters.is_empty() || filters.iter().any(|filter| name.contains(filter));
    Ok(names.filter(wanted).collect())
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
